"""Group commit: the records of all who wait become durable with one sync, done in a thread of its own."""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Callable
from typing import Any, Final, Protocol

from gevent import get_hub, getcurrent

from fastpath.syncer import Syncer, Waiters
from gateway.audit.spool import Spool
from gateway.audit.state import Head
from gateway.errors import AuditUnavailable

log = logging.getLogger("caregate.audit")

SLOW_S = 2.0
"""A sync that takes longer is given up by those who wait for it, and refused to those who come later."""
AT_ONCE: Final = 3
"""How many syncs may overlap.

PERF: `audit_durable` and `audit_open` of `make bench`: who comes while a sync is under way need not wait for its end.
More of them cost more CPU than they save waiting.
"""
QUICK_S: Final = 0.0004
"""Syncs that take less, by and large, follow one another: a second one would be over hardly earlier."""
_READ = 1


class Disk(Protocol):
    """What syncs files beside the hub: see fastpath.syncer."""

    @property
    def told(self) -> int: ...
    def begin(self, files: list[int]) -> None: ...
    def ended(self) -> int | None: ...
    def stop(self) -> None: ...


class Beside(Protocol):
    """A further file that the records need: see gateway.audit.pseudonyms."""

    def to_sync(self, turn: int) -> tuple[int, list[int]]: ...
    def synced(self, mark: int) -> None: ...
    def sync_failed(self) -> None: ...


class Turn:
    """One of the syncs that may be under way, and who waits for it.

    Shapes: `void`: whatever it says proves nothing any more. Units: `began_s` monotonic seconds.
    """

    __slots__ = ("began_s", "disk", "head", "mark", "number", "void", "waiting", "watcher")

    def __init__(self, number: int, disk: Disk) -> None:
        self.number = number
        self.disk = disk
        self.watcher: Any = None
        self.waiting: list[object] = []
        self.head = Head(0, b"", 0)
        self.mark = 0
        self.began_s = 0.0
        self.void = False


class Commit:
    """Makes the spool's records durable for whoever waits.

    A sync that has ended covers all records of before its begin, whatever became of earlier ones: each has descriptors
    of its own, and hears of every error. One that fails takes the others under way with it.

    PERF: `audit_durable` of `make bench`: steps of the hub, no greenlet of its own. A sync begins when all who
    waited for the one that ended have had their turn, so what they record at once is in it.
    Holds: AT_ONCE threads and watchers of the hub, until `stop`; the greenlets that wait.
    """

    def __init__(self, spool: Spool, beside: Beside | None = None) -> None:
        self._spool = spool
        self._beside = beside
        hub = get_hub()
        self._loop = hub.loop
        self._waiters = Waiters(hub.switch, getcurrent, self._begin_soon, hub.handle_error, AuditUnavailable)
        self._free: list[Turn] = []
        self._under_way: list[Turn] = []
        self.wait: Callable[[], None] = self._waiters.wait
        """Until every record that is in the spool now is durable.

        Raises: AuditUnavailable if the disk fails or hangs.
        Yields to the hub: yes.
        """
        self._stopped = self._watching = False
        self._took_s = 0.0
        self.durable = spool.sequence
        """Every record up to this sequence survives the machine."""
        self._timer = self._loop.timer(SLOW_S)
        for number in range(AT_ONCE):
            self._free.append(self._made(number, Syncer()))

    def _made(self, number: int, disk: Disk) -> Turn:
        turn = Turn(number, disk)
        turn.watcher = self._loop.io(disk.told, _READ)
        turn.watcher.start(self._ended, turn)
        return turn

    def _begin_soon(self) -> None:
        # Whoever comes in the same turn of the hub is in the same sync.
        self._loop.run_callback(self._begin)

    def stop(self) -> None:
        """End; whoever waits is refused."""
        self._stopped = self._waiters.closed = True
        self._timer.stop()
        self._timer.close()
        for turn in self._free + self._under_way:
            turn.watcher.stop()
            turn.watcher.close()
            turn.disk.stop()
        self._loop.run_callback(self._waiters.tell, self._everybody(), False)

    # --- in the hub

    def _begin(self) -> None:
        self._waiters.asked = False
        if self._waiters.closed or not self._waiters or not self._may_begin():
            return
        turn = self._free.pop()
        turn.waiting = self._waiters.take()
        turn.began_s, turn.void = time.monotonic(), False
        self._under_way.append(turn)
        # Who comes while no more may begin is in the next, at the end of one of them.
        self._waiters.asked = not self._may_begin()
        try:
            turn.mark, files = (0, []) if self._beside is None else self._beside.to_sync(turn.number)
            turn.head, descriptors = self._spool.files_to_sync(time.time_ns() // 1_000_000, turn.number)
            turn.disk.begin([*files, *descriptors])
        except OSError as error:
            self._settle(turn, error.errno or errno.EIO)
            return
        if not self._watching:
            self._watching = True
            self._look_in(SLOW_S)

    def _may_begin(self) -> bool:
        return bool(self._free) and (self._took_s > QUICK_S or not self._under_way)

    def _ended(self, turn: Turn) -> None:
        error = turn.disk.ended()
        if error is not None:
            self._settle(turn, error)

    def _settle(self, turn: Turn, error: int) -> None:
        """A sync has ended: whoever waited for it goes on, and the next begins for those who wait by now."""
        self._under_way.remove(turn)
        self._free.append(turn)
        batch, turn.waiting = turn.waiting, []
        self._took_s += (time.monotonic() - turn.began_s - self._took_s) / 8
        if error:
            self._spool.not_synced(turn.number)
            self._fail(error)
        elif turn.void:
            self._spool.not_synced(turn.number)
        else:
            self.durable = max(self.durable, turn.head.sequence)
            self._spool.synced(turn.head, turn.number)
            if self._beside is not None:
                self._beside.synced(turn.mark)
        if self._waiters.closed and not self._stopped:
            self._waiters.closed = False
            log.warning("the audit spool's disk answers again")
        self._waiters.tell(batch, not error)
        if error:
            self._begin_soon()
        else:
            self._begin()

    def _fail(self, error: int) -> None:
        """Nothing that is under way counts: what this one should have written may be forgotten by the kernel."""
        log.error("the audit spool could not be synced: %s", os.strerror(error))
        self._spool.sync_failed()
        if self._beside is not None:
            try:
                self._beside.sync_failed()
            except OSError as also:
                log.error("the names of patients could not be written again: %s", also.strerror)
        self._loop.run_callback(self._waiters.tell, self._void_all(), False)

    def _void_all(self) -> list[object]:
        """All who wait for a sync that is under way, whom it tells nothing any more."""
        found: list[object] = []
        for turn in self._under_way:
            turn.void = True
            found += turn.waiting
            turn.waiting = []
        return found

    def _look(self) -> None:
        """Does the disk hang? Then nobody waits for it until it moves again."""
        self._watching = bool(self._under_way)
        if not self._under_way:
            return
        left_s = self._under_way[0].began_s + SLOW_S - time.monotonic()
        self._look_in(left_s if left_s > 0 else SLOW_S)
        if left_s <= 0 and not self._waiters.closed:
            log.error("the audit spool's disk has not answered for %s s", SLOW_S)
            self._waiters.closed = True
            self._spool.state.suspect = True
            self._waiters.tell(self._everybody(), False)

    def _look_in(self, after_s: float) -> None:
        self._timer.stop()
        self._timer.close()
        self._timer = self._loop.timer(after_s)
        self._timer.start(self._look)

    def _everybody(self) -> list[object]:
        """All who wait, whom nobody tells any more."""
        return self._void_all() + self._waiters.take()

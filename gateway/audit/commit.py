"""Group commit: the records of all who wait become durable with one sync, done in a thread of its own."""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Callable
from typing import Protocol

from gevent import get_hub
from gevent.hub import Waiter

from fastpath.syncer import Syncer
from gateway.audit.spool import Head, Spool
from gateway.errors import AuditUnavailable

log = logging.getLogger("caregate.audit")

SLOW_S = 2.0
"""A sync that takes longer is given up by those who wait for it, and refused to those who come later."""
_READ = 1


class Disk(Protocol):
    """What syncs files beside the hub: see fastpath.syncer."""

    @property
    def told(self) -> int: ...
    def begin(self, files: list[int]) -> None: ...
    def ended(self) -> int | None: ...
    def stop(self) -> None: ...


class Commit:
    """Makes the spool's records durable for whoever waits.

    PERF: `audit_durable` of `make bench`: steps of the hub, no greenlet of its own. The next sync begins when all who
    waited for the last have had their turn, so what they record at once is in it, and not in the one after.
    Holds: a thread and two watchers of the hub, until `stop`; the greenlets that wait.
    """

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._loop = get_hub().loop
        self._waiting: list[Waiter[bool]] = []
        self._under_way: list[Waiter[bool]] = []
        self._head = Head(spool.sequence, spool.hash, 0)
        self._busy = self._stuck = False
        self.beside: Callable[[], list[int]] = list
        """Further files that the records need."""
        self.durable = spool.sequence
        """Every record up to this sequence survives the machine."""
        self._timer = self._loop.timer(SLOW_S)
        self._use(Syncer())

    def _use(self, disk: Disk) -> None:
        self._disk = disk
        self._watcher = self._loop.io(disk.told, _READ)
        self._watcher.start(self._ended)

    def wait(self) -> None:
        """Until every record that is in the spool now is durable.

        Raises: AuditUnavailable if the disk fails or hangs.
        Yields to the hub: yes.
        """
        if self._stuck:
            raise AuditUnavailable()
        waiter: Waiter[bool] = Waiter()
        self._waiting.append(waiter)
        if not self._busy:
            self._busy = True
            # Whoever comes in the same turn of the hub is in the same sync.
            self._loop.run_callback(self._begin)
        if not waiter.get():
            raise AuditUnavailable()

    def stop(self) -> None:
        """End; whoever waits is refused."""
        self._end_timer()
        self._watcher.stop()
        self._watcher.close()
        self._disk.stop()
        self._stuck = True
        self._loop.run_callback(_switch, self._everybody(), False)

    # --- in the hub

    def _begin(self) -> None:
        if self._stuck:
            return
        self._under_way, self._waiting = self._waiting, []
        try:
            self._head, descriptors = self._spool.files_to_sync(time.time_ns() // 1_000_000)
            self._disk.begin([*self.beside(), *descriptors])
        except OSError as error:
            self._settle(error.errno or errno.EIO)
            return
        self._timer = self._loop.timer(SLOW_S)
        self._timer.start(self._give_up)

    def _ended(self) -> None:
        error = self._disk.ended()
        if error is not None:
            self._end_timer()
            self._settle(error)

    def _settle(self, error: int) -> None:
        """A sync has ended: whoever waited for it goes on, and the next begins for those who wait by now."""
        if error:
            log.error("the audit spool could not be synced: %s", os.strerror(error))
            self._spool.sync_failed()
        elif not self._stuck:
            self.durable = self._head.sequence
            self._spool.synced(self._head)
        if self._stuck:
            self._stuck = False
            log.warning("the audit spool's disk answers again")
        batch, self._under_way = self._under_way, []
        _switch(batch, not error)
        if not self._waiting:
            self._busy = False
        elif error:
            self._loop.run_callback(self._begin)
        else:
            self._begin()

    def _give_up(self) -> None:
        """The disk hangs: nobody waits for it until it moves again."""
        self._end_timer()
        log.error("the audit spool's disk has not answered for %s s", SLOW_S)
        self._stuck = True
        self._spool.state.suspect = True
        _switch(self._everybody(), False)

    def _everybody(self) -> list[Waiter[bool]]:
        """All who wait, whom nobody tells any more."""
        found = self._under_way + self._waiting
        self._under_way, self._waiting = [], []
        return found

    def _end_timer(self) -> None:
        self._timer.stop()
        self._timer.close()


def _switch(batch: list[Waiter[bool]], durable: bool) -> None:
    """In the hub. NOTE: a Waiter is switched to by the hub alone."""
    for waiter in batch:
        waiter.switch(durable)

"""Group commit: the records of all who wait become durable with one sync, done in a thread of its own."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial

import gevent
from gevent.event import Event
from gevent.hub import Waiter

from gateway.audit.spool import Spool, sync_files
from gateway.audit.syncing import SyncThread
from gateway.errors import AuditUnavailable

log = logging.getLogger("caregate.audit")

SLOW_S = 2.0
"""A sync that takes longer is given up by those who wait for it, and refused to those who come later."""


class Commit:
    """Makes the spool's records durable for whoever waits.

    Holds: one thread; the greenlets that wait.
    """

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._thread = SyncThread()
        self._news = Event()
        self._waiting: list[Waiter[bool]] = []
        self._stuck = False
        self.beside: Callable[[], list[int]] = list
        """Further files that the records need."""
        self.durable = spool.sequence
        """Every record up to this sequence survives the machine."""
        self._greenlet = gevent.spawn(self._run)

    def wait(self) -> None:
        """Until every record that is in the spool now is durable.

        Raises: AuditUnavailable if the disk fails or hangs.
        Yields to the hub: yes.
        """
        if self._stuck:
            raise AuditUnavailable()
        waiter: Waiter[bool] = Waiter()
        self._waiting.append(waiter)
        self._news.set()
        if not waiter.get():
            raise AuditUnavailable()

    def stop(self) -> None:
        """End; whoever waits is refused."""
        self._greenlet.kill()
        self._tell(self._waiting, durable=False)
        self._waiting = []
        self._thread.stop()

    def _run(self) -> None:
        while True:
            self._news.wait()
            self._news.clear()
            batch, self._waiting = self._waiting, []
            self._tell(batch, durable=self._sync(batch))
            # PERF: `python -m loadtests.audit_cost`: whoever goes on at once is in the next sync, not in the one after.
            gevent.sleep(0)

    def _sync(self, batch: list[Waiter[bool]]) -> bool:
        head, descriptors = self._spool.files_to_sync(time.time_ns() // 1_000_000)
        self._thread.begin(sync_files, [*self.beside(), *descriptors])
        if not self._thread.wait(SLOW_S):
            log.error("the audit spool's disk has not answered for %s s", SLOW_S)
            self._refuse_until_it_moves(batch)
            return False
        if self._thread.error is not None:
            log.error("the audit spool could not be synced: %s", self._thread.error)
            self._spool.sync_failed()
            return False
        self.durable = head.sequence
        self._spool.synced(head)
        return True

    def _refuse_until_it_moves(self, batch: list[Waiter[bool]]) -> None:
        """The disk hangs: nobody waits for it until it moves again."""
        self._stuck = True
        self._tell(batch + self._waiting, durable=False)
        batch.clear()
        self._waiting = []
        self._spool.state.suspect = True
        self._thread.wait()
        if self._thread.error is not None:
            self._spool.sync_failed()
        self._stuck = False
        log.warning("the audit spool's disk answers again")

    def _tell(self, batch: list[Waiter[bool]], *, durable: bool) -> None:
        if batch:
            # NOTE: a Waiter is switched to by the hub alone; one callback serves all.
            gevent.get_hub().loop.run_callback(partial(_switch, list(batch), durable))


def _switch(batch: list[Waiter[bool]], durable: bool) -> None:
    for waiter in batch:
        waiter.switch(durable)

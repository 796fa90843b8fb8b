"""From the spool to PostgreSQL: batches, in order, each record once; and the spool's housekeeping beside it."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import gevent
import orjson
from gevent.event import Event

from gateway.audit.columns import values
from gateway.audit.commit import Commit
from gateway.audit.pseudonyms import FOLDER as PATIENTS
from gateway.audit.pseudonyms import Pseudonyms, ship_left
from gateway.audit.spool import Record, Spool, adopt
from gateway.errors import GatewayError
from gateway.store.audit import AlreadyThere, AuditStore, RowRefused

log = logging.getLogger("caregate.audit")

_TICK_S = 0.2
"""How often the spool is looked at; records wait so long for company.

PERF: `policy_rs256` of `make bench`, caregate-logged: a look costs a sync and a COPY, whatever it finds.
"""
_BATCH = 4000
"""Rows in a transaction, made some at a time, between which the hub has others' turn.

PERF: `policy_rs256` of `make bench`, caregate-logged: a transaction costs the worker as much as some hundred rows.
"""
_SINGLY = 1000
"""Records that are looked at one by one after a transaction that failed."""
_RETRY_S = 0.25
_ORPHAN_SCAN_S = 5.0
"""Chains of killed workers and of commands: until they are shipped, verification misses what is signed already."""
_ERASED_S = 5.0
"""How soon a worker forgets the name of a patient that was erased."""
_HEAD_S = 1.0
"""How far behind the durable part of a chain may be when nobody waits for it."""
_COPY_TIMEOUT_S = 5.0
_REFUSED = "refused.ndjson"


class Shipper:
    """Ships what is durable, of chains too whose workers are gone, and makes room before it is needed: a greenlet each.

    Holds: the locks of the chains it ships.
    """

    def __init__(
        self,
        store: AuditStore,
        spool: Spool,
        commit: Commit,
        count: Callable[[str, int], None],
        told: Callable[[], None],
        pseudonyms: Pseudonyms | None = None,
    ) -> None:
        """Shapes: `count(outcome, number)` hears of records: written, refused; `told()` is called after each look."""
        self._store = store
        self._spool = spool
        self._commit = commit
        self._count = count
        self._told = told
        self._pseudonyms = pseudonyms
        self._erased_s = 0.0
        self._root = spool.folder.parent
        self._orphans: list[Spool] = []
        self._seen: dict[str, int] = {}
        self._retry_s = self._scan_s = self._head_s = 0.0
        self.room_wanted = False
        """The disk is full, or the spool's bound is reached."""
        self._rolled = Event()
        spool.rolled = self._rolled.set
        self._greenlets = [gevent.spawn(self._run), gevent.spawn(self._keep_room)]

    @property
    def pending(self) -> int:
        """Records that are not shipped."""
        return self._spool.pending + sum(orphan.pending for orphan in self._orphans)

    def stop(self, timeout_s: float) -> None:
        """Ship what can be shipped in time, then end.

        Yields to the hub: yes.
        """
        gevent.killall(self._greenlets)
        with gevent.Timeout(timeout_s, False):
            try:
                self._commit.wait()
                while self._ship(self._spool, self._commit.durable):
                    pass
            except GatewayError:
                pass
        for orphan in self._orphans:
            orphan.close()
        self._orphans = []

    def _run(self) -> None:
        while True:
            try:
                self._look()
            except GatewayError:
                self._retry_s = time.monotonic() + _RETRY_S
            except Exception:
                log.exception("the audit shipper failed")
                self._retry_s = time.monotonic() + 10 * _RETRY_S
            self._told()
            gevent.sleep(_TICK_S)

    def _look(self) -> None:
        now_s = time.monotonic()
        spool, commit = self._spool, self._commit
        if now_s >= self._head_s:
            self._head_s = now_s + _HEAD_S
            # An idle chain's owner says every second that nothing came.
            commit.wait()
        if now_s < self._retry_s:
            return
        if now_s >= self._scan_s:
            self._scan_s = now_s + _ORPHAN_SCAN_S
            self._adopt()
        if self._pseudonyms is not None and now_s >= self._erased_s:
            self._erased_s = now_s + _ERASED_S
            self._pseudonyms.follow(self._store, _COPY_TIMEOUT_S)
        for orphan in list(self._orphans):
            if self._pseudonyms is not None:
                ship_left(self._root / PATIENTS, orphan.chain, self._store, _COPY_TIMEOUT_S)
            while self._ship(orphan, orphan.sequence):
                self._told()
            self._orphans.remove(orphan)
            orphan.close()
        if spool.pending:
            if commit.durable < spool.sequence:
                commit.wait()
            until = commit.durable
            while self._ship(spool, until):
                self._told()

    # --- room

    def _keep_room(self) -> None:
        """Have the next file made as soon as one was begun, in a thread: it is filled with zeros, which takes its time.

        NOTE: in a greenlet of its own; shipping may wait for the database while the file that is written to fills up.
        """
        spool, threads = self._spool, gevent.get_hub().threadpool
        while True:
            self._rolled.clear()
            if spool.wants_room:
                making = threads.spawn(spool.make_room)
                making.wait()
                self.room_wanted = making.exception is not None
                self._told()
                if self.room_wanted:
                    log.error("the audit spool has no room: %s", making.exception)
                    gevent.sleep(_RETRY_S)
                    continue
            self._rolled.wait()

    # --- shipping

    def _ship(self, spool: Spool, until: int) -> bool:
        """Ship a batch; False if nothing up to `until` is left.

        PERF: `audit_durable` of `make bench`: what came while a batch was on its way waits for the next look; a
        transaction of a few hundred rows costs the worker as much as one of thousands.
        Raises: DatabaseUnavailable, DatabaseTimeout.
        """
        last = spool.state.shipped
        if self._pseudonyms is not None and spool is self._spool:
            # NOTE: the names of all records up to `until` wait by now: a name is made before the event that uses it.
            self._pseudonyms.ship(self._store, _COPY_TIMEOUT_S)
        stretches = spool.rows(until, _BATCH)

        def pieces(rows: bytes) -> Iterator[bytes]:
            nonlocal last
            yield rows
            for more, last in stretches:  # noqa: B007
                yield more

        before = last
        try:
            rows, last = next(stretches, (b"", last))
            if not rows:
                return False
            self._store.copy(pieces(rows), _COPY_TIMEOUT_S)
            count = last - before
        except (AlreadyThere, RowRefused, ValueError):
            batch = spool.unshipped(until, _SINGLY)
            self._ship_singly(spool, batch)
            last, count = batch[-1].sequence, len(batch)
        spool.shipped(last)
        self._count("written", count)
        return last < until

    def _ship_singly(self, spool: Spool, batch: list[Record]) -> None:
        """What is there already is left alone; one that the database refuses must not hold up the others."""
        for record in batch:
            try:
                self._store.insert(values(spool.chain, *record), _COPY_TIMEOUT_S)
            except (RowRefused, AlreadyThere, ValueError) as refused:
                log.error("record %d of audit chain %s is set aside: %s", record.sequence, spool.chain, refused)
                self._set_aside(spool.chain, record)
                self._count("refused", 1)

    def _set_aside(self, chain: str, record: Record) -> None:
        """Durable in a file: a record is never given up."""
        line = {"chain": chain, "sequence": record.sequence, "hash": record.hash.hex()}
        text = orjson.dumps({**line, "canonical": record.canonical.decode("utf-8", "replace")}) + b"\n"
        descriptor = os.open(self._root / _REFUSED, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, text)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    # --- chains whose workers are gone

    def _adopt(self) -> None:
        """Yields to the hub: the chains are read in a thread."""
        for spool in gevent.get_hub().threadpool.apply(_read_orphans, (self._root, self._seen)):
            if spool.damaged:
                log.error("audit chain %s is damaged: %s", spool.chain, spool.damaged)
                self._count("damaged", 1)
            self._orphans.append(spool)


def _read_orphans(root: Path, seen: dict[str, int]) -> list[Spool]:
    """The chains that nobody owns and that have something to ship, made durable."""
    found = []
    for spool in adopt(root, seen):
        if spool.pending or not spool.state.settled:
            spool.settle(time.time_ns() // 1_000_000)
        if spool.pending:
            found.append(spool)
        else:
            spool.close()
    return found

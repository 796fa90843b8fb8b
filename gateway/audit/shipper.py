"""From the spool to PostgreSQL: batches, in order, each record once; and the spool's housekeeping beside it."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

import gevent
import orjson

from gateway.audit.columns import row, values
from gateway.audit.commit import Commit
from gateway.audit.spool import Record, Spool, SpoolFull, adopt
from gateway.errors import GatewayError
from gateway.store.audit import AlreadyThere, AuditStore, RowRefused

log = logging.getLogger("caregate.audit")

_TICK_S = 0.2
"""How often the spool is looked at; records wait so long for company.

PERF: `policy_rs256` of `make bench`, caregate-logged: a look costs a sync and a COPY, whatever it finds.
"""
_BATCH = 500
_SLICE = 50
"""Rows made without a break: about a quarter of a millisecond."""
_RETRY_S = 0.25
_ORPHAN_SCAN_S = 30.0
_HEAD_S = 1.0
"""How far behind the durable part of a chain may be when nobody waits for it."""
_COPY_TIMEOUT_S = 5.0
_REFUSED = "refused.ndjson"


class Shipper:
    """One greenlet: ships what is durable, of chains too whose workers are gone; makes room before it is needed.

    Holds: the locks of the chains it ships.
    """

    def __init__(
        self,
        store: AuditStore,
        spool: Spool,
        commit: Commit,
        count: Callable[[str, int], None],
        told: Callable[[], None],
    ) -> None:
        """Shapes: `count(outcome, number)` hears of records: written, refused; `told()` is called after each look."""
        self._store = store
        self._spool = spool
        self._commit = commit
        self._count = count
        self._told = told
        self._root = spool.folder.parent
        self._orphans: list[Spool] = []
        self._seen: dict[str, int] = {}
        self._retry_s = self._scan_s = self._head_s = self._room_s = 0.0
        self._making_room: gevent.event.AsyncResult[None] | None = None
        self.room_wanted = False
        """The disk is full, or the spool's bound is reached."""
        self._greenlet = gevent.spawn(self._run)

    @property
    def pending(self) -> int:
        """Records that are not shipped."""
        return self._spool.pending + sum(orphan.pending for orphan in self._orphans)

    def stop(self, timeout_s: float) -> None:
        """Ship what can be shipped in time, then end.

        Yields to the hub: yes.
        """
        self._greenlet.kill()
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
        self._make_room(now_s)
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
        for orphan in list(self._orphans):
            while self._ship(orphan, orphan.sequence):
                self._told()
            self._orphans.remove(orphan)
            orphan.close()
        if spool.pending:
            if commit.durable < spool.sequence:
                commit.wait()
            while self._ship(spool, commit.durable):
                self._make_room(time.monotonic())
                self._told()

    # --- room

    def _make_room(self, now_s: float) -> None:
        """Have the next file made, in a thread: it is filled with zeros, which takes its time."""
        making = self._making_room
        if making is not None:
            if not making.ready():
                return
            self._making_room = None
            self.room_wanted = making.exception is not None
            if isinstance(making.exception, SpoolFull):
                self._room_s = now_s + _RETRY_S
                log.error("the audit spool has no room: %s", making.exception)
        if self._spool.wants_room and now_s >= self._room_s:
            self._making_room = gevent.get_hub().threadpool.spawn(self._spool.make_room)

    # --- shipping

    def _ship(self, spool: Spool, until: int) -> bool:
        """Ship a batch; False if there was none.

        Raises: DatabaseUnavailable, DatabaseTimeout.
        """
        batch = spool.unshipped(until, _BATCH)
        if not batch:
            return False
        try:
            self._store.copy(self._rows(spool.chain, batch), _COPY_TIMEOUT_S)
        except (AlreadyThere, RowRefused, ValueError):
            self._ship_singly(spool, batch)
        spool.shipped(batch[-1].sequence)
        self._count("written", len(batch))
        return True

    def _rows(self, chain: str, batch: list[Record]) -> bytes:
        """Yields to the hub: between slices, so that requests are not kept waiting."""
        rows: list[bytes] = []
        for start in range(0, len(batch), _SLICE):
            if start:
                gevent.sleep(0)
            rows += [row(chain, *record) for record in batch[start : start + _SLICE]]
        return b"".join(rows)

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

"""The audit trail's way to PostgreSQL: one greenlet writes what all requests hand it, many events in one round trip.

`record` returns when its event is durable: those of all waiting requests share one transaction. `enqueue` returns at
once; its events follow in the next batch, and wait in a file while the database is away.
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import gevent
import msgspec
import orjson
from gevent.event import AsyncResult, Event

from gateway.audit.event import AuditEvent, build_event
from gateway.audit.spill import Spill, adopt_orphans, open_own
from gateway.context import RequestContext
from gateway.errors import AuditUnavailable, GatewayError
from gateway.store.audit import AuditStore
from gateway.store.pipeline import StatementFailed
from gateway.store.pool import Database

log = logging.getLogger("caregate.audit")

_BATCH = 500
_COLLECT_S = 0.03
"""How long events that nobody waits for may wait for company."""
_RETRY_S = 0.25
_ORPHAN_SCAN_S = 30.0
_WRITE_TIMEOUT_S = 2.0
_MAX_SPILL_BYTES = 256 * 2**20

Row = tuple[bytes, "AsyncResult[None] | None"]
"""An event as JSON, and who waits for it."""
Finished = tuple[RequestContext, int, float, int]
"""A request whose event is yet to be made: its context, status, when (s since 1970) and how long (us)."""


class AuditWriter:
    """One worker's audit trail.

    Holds: at most `queue` events in memory, the rest in a spill file of at most 256 MiB; `dropped` counts what fitted
    nowhere.
    """

    def __init__(
        self,
        database: Database,
        data_dir: Path,
        *,
        node: str = "",
        queue: int = 10_000,
        count: Callable[[str, int], None] = lambda outcome, number: None,
    ) -> None:
        """Shapes: `count(outcome, number)` hears of events: written, spilled, dropped, refused; `node` names us."""
        self._store = AuditStore(database)
        self._folder = data_dir
        self._node_json = orjson.dumps(node or f"{os.uname().nodename}/{os.getpid()}")
        self._queue = queue
        self._count = count
        self._encode = msgspec.json.Encoder().encode
        self._rows: deque[tuple[bytes | Finished, AsyncResult[None] | None]] = deque()
        self._news = Event()
        self._hurry = Event()
        self._spill: Spill | None = None
        self._orphans: list[Spill] = []
        self._orphan_scan_s = 0.0
        self._retry_s = 0.0
        self._greenlet: gevent.Greenlet[[], None] | None = None
        self._stopping = False
        self.dropped = 0

    def start(self) -> None:
        """Begin to write; what dead workers left behind is written too.

        Raises: OSError if the spill file cannot be made.
        """
        self._spill = open_own(self._folder, _MAX_SPILL_BYTES)
        self._greenlet = gevent.spawn(self._run)

    def record(self, event: AuditEvent, *, timeout_s: float = 2 * _WRITE_TIMEOUT_S) -> None:
        """Write an event and wait until it is durable. On an error the event is not kept: enqueue it if it happened.

        Raises: AuditUnavailable.
        Yields to the hub: until the database has it.
        """
        if self._stopping or self._greenlet is None:
            raise AuditUnavailable()
        done: AsyncResult[None] = AsyncResult()
        self._rows.append((self._encoded(event), done))
        self._news.set()
        self._hurry.set()
        try:
            done.get(timeout=timeout_s)
        except gevent.Timeout:
            raise AuditUnavailable() from None

    def enqueue(self, event: AuditEvent) -> None:
        """Hand over an event that is written soon; never waits for the database."""
        self._append(self._encoded(event))

    def enqueue_finished(self, ctx: RequestContext, status: int) -> None:
        """As enqueue, with the event of a request that nothing will change any more.

        PERF: `policy_rs256` of `make bench`, caregate-logged: made and encoded in batches, off the request's path.
        """
        now_ns = time.monotonic_ns()
        self._append((ctx, status, time.time(), max(0, now_ns - ctx.started_ns) // 1000))

    def _append(self, row: bytes | Finished) -> None:
        rows = self._rows
        rows.append((row, None))
        waiting = len(rows)
        if waiting == 1:
            self._news.set()
        elif waiting == _BATCH:
            self._hurry.set()
        if waiting > self._queue:
            self._overflow()

    @property
    def backlog(self) -> int:
        """Events in memory that are not written yet."""
        return len(self._rows)

    @property
    def spilled_bytes(self) -> int:
        """Bytes of events in files that are not written yet."""
        own = self._spill.pending_bytes if self._spill is not None else 0
        return own + sum(orphan.pending_bytes for orphan in self._orphans)

    def stop(self, timeout_s: float = 5.0) -> None:
        """Write what is waiting, or put it into the spill file; then end. Later events go nowhere."""
        self._stopping = True
        self._news.set()
        self._hurry.set()
        if self._greenlet is not None:
            self._greenlet.join(timeout=timeout_s)
            self._greenlet.kill()
            self._greenlet = None
        self._keep([row for row, _ in self._take(len(self._rows))])
        for spill in (self._spill, *self._orphans):
            if spill is not None:
                spill.close()
        self._spill = None
        self._orphans = []

    # --- the writing greenlet

    def _run(self) -> None:
        while True:
            self._news.clear()
            busy = bool(self._rows)
            if busy:
                self._collect()
                self._write_batch()
            elif self._stopping:
                return
            # Old events get their turn between the new ones.
            if self._ship_spilled() or busy:
                continue
            self._news.wait(timeout=_RETRY_S if self.spilled_bytes else _ORPHAN_SCAN_S)

    def _collect(self) -> None:
        """Let a small batch grow for a moment, unless somebody waits for it.

        PERF: `policy_rs256` of `make bench`, caregate-logged: a batch costs as much as encoding a hundred events.
        """
        if len(self._rows) < _BATCH and not self._stopping and all(done is None for _, done in self._rows):
            self._hurry.clear()
            self._hurry.wait(timeout=_COLLECT_S)

    def _take(self, count: int) -> list[Row]:
        """The oldest rows as JSON, removed from the queue."""
        taken = [self._rows.popleft() for _ in range(min(count, len(self._rows)))]
        return [(text, waiting) for row, waiting in taken if (text := self._json(row)) is not None]

    def _write_batch(self) -> None:
        batch = self._take(_BATCH)
        try:
            self._store.insert(_array([row for row, _ in batch]), _WRITE_TIMEOUT_S)
        except StatementFailed:
            self._write_singly(batch)
        except GatewayError:
            self._retry_s = time.monotonic() + _RETRY_S
            self._keep([row for row, waiting in batch if waiting is None])
            _tell(batch, AuditUnavailable())
        except BaseException:
            self._keep([row for row, waiting in batch if waiting is None])
            raise
        else:
            self._count("written", len(batch))
            _tell(batch)

    def _write_singly(self, batch: list[Row]) -> None:
        """One event that the database refuses must not hold up the others, nor be forgotten."""
        for row, waiting in batch:
            try:
                self._store.insert(_array([row]), _WRITE_TIMEOUT_S)
            except StatementFailed as failed:
                log.error("the database refused an audit event (SQLSTATE %s)", failed.sqlstate)
                self._set_aside(row)
                _tell([(row, waiting)], AuditUnavailable())
            except GatewayError:
                if waiting is None:
                    self._keep([row])
                _tell([(row, waiting)], AuditUnavailable())
            else:
                self._count("written", 1)
                _tell([(row, waiting)])

    def _ship_spilled(self) -> bool:
        """Write a chunk of spilled events; False if there is nothing to do now."""
        now_s = time.monotonic()
        if now_s < self._retry_s:
            return False
        if now_s >= self._orphan_scan_s:
            self._orphan_scan_s = now_s + _ORPHAN_SCAN_S
            self._orphans += adopt_orphans(self._folder)
        for spill in [*self._orphans, self._spill]:
            if spill is not None and spill.pending_bytes:
                return self._ship(spill)
        for orphan in self._orphans:
            orphan.close()
        self._orphans = []
        return False

    def _ship(self, spill: Spill) -> bool:
        rows, position = spill.next_rows(_BATCH)
        whole = [row for row in rows if _is_row(row)]
        try:
            if whole:
                self._store.insert(_array(whole), _WRITE_TIMEOUT_S)
        except StatementFailed:
            self._write_singly([(row, None) for row in whole])
        except GatewayError:
            self._retry_s = time.monotonic() + _RETRY_S
            return False
        else:
            self._count("written", len(whole))
        spill.shipped(position)
        return True

    # --- where events wait

    def _overflow(self) -> None:
        """Move the older events that nobody waits for into the spill file."""
        rows = self._take(len(self._rows))
        self._rows.extend(row for row in rows if row[1] is not None)
        self._keep([row for row, waiting in rows if waiting is None])

    def _keep(self, rows: list[bytes]) -> None:
        if not rows:
            return
        kept = self._spill.append(rows) if self._spill is not None else 0
        self._count("spilled", kept)
        if kept < len(rows):
            self.dropped += len(rows) - kept
            self._count("dropped", len(rows) - kept)
            log.error("audit events lost: %d, no room in the spill file", len(rows) - kept)

    def _set_aside(self, row: bytes) -> None:
        self._count("refused", 1)
        path = self._folder / "audit-refused.ndjson"
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "ab") as file:
            file.write(row + b"\n")

    def _encoded(self, event: AuditEvent) -> bytes:
        duration_us = max(0, time.monotonic_ns() - event.started_ns) // 1000
        return self._stamped(event, time.time(), duration_us)

    def _stamped(self, event: AuditEvent, occurred_s: float, duration_us: int) -> bytes:
        stamps = (occurred_s, duration_us, self._node_json, self._encode(event)[1:])
        return b'{"occurred_at":%.6f,"duration_us":%d,"node":%s,%s' % stamps

    def _json(self, row: bytes | Finished) -> bytes | None:
        """None, counted and logged, for an event that cannot be made: it must not end the greenlet."""
        if isinstance(row, bytes):
            return row
        ctx, status, occurred_s, duration_us = row
        try:
            return self._stamped(build_event(ctx, status), occurred_s, duration_us)
        except Exception:
            log.exception("an audit event could not be made")
            self._count("refused", 1)
            return None


def _array(rows: list[bytes]) -> bytes:
    return b"[" + b",".join(rows) + b"]"


def _is_row(line: bytes) -> bool:
    """A line torn by a killed worker or a full disk is no row."""
    try:
        return isinstance(orjson.loads(line), dict)
    except orjson.JSONDecodeError:
        return False


def _tell(batch: list[Row], error: GatewayError | None = None) -> None:
    for _, waiting in batch:
        if waiting is None:
            continue
        if error is None:
            waiting.set(None)
        else:
            waiting.set_exception(error)

"""A connection as the hot path uses it: libpq's pipeline mode, one round trip a call, waits on the gevent hub.

PERF: psycopg's own cursors cost about 200 µs a call on this path, `psycopg.pq` on the same connections about 30
(portal row of `make bench`).
"""

from __future__ import annotations

import contextlib
import select
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import gevent
import psycopg
from gevent import getcurrent, monkey
from psycopg import pq

from gateway.http1.deadlines import NEVER
from gateway.store.pace import Pace
from gateway.wheel import deadlines_here

_READ, _WRITE = 1, 2
# PERF: `portal_read` of `make bench`: plain numbers, an enumeration's members compare slower.
COMMAND_OK = int(pq.ExecStatus.COMMAND_OK)
TUPLES_OK = int(pq.ExecStatus.TUPLES_OK)
PIPELINE_SYNC = int(pq.ExecStatus.PIPELINE_SYNC)
PIPELINE_ABORTED = int(pq.ExecStatus.PIPELINE_ABORTED)
_poll = monkey.get_original("select", "poll")
_SQLSTATE = pq.DiagnosticField.SQLSTATE
_CONNECTION_OK = pq.ConnStatus.OK
_LOST_CLASSES = (b"57P", b"08")
"""SQLSTATEs with which the server ends the connection itself."""
_AGAIN = frozenset({"40001", "40P01"})
"""Serialization failure, deadlock: rolled back, and likely to pass the second time."""
_UNPREPARED = frozenset({"26000", "0A000"})
"""A prepared statement that the server forgot, or whose result changed its type: another connection prepares it."""


@dataclass(frozen=True, slots=True)
class Statement:
    """A statement, prepared on each connection at its first use. `name` is unique for its `sql`.

    Shapes: with `claims` its first parameter is the caller's claims, and it sets them before anything reads them; with
    `pace` it changes nothing, so it may be asked twice.
    """

    name: bytes
    sql: bytes
    claims: bool = False
    pace: Pace | None = field(default=None, compare=False)


Step = tuple[Statement, Sequence[bytes | None]]
SET_TIMEOUT = Statement(b"caregate_set_timeout", b"SELECT set_config('statement_timeout', $1, false)")
_RESET_TIMEOUT = Statement(b"caregate_reset_timeout", b"RESET statement_timeout")
UNKNOWN = -1
_LEAVE_NS = 500_000_000
"""How long a server may take to reset a connection that goes back to the pool."""


class PooledConnection(psycopg.Connection[Any]):
    """A connection of the pool; it remembers what is prepared on it from one lease to the next."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.prepared_names: set[bytes] = set()


class StatementFailed(Exception):
    """The server refused a step; the transaction is rolled back and the connection is as good as before."""

    def __init__(self, sqlstate: str) -> None:
        super().__init__(sqlstate)
        self.sqlstate = sqlstate

    @property
    def again(self) -> bool:
        """Would it be likely to pass a second time, on another connection?"""
        return self.sqlstate in _AGAIN or self.unprepared

    @property
    def unprepared(self) -> bool:
        """Is the connection's prepared statement of no use any more?"""
        return self.sqlstate in _UNPREPARED


class ConnectionLost(Exception):
    """The connection is gone. `executed`: may the steps have run, and even been committed?"""

    def __init__(self, *, executed: bool) -> None:
        super().__init__()
        self.executed = executed


class Expired(Exception):
    """The server gave no answer in time, not even that the statement took too long. Units: nanoseconds."""

    def __init__(self, waited_ns: int = 0) -> None:
        super().__init__()
        self.waited_ns = waited_ns


class Attendant(Protocol):
    """What has a connection in its hands while no greenlet waits for it."""

    def read(self) -> None:
        """There is something to read."""

    def late(self) -> None:
        """The deadline has passed."""


class Pipeline:
    """One leased connection. After ConnectionLost, Expired or a foreign exception `broken` is set: discard it.

    PERF: `portal_read` of `make bench`: the read watcher stays armed from call to call, the deadline sits in the hub's
    wheel, and whether the server hung up is asked with poll(2), where libpq would receive.
    NOTE: belongs to the thread, and so to the hub, that made it.
    Units: `deadline_ns` monotonic nanoseconds.
    """

    __slots__ = (
        "_armed", "_both", "_convoy", "_deadlines", "_greenlet", "_hub", "_look", "_pg", "_readable", "_waiting",
        "broken", "connection", "deadline_ns", "leased_ns", "prepared", "slot", "timeout_ms",
    )  # fmt: skip

    def __init__(self, connection: PooledConnection) -> None:
        """Holds: the connection in pipeline mode until `leave`."""
        self.connection = connection
        self.leased_ns = time.monotonic_ns()
        self.broken = False
        self._pg = pg = connection.pgconn
        pg.nonblocking = 1
        pg.enter_pipeline_mode()
        self.prepared = connection.prepared_names
        self._hub = hub = gevent.get_hub()
        self._deadlines = deadlines_here()
        self._readable = hub.loop.io(pg.socket, _READ)
        self._both = hub.loop.io(pg.socket, _READ | _WRITE)
        poll = _poll()
        poll.register(pg.socket, select.POLLIN)
        self._look = poll.poll
        self._greenlet: Any = None
        self._convoy: Attendant | None = None
        self._armed = False
        self._waiting = False
        self.timeout_ms = 0
        self.deadline_ns = 0
        self.slot = NEVER

    def leave(self) -> None:
        """Give the connection back its ordinary mode, or close it if it is broken.

        Yields to the hub: if the statement timeout is not the connection's own.
        """
        if self.timeout_ms and not self.broken:
            self._reset_timeout()
        self._deadlines.forget(self)
        self._greenlet = None
        self._readable.close()
        self._both.close()
        if not self.broken:
            try:
                self._pg.exit_pipeline_mode()
                return
            except psycopg.Error:
                pass
        self.connection.close()

    def _reset_timeout(self) -> None:
        try:
            self.run((), time.monotonic_ns() + _LEAVE_NS)
        except (StatementFailed, ConnectionLost, Expired):
            self.broken = True

    def alive(self) -> bool:
        """Has the server kept the connection open while nobody used it?"""
        if not self._look(0):
            return True
        try:
            self._pg.consume_input()
        except psycopg.Error:
            self.broken = True
        return not self.broken and self._pg.status == _CONNECTION_OK

    def run(self, steps: Sequence[Step], deadline_ns: int, timeout_ms: int = 0) -> bytes | None:
        """Run the steps in one round trip and one transaction; the last one's first value, in text form.

        PERF: `portal_read` of `make bench`: the connection keeps its statement timeout until another is wanted.
        Units: `timeout_ms` is the server's statement timeout, 0: the connection's own.
        Raises: StatementFailed, ConnectionLost, Expired.
        Yields to the hub: until the server answered.
        """
        self._deadlines.arm(self, deadline_ns)
        self._greenlet = getcurrent()
        answered = False
        failed = ""
        value: bytes | None = None
        if timeout_ms != self.timeout_ms:
            # NOTE: a failure takes the change back with the transaction, to what nobody remembers.
            steps = (timeout_step(timeout_ms), *steps)
            self.timeout_ms = UNKNOWN
        try:
            for preparing in self._send(steps):
                result = self._result()
                status = result.status
                if status in (TUPLES_OK, COMMAND_OK):
                    if preparing is not None:
                        self.prepared.add(preparing)
                    elif status == TUPLES_OK:
                        value = result.get_value(0, 0) if result.ntuples else None
                elif status != PIPELINE_ABORTED and not failed:
                    failed = failure_of(result, executed=answered)
                answered = True
                self._end_of_step()
            if self._result().status != PIPELINE_SYNC:
                raise ConnectionLost(executed=True)
        except psycopg.Error:
            self.broken = True
            raise ConnectionLost(executed=True) from None
        except BaseException:
            # SEC: a greenlet killed in the middle leaves answers behind that the next caller would take for his own.
            self.broken = True
            raise
        if failed:
            raise StatementFailed(failed)
        self.timeout_ms = timeout_ms
        return value

    def _send(self, steps: Sequence[Step]) -> list[bytes | None]:
        """Send the steps; one entry for each answer to come: the name it prepares, or None."""
        pg, prepared = self._pg, self.prepared
        expected: list[bytes | None] = []
        for statement, values in steps:
            name = statement.name
            if name not in prepared and name not in expected:
                pg.send_prepare(name, statement.sql)
                expected.append(name)
            pg.send_query_prepared(name, values)
            expected.append(None)
        pg.pipeline_sync()
        if pg.flush():
            self._flush()
        return expected

    def _flush(self) -> None:
        """Reading too, or a server whose answer nobody takes would never read on."""
        if self._armed:
            self._armed = False
            self._readable.stop()
        pg = self._pg
        while pg.flush():
            self._both.start(self._wake)
            try:
                self._pause()
            finally:
                self._both.stop()
            pg.consume_input()

    def _result(self) -> Any:
        pg = self._pg
        while pg.is_busy():
            self._wait()
            pg.consume_input()
        result = pg.get_result()
        if result is None:
            raise ConnectionLost(executed=True)
        return result

    def _end_of_step(self) -> None:
        pg = self._pg
        while pg.is_busy():
            self._wait()
            pg.consume_input()
        if pg.get_result() is not None:
            raise ConnectionLost(executed=True)

    def _wait(self) -> None:
        """Until there are bytes to read. Raises: Expired."""
        if not self._armed:
            self._armed = True
            self._readable.start(self._wake)
        self._pause()

    def _pause(self) -> None:
        if not self.deadline_ns:
            raise Expired
        self._waiting = True
        try:
            self._hub.switch()
        finally:
            self._waiting = False

    def _wake(self) -> None:
        """Called from the hub. Bytes that nobody waits for stop the watcher until somebody does."""
        if self._waiting:
            self._greenlet.switch()
        elif self._convoy is not None:
            self._convoy.read()
        elif self._armed:
            self._armed = False
            self._readable.stop()

    def expire(self) -> None:
        """Called from the hub when the deadline has passed; `deadline_ns` is then 0."""
        if self._waiting:
            self._greenlet.throw(Expired)
        elif self._convoy is not None:
            self._convoy.late()

    # --- in a convoy's hands, which runs in the hub

    def attend(self, convoy: Attendant, deadline_ns: int) -> None:
        """Let a convoy have what was sent and what comes, and the deadline.

        Raises: psycopg.Error if the server hung up.
        """
        self._convoy = convoy
        self._deadlines.arm(self, deadline_ns)
        if not self._armed:
            self._armed = True
            self._readable.start(self._wake)
        if self._pg.flush():
            self._both.start(self._push)

    def postpone(self, deadline_ns: int) -> None:
        """Another deadline for the convoy."""
        self._deadlines.arm(self, deadline_ns)

    def release(self) -> None:
        """The convoy has ended."""
        self._convoy = None
        self._both.stop()

    def _push(self) -> None:
        """Called from the hub when the server reads on, or has something to say before it does."""
        convoy = self._convoy
        if convoy is None:
            self._both.stop()
            return
        with contextlib.suppress(psycopg.Error):
            # A server that hung up says so to whoever reads.
            if not self._pg.flush():
                self._both.stop()
        convoy.read()


def failure_of(result: Any, *, executed: bool) -> str:
    """The SQLSTATE of a refused step.

    Raises: ConnectionLost if the server is leaving: no step began, unless one is known to be `executed`.
    """
    sqlstate: bytes | None = result.error_field(_SQLSTATE)
    if sqlstate is None or sqlstate.startswith(_LOST_CLASSES):
        raise ConnectionLost(executed=executed or sqlstate is None)
    return sqlstate.decode("ascii", "replace")


def timeout_step(timeout_ms: int) -> Step:
    return (SET_TIMEOUT, (b"%d" % timeout_ms,)) if timeout_ms else (_RESET_TIMEOUT, ())

"""A connection as the hot path uses it: libpq's pipeline mode, one round trip a call, waits on the gevent hub.

PERF: psycopg's own cursors cost about 200 µs a call on this path, `psycopg.pq` on the same connections about 30
(portal row of `make bench`).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gevent
import psycopg
from gevent import getcurrent
from psycopg import pq

_READ, _WRITE = 1, 2
_EXPIRED = object()
_COMMAND_OK = pq.ExecStatus.COMMAND_OK
_TUPLES_OK = pq.ExecStatus.TUPLES_OK
_PIPELINE_SYNC = pq.ExecStatus.PIPELINE_SYNC
_PIPELINE_ABORTED = pq.ExecStatus.PIPELINE_ABORTED
_SQLSTATE = pq.DiagnosticField.SQLSTATE
_CONNECTION_OK = pq.ConnStatus.OK
_LOST_CLASSES = (b"57P", b"08")
"""SQLSTATEs with which the server ends the connection itself."""


@dataclass(frozen=True, slots=True)
class Statement:
    """A statement, prepared on each connection at its first use. `name` is unique for its `sql`."""

    name: bytes
    sql: bytes


Step = tuple[Statement, Sequence[bytes | None]]


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


class ConnectionLost(Exception):
    """The connection is gone. `executed`: may the steps have run, and even been committed?"""

    def __init__(self, *, executed: bool) -> None:
        super().__init__()
        self.executed = executed


class Expired(Exception):
    """The server gave no answer in time, not even that the statement took too long."""


class Pipeline:
    """One leased connection. After ConnectionLost, Expired or a foreign exception `broken` is set: discard it.

    NOTE: belongs to the thread, and so to the hub, that made it.
    """

    __slots__ = ("_both", "_hub", "_pg", "_prepared", "_readable", "broken", "connection", "leased_s")

    def __init__(self, connection: PooledConnection) -> None:
        """Holds: the connection in pipeline mode until `leave`."""
        self.connection = connection
        self.leased_s = time.monotonic()
        self.broken = False
        self._pg = pg = connection.pgconn
        pg.nonblocking = 1
        pg.enter_pipeline_mode()
        self._prepared = connection.prepared_names
        self._hub = hub = gevent.get_hub()
        self._readable = hub.loop.io(pg.socket, _READ)
        self._both = hub.loop.io(pg.socket, _READ | _WRITE)

    def leave(self) -> None:
        """Give the connection back its ordinary mode, or close it if it is broken."""
        self._readable.close()
        self._both.close()
        if not self.broken:
            try:
                self._pg.exit_pipeline_mode()
                return
            except psycopg.Error:
                pass
        self.connection.close()

    def alive(self) -> bool:
        """Has the server kept the connection open while nobody used it?"""
        try:
            self._pg.consume_input()
        except psycopg.Error:
            self.broken = True
        return not self.broken and self._pg.status == _CONNECTION_OK

    def run(self, steps: Sequence[Step], timeout_s: float) -> bytes | None:
        """Run the steps in one round trip and one transaction; the last one's first value, in text form.

        Raises: StatementFailed, ConnectionLost, Expired.
        Yields to the hub: until the server answered.
        """
        deadline_s = time.monotonic() + timeout_s
        answered = False
        try:
            expected = self._send(steps)
            self._flush(deadline_s)
            value: bytes | None = None
            failed = ""
            for preparing in expected:
                result = self._result(deadline_s)
                status = result.status
                if status in (_TUPLES_OK, _COMMAND_OK):
                    if preparing is not None:
                        self._prepared.add(preparing)
                    elif status == _TUPLES_OK:
                        value = result.get_value(0, 0) if result.ntuples else None
                elif status != _PIPELINE_ABORTED and not failed:
                    failed = self._failure(result, executed=answered)
                answered = True
                self._end_of_step(deadline_s)
            if self._result(deadline_s).status != _PIPELINE_SYNC:
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
        return value

    def _send(self, steps: Sequence[Step]) -> list[bytes | None]:
        """Queue the steps; one entry for each answer to come: the name it prepares, or None."""
        pg, prepared = self._pg, self._prepared
        expected: list[bytes | None] = []
        for statement, values in steps:
            if statement.name not in prepared and statement.name not in expected:
                pg.send_prepare(statement.name, statement.sql)
                expected.append(statement.name)
            pg.send_query_prepared(statement.name, values)
            expected.append(None)
        pg.pipeline_sync()
        return expected

    def _failure(self, result: Any, *, executed: bool) -> str:
        sqlstate: bytes | None = result.error_field(_SQLSTATE)
        if sqlstate is None or sqlstate.startswith(_LOST_CLASSES):
            # The very first answer says that the server is leaving: no step began.
            raise ConnectionLost(executed=executed or sqlstate is None)
        return sqlstate.decode("ascii", "replace")

    def _flush(self, deadline_s: float) -> None:
        while self._pg.flush():
            # Reading too, or a server whose answer nobody takes would never read on.
            self._wait(self._both, deadline_s)
            self._pg.consume_input()

    def _result(self, deadline_s: float) -> Any:
        pg = self._pg
        while pg.is_busy():
            self._wait(self._readable, deadline_s)
            pg.consume_input()
        result = pg.get_result()
        if result is None:
            raise ConnectionLost(executed=True)
        return result

    def _end_of_step(self, deadline_s: float) -> None:
        pg = self._pg
        while pg.is_busy():
            self._wait(self._readable, deadline_s)
            pg.consume_input()
        if pg.get_result() is not None:
            raise ConnectionLost(executed=True)

    def _wait(self, watcher: Any, deadline_s: float) -> None:
        """PERF: the watcher lives as long as the connection, and the timer is the loop's own: no Timeout, no Waiter."""
        patience_s = deadline_s - time.monotonic()
        if patience_s <= 0:
            raise Expired
        switch = getcurrent().switch
        timer = self._hub.loop.timer(patience_s)
        watcher.start(switch, None)
        timer.start(switch, _EXPIRED)
        try:
            if self._hub.switch() is _EXPIRED:
                raise Expired
        finally:
            watcher.stop()
            timer.close()

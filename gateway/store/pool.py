"""The gateway's way to PostgreSQL: a pool that owns the connections, lanes that use them, deadlines on everything.

psycopg-pool opens, checks, ages and replaces connections. A lane leases some of them for the hot path and keeps each
for a minute, so a call costs one round trip. When the server does not answer, the circuit opens: callers are refused
at once and one greenlet asks until it is back.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import gevent
import psycopg
import psycopg.waiting
from gevent import monkey
from psycopg_pool import ConnectionPool, PoolTimeout

from gateway.errors import DatabaseInterrupted, DatabaseTimeout, DatabaseUnavailable
from gateway.store.convoy import Instead
from gateway.store.departures import Departures
from gateway.store.pace import Pace
from gateway.store.pipeline import (
    ConnectionLost,
    Expired,
    Pipeline,
    PooledConnection,
    Statement,
    StatementFailed,
    Step,
)
from gateway.turns import Turns

log = logging.getLogger("caregate.database")

_LEASE_NS = 60_000_000_000
"""A lane gives a connection back after so long, so that the pool can check, age and replace it."""
_PROBE_INTERVAL_S = 0.1
_PROBE_TIMEOUT_S = 0.5
_LEASE_TICK_S = 0.05
_PATIENCE_NS = 1_000_000_000
"""A server that is silent for so long does not answer; a caller with less time may only have been unlucky."""
_ORDINARY_CONNECTIONS = 2
"""Room in the pool for `connection()`: catalog, configuration, administration."""
_ORDINARY_TIMEOUT_S = 10.0
_ACTIVE = psycopg.pq.TransactionStatus.ACTIVE
_NO_ANSWER_MARGIN_MS = 100
_MS_NS = 1_000_000
SET_CLAIMS = Statement(b"caregate_set_claims", b"SELECT set_config('caregate.claims', $1, true)")
PING = Statement(b"caregate_ping", b"SELECT 1")


class Database:
    """All connections of one worker to one database.

    Make it after gevent has patched the process, once a worker. `open` returns at once: a database that is away is
    found out by whoever needs it.
    """

    def __init__(
        self,
        dsn: str,
        *,
        pool_min: int = 1,
        pool_max: int = 16,
        statement_timeout_ms: int = 5_000,
        connect_timeout_ms: int = 1_000,
        name: str = "portal",
    ) -> None:
        """Units: milliseconds; `statement_timeout_ms` is the longest a call may take, `pool_max` counts calls."""
        _refuse_blocking_waits()
        self.statement_timeout_ms = statement_timeout_ms
        self._connect_timeout_s = connect_timeout_ms / 1000
        self._refusals = 0
        self._lanes: list[Lane] = []
        self._prober: gevent.Greenlet[[], None] | None = None
        self._away = False
        self._closed = False
        self._pool: ConnectionPool[PooledConnection] = ConnectionPool(
            dsn,
            connection_class=PooledConnection,
            kwargs={
                "autocommit": True,
                "connect_timeout": max(2, round(self._connect_timeout_s)),
                "keepalives_idle": 30,
                "keepalives_interval": 10,
                "keepalives_count": 3,
                "application_name": "caregate",
            },
            min_size=pool_min,
            max_size=pool_max + _ORDINARY_CONNECTIONS,
            timeout=self._connect_timeout_s,
            # One attempt, no back-off of minutes: whoever needs a connection, or the prober, asks again.
            reconnect_timeout=0.001,
            reconnect_failed=self._note_refusal,
            check=_check,
            name=name,
            open=False,
        )
        self._calls = self.lane(pool_max)

    def lane(self, limit: int, *, reserve: bool = False) -> Lane:
        """Up to `limit` connections for one purpose; with `reserve` the pool grows by as many, so others take none."""
        if reserve:
            self.reserve(limit)
        lane = Lane(self, limit)
        self._lanes.append(lane)
        return lane

    def reserve(self, connections: int) -> None:
        """Let the pool grow by so many connections, for a purpose that shall take none from the others."""
        self._pool.resize(self._pool.min_size, self._pool.max_size + connections)

    def open(self) -> None:
        """Begin to connect, in the background."""
        self._pool.open(wait=False)

    def close(self) -> None:
        """Close every connection that is not in use; calls under way end with their connection."""
        self._closed = True
        for lane in self._lanes:
            lane.drop()
        self._pool.close(timeout=2.0)

    @property
    def available(self) -> bool:
        """False while the server is known not to answer."""
        return not self._away

    def call(
        self, statement: Statement, values: Sequence[bytes | None], claims: bytes, *, deadline_ns: int = 0
    ) -> bytes | None:
        """Run a statement with the caller's claims set, in one transaction; its first value as text, None for NULL.

        Shapes: `claims` is a JSON object. Units: `deadline_ns` monotonic nanoseconds, 0: only the statement timeout.
        Raises: StatementFailed, DatabaseTimeout, DatabaseUnavailable, DatabaseInterrupted.
        Yields to the hub: until the database answered.
        """
        return self._calls.call(statement, values, claims, deadline_ns=deadline_ns)

    @contextmanager
    def connection(self, timeout_s: float | None = _ORDINARY_TIMEOUT_S) -> Iterator[psycopg.Connection[Any]]:
        """An ordinary psycopg connection in autocommit, for what is not a hot path.

        Units: `timeout_s` for everything done with it, None: no end. It holds where gevent has patched the process.
        Raises: DatabaseUnavailable, DatabaseTimeout.
        """
        connection = self.take()
        limit = gevent.Timeout(timeout_s)
        limit.start()
        try:
            yield connection
        except psycopg.OperationalError as error:
            raise DatabaseUnavailable(retry_after_s=1) from error
        except gevent.Timeout as expired:
            connection.close()
            if expired is not limit:
                raise
            raise DatabaseTimeout("The database did not answer in time") from None
        except BaseException:
            if connection.pgconn.transaction_status == _ACTIVE:
                connection.close()
            raise
        finally:
            limit.close()
            self._pool.putconn(connection)

    def take(self, deadline_s: float = 0.0) -> PooledConnection:
        """A checked connection from the pool.

        Units: `deadline_s` monotonic seconds, 0: as long as connecting may take.
        Raises: DatabaseUnavailable, soon after an attempt to connect was refused.
        """
        self.refuse_if_away()
        refusals = self._refusals
        give_up_s = time.monotonic() + self._connect_timeout_s
        patient = not deadline_s or give_up_s <= deadline_s
        end_s = give_up_s if patient else deadline_s
        while self._refusals == refusals and (left_s := end_s - time.monotonic()) > 0:
            try:
                return self._pool.getconn(timeout=min(left_s, _LEASE_TICK_S))
            except PoolTimeout:
                continue
            except psycopg.Error:
                break
        self.note_silence(certain=patient or self._refusals != refusals)
        raise DatabaseUnavailable(retry_after_s=1)

    def give_back(self, connection: PooledConnection) -> None:
        """Return what `take` gave, closed or not."""
        self._pool.putconn(connection)

    def refuse_if_away(self) -> None:
        """Raises: DatabaseUnavailable while the circuit is open, to everybody but the prober."""
        if self._away and gevent.getcurrent() is not self._prober:
            raise DatabaseUnavailable(retry_after_s=1)

    def note_silence(self, *, certain: bool) -> None:
        """The server did not answer: open the circuit, at once if that is certain, else if the prober finds so too."""
        if self._closed:
            return
        if certain:
            self._open_circuit()
        if self._prober is None:
            self._prober = gevent.spawn(self._probe)

    def stats(self) -> dict[str, int]:
        """Figures of the pool, for /status."""
        return {**self._pool.get_stats(), "available": int(self.available)}

    def _open_circuit(self) -> None:
        if self._away:
            return
        log.warning("database does not answer")
        self._away = True
        for lane in self._lanes:
            lane.drop()

    def _probe(self) -> None:
        """Ask until the server answers; callers are let through again with the first answer."""
        while not self._closed:
            try:
                self._calls.ping(_PROBE_TIMEOUT_S)
            except (DatabaseUnavailable, DatabaseTimeout, StatementFailed):
                self._open_circuit()
                gevent.sleep(_PROBE_INTERVAL_S)
                continue
            if self._away:
                log.warning("database answers again")
            break
        self._away = False
        self._prober = None

    def _note_refusal(self, pool: object) -> None:
        self._refusals += 1


def _coarse(timeout_ms: int) -> int:
    """A little less, in steps of a thirty-second to a sixteenth: calls with about as much time share a setting."""
    step = 1 << max(0, timeout_ms.bit_length() - 5)
    return timeout_ms - timeout_ms % step


class Lane:
    """Connections leased for one purpose; at most `limit` calls run at once, the others wait their turn."""

    def __init__(self, database: Database, limit: int) -> None:
        self._database = database
        self._free: list[Pipeline] = []
        self._turns = Turns(limit)
        self._departures = Departures(self._turns, self._idle, self._put_back)

    def call(
        self, statement: Statement, values: Sequence[bytes | None], claims: bytes, *, deadline_ns: int = 0
    ) -> bytes | None:
        """As Database.call."""
        now_ns = time.monotonic_ns()
        budget_ms, server_ms = self._budget(now_ns, deadline_ns)
        pace = statement.pace
        turn = False
        if pace is not None and pace.quick and budget_ms > _NO_ANSWER_MARGIN_MS:
            deadline_ns = now_ns + budget_ms * _MS_NS
            outcome = self._call_with_others(statement, pace, (claims, *values), deadline_ns, server_ms)
            if not isinstance(outcome, Instead):
                return outcome
            turn = outcome.turn
            now_ns = time.monotonic_ns()
            budget_ms, server_ms = self._budget(now_ns, deadline_ns, turn=turn)
        steps: tuple[Step, ...]
        steps = (
            ((statement, (claims, *values)),) if statement.claims else ((SET_CLAIMS, (claims,)), (statement, values))
        )
        return self._run(steps, now_ns, now_ns + budget_ms * _MS_NS, server_ms, turn=turn)

    def _call_with_others(
        self, statement: Statement, pace: Pace, values: Sequence[bytes | None], deadline_ns: int, server_ms: int
    ) -> bytes | Instead | None:
        """In a convoy, which may say that the caller has to ask alone."""
        self._database.refuse_if_away()
        try:
            return self._departures.ask(statement, pace, values, deadline_ns, server_ms)
        except Expired as expired:
            self._database.note_silence(certain=expired.waited_ns >= _PATIENCE_NS)
            raise DatabaseTimeout("The database did not answer in time") from None
        except ConnectionLost:
            raise DatabaseInterrupted(retry_after_s=1) from None

    def _budget(self, now_ns: int, deadline_ns: int, *, turn: bool = False) -> tuple[int, int]:
        """How long a call may take, and the server over it; without any time left a `turn` goes back.

        The server gives up a little before we do, so that its refusal arrives and the connection can stay.
        Raises: DatabaseTimeout if no time is left. Units: milliseconds.
        """
        budget_ms = self._database.statement_timeout_ms
        if deadline_ns and deadline_ns - now_ns < budget_ms * _MS_NS:
            budget_ms = (deadline_ns - now_ns) // _MS_NS
            if budget_ms <= 0:
                if turn:
                    self._turns.give_back()
                raise DatabaseTimeout("No time was left to ask the database")
        return budget_ms, _coarse(max(1, budget_ms - min(_NO_ANSWER_MARGIN_MS, budget_ms // 5)))

    def execute(self, statement: Statement, values: Sequence[bytes | None], *, timeout_s: float) -> bytes | None:
        """Run a statement without claims, in a transaction of its own.

        Raises: as Database.call.
        Yields to the hub: until the database answered.
        """
        now_ns = time.monotonic_ns()
        return self._run(((statement, values),), now_ns, now_ns + int(timeout_s * 1e9))

    def ping(self, timeout_s: float) -> None:
        """Raises: DatabaseUnavailable, DatabaseTimeout."""
        self.execute(PING, (), timeout_s=timeout_s)

    def give_back(self) -> None:
        """Return the connections that wait for work to the pool."""
        while self._free:
            self._return(self._free.pop())

    def drop(self) -> None:
        """Close the connections that wait for work."""
        while self._free:
            self._discard(self._free.pop())

    def _run(
        self, steps: Sequence[Step], now_ns: int, deadline_ns: int, server_ms: int = 0, *, turn: bool = False
    ) -> bytes | None:
        """`turn`: the caller has one already."""
        turns = self._turns
        if not turn:
            self._database.refuse_if_away()
            if turns.free:
                turns.free -= 1
            elif turns.wait(deadline_ns):
                now_ns = time.monotonic_ns()
            else:
                raise DatabaseUnavailable("No database connection came free in time", retry_after_s=1)
        try:
            try:
                return self._use(self._lease(now_ns, deadline_ns), steps, now_ns, deadline_ns, server_ms)
            except ConnectionLost as lost:
                if lost.executed:
                    raise DatabaseInterrupted(retry_after_s=1) from None
            except StatementFailed as failed:
                if not failed.again:
                    raise
            # Nothing of it happened: once more.
            return self._use_finally(steps, deadline_ns, server_ms)
        finally:
            turns.give_back()

    def _use_finally(self, steps: Sequence[Step], deadline_ns: int, server_ms: int) -> bytes | None:
        now_ns = time.monotonic_ns()
        try:
            return self._use(self._lease(now_ns, deadline_ns), steps, now_ns, deadline_ns, server_ms)
        except ConnectionLost as lost:
            if lost.executed:
                raise DatabaseInterrupted(retry_after_s=1) from None
            raise DatabaseUnavailable(retry_after_s=1) from None

    def _use(
        self, pipeline: Pipeline, steps: Sequence[Step], now_ns: int, deadline_ns: int, server_ms: int
    ) -> bytes | None:
        pace = steps[-1][0].pace if steps else None
        try:
            if pace is None:
                return pipeline.run(steps, deadline_ns, server_ms)
            began_ns = time.monotonic_ns()
            try:
                return pipeline.run(steps, deadline_ns, server_ms)
            finally:
                pace.note(time.monotonic_ns() - began_ns)
        except Expired:
            self._database.note_silence(certain=deadline_ns - now_ns >= _PATIENCE_NS)
            raise DatabaseTimeout("The database did not answer in time") from None
        except StatementFailed as failed:
            pipeline.broken = failed.unprepared
            raise
        finally:
            if pipeline.broken:
                self._discard(pipeline)
            else:
                self._free.append(pipeline)

    def _lease(self, now_ns: int, deadline_ns: int) -> Pipeline:
        """A connection that is open as far as one can know without asking the server."""
        while self._free:
            pipeline = self._free.pop()
            if now_ns - pipeline.leased_ns > _LEASE_NS:
                self._return(pipeline)
            elif pipeline.alive():
                return pipeline
            else:
                self._discard(pipeline)
        return Pipeline(self._database.take(deadline_ns / 1e9))

    def _idle(self, now_ns: int) -> Pipeline | None:
        """As _lease, for the hub, which must not wait: whoever finds nothing open has to."""
        while self._free:
            pipeline = self._free.pop()
            if now_ns - pipeline.leased_ns > _LEASE_NS:
                gevent.spawn(self._return, pipeline)
            elif pipeline.alive():
                return pipeline
            else:
                gevent.spawn(self._discard, pipeline)
        return None

    def _put_back(self, pipeline: Pipeline) -> None:
        """A convoy has ended; called from the hub."""
        if pipeline.broken:
            gevent.spawn(self._discard, pipeline)
        else:
            self._free.append(pipeline)

    def _return(self, pipeline: Pipeline) -> None:
        pipeline.leave()
        self._database.give_back(pipeline.connection)

    def _discard(self, pipeline: Pipeline) -> None:
        pipeline.broken = True
        self._return(pipeline)


class _Seldom(logging.Filter):
    """Lets a message of one kind through every ten seconds: the pool says the same at every attempt."""

    def __init__(self) -> None:
        super().__init__()
        self._next_s: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        now_s = time.monotonic()
        if now_s < self._next_s.get(record.msg, 0.0):
            return False
        self._next_s[record.msg] = now_s + 10.0
        return True


logging.getLogger("psycopg.pool").addFilter(_Seldom())


def _check(connection: PooledConnection) -> None:
    """Before the pool hands a connection out: one round trip, with a deadline that a frozen server cannot stretch.

    Raises: psycopg.OperationalError; the connection is then closed.
    """
    pipeline = Pipeline(connection)
    try:
        pipeline.run(((PING, ()),), time.monotonic_ns() + int(_PROBE_TIMEOUT_S * 1e9))
    except (ConnectionLost, Expired, StatementFailed) as error:
        pipeline.broken = True
        raise psycopg.OperationalError("the server does not answer") from error
    finally:
        pipeline.leave()


def _refuse_blocking_waits() -> None:
    """Raises: RuntimeError if psycopg would stop the whole worker while it waits."""
    if monkey.is_module_patched("select") and psycopg.waiting.wait is getattr(psycopg.waiting, "wait_c", None):
        raise RuntimeError("psycopg was imported before gevent patched the process: its waits would block")

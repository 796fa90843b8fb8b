"""Quick reads of several callers on one connection, one behind the other: a convoy.

Each call has a transaction of its own, read-only, and its own claims in it. Whoever cannot be answered so, because a
call in front of him failed or held the others up, asks again, alone: nobody ever sees another's answer or error.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import psycopg

from gateway.store.pace import SLOW_NS, Pace
from gateway.store.pipeline import (
    COMMAND_OK,
    PIPELINE_ABORTED,
    PIPELINE_SYNC,
    SET_TIMEOUT,
    TUPLES_OK,
    UNKNOWN,
    ConnectionLost,
    Expired,
    Pipeline,
    Statement,
    StatementFailed,
    failure_of,
    timeout_step,
)

STALL_NS: Final = 50_000_000
"""Who has waited so long in a convoy asks again, alone."""
_READ_ONLY: Final = "25006"
_IDLE: Final = int(psycopg.pq.TransactionStatus.IDLE)
_BEGIN = Statement(b"caregate_begin", b"BEGIN READ ONLY")
_NEXT = Statement(b"caregate_next", b"COMMIT AND CHAIN")
_COMMIT = Statement(b"caregate_commit", b"COMMIT")
_ROLLBACK = Statement(b"caregate_rollback", b"ROLLBACK")


class Instead:
    """What a caller gets in place of an answer: he is to ask alone. `turn`: a turn of the lane comes with it."""

    __slots__ = ("turn",)

    def __init__(self, *, turn: bool) -> None:
        self.turn = turn


AGAIN: Final = Instead(turn=False)
ALONE: Final = Instead(turn=True)
Outcome = bytes | Exception | Instead | None


class Call:
    """A caller's place; `greenlet` is None once he has left or was answered.

    Units: `deadline_ns` monotonic nanoseconds, `timeout_ms` the server's statement timeout.
    """

    __slots__ = ("deadline_ns", "greenlet", "pace", "statement", "timeout_ms", "values")

    def __init__(
        self, statement: Statement, pace: Pace, values: Sequence[bytes | None], deadline_ns: int, timeout_ms: int,
        greenlet: Any,
    ) -> None:  # fmt: skip
        self.statement = statement
        self.pace = pace
        self.values = values
        self.deadline_ns = deadline_ns
        self.timeout_ms = timeout_ms
        self.greenlet = greenlet

    def resume(self, outcome: Outcome) -> None:
        """Called from the hub."""
        greenlet, self.greenlet = self.greenlet, None
        if greenlet is None:
            return
        if isinstance(outcome, Exception):
            greenlet.throw(outcome)
        else:
            greenlet.switch(outcome)


class _Own:
    """A step of the convoy's own: what it asks, or the name that it prepares."""

    __slots__ = ("prepares", "statement")

    def __init__(self, statement: Statement, *, prepares: bool = False) -> None:
        self.statement = statement
        self.prepares = prepares


_BEGINS, _GOES_ON, _COMMITS, _ROLLS_BACK, _SETS_TIMEOUT = (
    _Own(statement) for statement in (_BEGIN, _NEXT, _COMMIT, _ROLLBACK, SET_TIMEOUT)
)
_SYNC: Final = None
_Step = Call | _Own | None


class Convoy:
    """The calls under way on one connection, in the order in which the server answers them.

    PERF: `portal_read` of `make bench`: a turn of the hub is one wake-up of the server, and with one Sync for all of it
    the server's answers are a few of this process's: 51.6 to 31 us a request, and the server's own 73 to 50.
    NOTE: all of it runs in the hub, where nothing may wait.
    """

    __slots__ = (
        "_answered", "_began_ns", "_calls", "_deadline_ns", "_due", "_ended", "_ending", "_failed", "_held",
        "_outcome", "_over", "_pg", "_shared", "_stalled", "pipeline",
    )  # fmt: skip

    def __init__(self, pipeline: Pipeline, stalled: Callable[[], None], ended: Callable[[Convoy], None]) -> None:
        """Shapes: `stalled` is called if it takes long, `ended` with the last answer or the loss of the connection."""
        self.pipeline = pipeline
        self._pg = pipeline.connection.pgconn
        self._stalled: Callable[[], None] | None = stalled
        self._ended = ended
        self._calls: Sequence[Call] = ()
        self._due: deque[_Step] = deque()
        self._answered: list[tuple[Call, Outcome]] = []
        self._held: Call | None = None
        self._outcome: Outcome = None
        self._ending = self._failed = self._shared = self._over = False
        self._began_ns = 0
        self._deadline_ns = 0

    @property
    def stalled(self) -> bool:
        return self._stalled is None

    def depart(self, calls: Sequence[Call], now_ns: int) -> None:
        """Send the calls, which have one statement timeout in common."""
        self._calls = calls
        self._shared = len(calls) > 1
        self._began_ns = now_ns
        self._deadline_ns = max(call.deadline_ns for call in calls)
        try:
            self._send_ahead(calls)
            if self._shared:
                self._send_chain(calls)
            else:
                self._send(calls[0], calls[0].statement, calls[0].values)
                self._send_sync()
            self.pipeline.attend(self, min(now_ns + STALL_NS, self._deadline_ns))
        except psycopg.Error:
            self._lose()
        except BaseException:
            self._lose(executed=False)
            raise

    def _send_ahead(self, calls: Sequence[Call]) -> None:
        """What the connection needs before the calls, each step a transaction of its own."""
        pipeline = self.pipeline
        timeout_ms = calls[0].timeout_ms
        if timeout_ms != pipeline.timeout_ms:
            pipeline.timeout_ms = UNKNOWN
            self._prepare((_SETS_TIMEOUT.statement,))
            self._send(_SETS_TIMEOUT, *timeout_step(timeout_ms))
            self._send_sync()
        self._prepare(call.statement for call in calls)
        if self._shared:
            self._prepare((_BEGIN, _NEXT, _COMMIT, _ROLLBACK))

    def _prepare(self, statements: Iterable[Statement]) -> None:
        prepared = self.pipeline.prepared
        sent = set()
        for statement in statements:
            if statement.name not in prepared and statement.name not in sent:
                sent.add(statement.name)
                self._pg.send_prepare(statement.name, statement.sql)
                self._due.append(_Own(statement, prepares=True))
                self._send_sync()

    def _send_chain(self, calls: Sequence[Call]) -> None:
        self._send(_BEGINS, _BEGIN, ())
        last = calls[-1]
        for call in calls:
            self._send(call, call.statement, call.values)
            step = _COMMITS if call is last else _GOES_ON
            self._send(step, step.statement, ())
        self._send_sync()

    def _send(self, step: _Step, statement: Statement, values: Sequence[bytes | None]) -> None:
        self._pg.send_query_prepared(statement.name, values)
        self._due.append(step)

    def _send_sync(self) -> None:
        self._pg.pipeline_sync()
        self._due.append(_SYNC)

    # --- what comes back

    def read(self) -> None:
        """Take what came and give it to those who wait for it. Called when there are bytes to read."""
        try:
            self._pg.consume_input()
            self._take()
        except ConnectionLost as lost:
            self._lose(executed=lost.executed)
            return
        except psycopg.Error:
            self._lose()
            return
        except BaseException:
            # NOTE: the hub goes on after an error, and nobody would ever wake the callers.
            self._lose()
            raise
        answered, self._answered = self._answered, []
        if not self._due:
            self._arrive()
        for call, outcome in answered:
            call.resume(outcome)

    def _take(self) -> None:
        """SEC: strictly step by step: whatever does not fit ends the connection.

        Raises: ConnectionLost, psycopg.Error.
        """
        pg, due = self._pg, self._due
        while due and not pg.is_busy():
            result = pg.get_result()
            if self._ending:
                if result is not None:
                    raise ConnectionLost(executed=True)
                self._ending = False
                due.popleft()
            elif result is None:
                raise ConnectionLost(executed=True)
            elif due[0] is not _SYNC:
                self._settle(due[0], result)
                self._ending = True
            elif result.status == PIPELINE_SYNC:
                due.popleft()
                self._synced()
            else:
                raise ConnectionLost(executed=True)

    def _settle(self, step: Call | _Own, result: Any) -> None:
        """One step's result. Raises: ConnectionLost."""
        outcome = _outcome_of(result)
        failed = isinstance(outcome, StatementFailed | Instead)
        if isinstance(step, Call):
            self._held, self._outcome = step, outcome
            if isinstance(outcome, StatementFailed):
                self._outcome = self._judge(step, outcome)
        elif step is _GOES_ON or step is _COMMITS:
            self._answer(lost=failed)
        elif step.prepares:
            # Whoever needs what could not be prepared fails for it, and learns alone what is wrong.
            if not failed:
                self.pipeline.prepared.add(step.statement.name)
        elif failed:
            raise ConnectionLost(executed=False)
        elif step is _SETS_TIMEOUT:
            self.pipeline.timeout_ms = self._calls[0].timeout_ms

    def _judge(self, call: Call, failed: StatementFailed) -> Outcome:
        self._failed = True
        if failed.sqlstate == _READ_ONLY:
            call.pace.stay_alone()
            return AGAIN
        call.pace.note(SLOW_NS)
        return AGAIN if failed.again else failed

    def _answer(self, *, lost: bool = False) -> None:
        """The transaction of the call at hand has ended; `lost`: not as it should."""
        call, outcome = self._held, self._outcome
        self._held = self._outcome = None
        if call is not None:
            self._answered.append((call, AGAIN if lost and not isinstance(outcome, StatementFailed) else outcome))

    def _synced(self) -> None:
        self._answer()
        if self._failed and self._shared:
            self._failed = False
            self._send(_ROLLS_BACK, _ROLLBACK, ())
            self._send_sync()
            self.pipeline.attend(self, self._deadline_ns)

    def _arrive(self) -> None:
        """SEC: a connection on which a transaction is open serves nobody else."""
        if self._pg.transaction_status != _IDLE:
            self.pipeline.broken = True
        self._measure()
        self._over = True
        self.pipeline.release()
        self._ended(self)

    def _measure(self) -> None:
        spent_ns = time.monotonic_ns() - self._began_ns
        each_ns = spent_ns if spent_ns >= SLOW_NS else spent_ns // len(self._calls)
        for pace in {call.pace for call in self._calls}:
            pace.note(each_ns)

    # --- what does not go as it should

    def late(self) -> None:
        """Called from the hub once it takes long, and when the last deadline has passed."""
        # It may be this process that was busy.
        self.read()
        if self._over:
            return
        if self._stalled is None:
            self._lose()
            return
        stalled, self._stalled = self._stalled, None
        self.pipeline.postpone(self._deadline_ns)
        if self._shared:
            self._measure()
            for call in self._calls:
                call.resume(AGAIN)
        stalled()

    def _lose(self, *, executed: bool = True) -> None:
        """The connection is lost, or left to itself. Of those who shared it nobody has changed anything."""
        self._over = self.pipeline.broken = True
        self.pipeline.release()
        self._ended(self)
        for call, outcome in self._answered:
            call.resume(outcome)
        for call in self._calls:
            call.resume(self._loss(call, executed=executed))

    def _loss(self, call: Call, *, executed: bool) -> Outcome:
        if self._shared or not executed:
            return AGAIN
        now_ns = time.monotonic_ns()
        return Expired(now_ns - self._began_ns) if call.deadline_ns <= now_ns else ConnectionLost(executed=True)


def _outcome_of(result: Any) -> Outcome:
    """Raises: ConnectionLost if the server says that it is leaving."""
    status = result.status
    if status == TUPLES_OK:
        value: bytes | None = result.get_value(0, 0) if result.ntuples else None
        return value
    if status == COMMAND_OK:
        return None
    if status == PIPELINE_ABORTED:
        return AGAIN
    return StatementFailed(failure_of(result, executed=False))

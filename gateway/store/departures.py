"""Where callers of quick reads gather: who comes in one turn of the hub leaves in one convoy."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from gevent import get_hub, getcurrent

from gateway.errors import DatabaseUnavailable
from gateway.http1.deadlines import NEVER
from gateway.store.convoy import ALONE, Call, Convoy, Instead
from gateway.store.pace import Pace
from gateway.store.pipeline import Pipeline, Statement
from gateway.turns import Turns
from gateway.wheel import deadlines_here

LONGEST: Final = 8
"""Calls in one convoy."""
_TOGETHER_NS: Final = 2_000_000
"""What the calls of a convoy may take the server in all, in the mean."""
_AT_ONCE: Final = 2
"""So many convoys are under way before one that is not full waits until another has ended."""


class Departures:
    """A lane's callers of quick reads.

    PERF: `portal_read` of `make bench`: few full connections wake this process and the server's less often than many.
    NOTE: belongs to the hub of its first caller.
    Shapes: as a waiter in the line for a turn of the lane it has `come` and `resume`; in the wheel `deadline_ns`,
    `slot` and `expire`.
    """

    __slots__ = (
        "_due", "_idle", "_in_line", "_out", "_put_back", "_turns", "_waiting", "come", "deadline_ns", "slot",
    )  # fmt: skip

    def __init__(
        self, turns: Turns, idle: Callable[[int], Pipeline | None], put_back: Callable[[Pipeline], None]
    ) -> None:
        """Shapes: `idle` finds an open connection that nobody uses; neither it nor `put_back` may wait."""
        self._turns = turns
        self._idle = idle
        self._put_back = put_back
        self._waiting: deque[Call] = deque()
        self._out = 0
        self._due = False
        self._in_line = False
        self.come = False
        self.deadline_ns = 0
        self.slot = NEVER

    def ask(
        self, statement: Statement, pace: Pace, values: Sequence[bytes | None], deadline_ns: int, timeout_ms: int
    ) -> bytes | Instead | None:
        """The statement's first value, or that the caller has to ask alone.

        Raises: StatementFailed, ConnectionLost, Expired; DatabaseUnavailable if no connection came free in time.
        Yields to the hub: until the server answered.
        """
        call = Call(statement, pace, values, deadline_ns, timeout_ms, getcurrent())
        self._waiting.append(call)
        if not self.deadline_ns or deadline_ns < self.deadline_ns:
            deadlines_here().arm(self, deadline_ns)
        hub = get_hub()
        if not self._due:
            self._due = True
            hub.loop.run_callback(self._leave)
        try:
            outcome: bytes | Instead | None = hub.switch()
        except BaseException:
            # SEC: his place stays his own: the answer that comes for it goes to nobody.
            if call.greenlet is not None:
                call.greenlet = None
                if call in self._waiting:
                    self._waiting.remove(call)
            raise
        return outcome

    # --- in the hub

    def _leave(self) -> None:
        """At the end of a turn of the hub."""
        self._due = False
        turns, waiting = self._turns, self._waiting
        while waiting and (self._out < _AT_ONCE or len(waiting) >= LONGEST):
            if turns.free:
                turns.free -= 1
                self._depart()
            else:
                if not self._in_line:
                    self._in_line = True
                    turns.line_up(self)
                return

    def resume(self) -> None:
        """It is the turn of those who wait."""
        self._in_line = self.come = False
        if self._waiting:
            self._depart()
            self._leave()
        else:
            self._turns.give_back()

    def _depart(self) -> None:
        """Send off a convoy; without an open connection, the first goes and opens one."""
        now_ns = time.monotonic_ns()
        waiting = self._waiting
        pipeline = self._idle(now_ns)
        first = waiting.popleft()
        if pipeline is None:
            first.resume(ALONE)
            return
        calls = [first]
        left_ns = _TOGETHER_NS - first.pace.best_ns
        while waiting and len(calls) < LONGEST and waiting[0].timeout_ms == first.timeout_ms:
            left_ns -= waiting[0].pace.best_ns
            if left_ns < 0:
                break
            calls.append(waiting.popleft())
        self._out += 1
        Convoy(pipeline, self._stalled, self._ended).depart(calls, now_ns)

    def _stalled(self) -> None:
        """A convoy takes long: nobody waits for it any more."""
        self._out -= 1
        self._leave()

    def _ended(self, convoy: Convoy) -> None:
        if not convoy.stalled:
            self._out -= 1
        self._put_back(convoy.pipeline)
        self._turns.give_back()
        self._leave()

    def expire(self) -> None:
        """Called when the earliest deadline has passed."""
        now_ns = time.monotonic_ns()
        late = [call for call in self._waiting if call.deadline_ns <= now_ns]
        for call in late:
            self._waiting.remove(call)
        if self._waiting:
            deadlines_here().arm(self, min(call.deadline_ns for call in self._waiting))
        for call in late:
            call.resume(DatabaseUnavailable("No database connection came free in time", retry_after_s=1))

"""Admission of units that dial: a storm of reconnects is let in at the rate the gateway can take, and no faster."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Final

from gateway.errors import Overloaded

MAX_WAIT_S: Final = 30
"""The longest that a unit is told to wait, which is also the agents' own longest pause."""
LATE_MS: Final = 3_000
TOO_LATE_MS: Final = 6_000
"""Of dials that waited so long at the door some are told to come again, the more the longer they waited, and nearly all
past the second bound: agents give up after ten seconds, and what is done for one that gave up is done for nobody."""
WINDOW: Final = 64
LEAST_WINDOW: Final = 8.0
"""How many dials may be open grows by one with each HELLO, and is halved, once a second, where one ended without."""
LEAST: Final = 0.05
SLOWER: Final = 0.5
FASTER: Final = 0.05
KEPT: Final = 0.9
"""After a second with late dials the pace is halved, but not below what was let in in the best second, which counts for
a tenth less each second, nor below a twentieth of the most; after one without, a twentieth of the most is added."""


class DialGate:
    """Lets dials in by rate, by how many are open and by how long they waited; who is refused gets a time of its own.

    Source: the pace of those times falls and rises as a TCP window does (additive increase, multiplicative decrease);
    what is measured is the wait at the door, as in RFC 8289. The window of open dials does the same by HELLOs that
    come or do not.
    PERF: `connect_s` of `make fleet` beside a process that takes a third of the machine: 24 to 26 s, and 25 to 43 s
    where the pace fell to what was let in in the last second: of a queue of late dials that is next to nothing, and
    the refused came back long after the workers had nothing to do.
    """

    def __init__(self, dials_per_s: int, dials_open: int = 512, clock: Callable[[], float] = time.monotonic) -> None:
        """Units: `dials_per_s` at most; `dials_open` how many may be on their way to their HELLO."""
        self._most_per_s = float(dials_per_s)
        self._open_limit = dials_open
        self._clock = clock
        self._least_per_s = self._most_per_s * LEAST
        self._tokens = self._most_per_s
        self._late_tokens = 0.0
        self._at_s = self._second_s = clock()
        self._slot_s = 0.0
        self._late = False
        self._late_share = 0.0
        self._admitted = 0
        self._can_per_s = 0.0
        self._shrunk_s = 0.0
        self.open = 0
        self.window = float(min(WINDOW, dials_open))
        self.pace_per_s = self._most_per_s / 4

    def admit(self, waited_ms: int = 0) -> None:
        """Units: `waited_ms` since the dial arrived. Raises: Overloaded with the time to come again."""
        now_s = self._clock()
        self._set_pace(now_s)
        self._tokens = min(self._most_per_s, self._tokens + (now_s - self._at_s) * self._most_per_s)
        self._late_tokens = min(self._least_per_s, self._late_tokens + (now_s - self._at_s) * self._least_per_s)
        self._at_s = now_s
        if self._tokens < 1 or self.open >= int(self.window) or (waited_ms > LATE_MS and self._is_too_late(waited_ms)):
            raise Overloaded("Too many units dial at once", retry_after_s=self._next_slot(now_s + waited_ms / 1000))
        self._tokens -= 1
        self._admitted += 1

    def _is_too_late(self, waited_ms: int) -> bool:
        """Some who waited too long are let in all the same: where even refusals take too long, nobody else is left."""
        self._late = True
        self._late_share += max(0.0, (TOO_LATE_MS - waited_ms) / (TOO_LATE_MS - LATE_MS))
        if self._late_share >= 1:
            self._late_share -= 1
            return False
        if self._late_tokens < 1:
            return True
        self._late_tokens -= 1
        return False

    def give_back(self) -> None:
        """Whoever was let in has no good token.

        SEC: or anybody who dials without one, often enough, would keep the units out.
        """
        self._tokens = min(self._most_per_s, self._tokens + 1)
        self._admitted = max(0, self._admitted - 1)

    def opened(self) -> None:
        """A dial was answered with 101."""
        self.open += 1

    def settled(self, said_hello: bool = True) -> None:
        """It said HELLO, or has ended without."""
        self.open -= 1
        now_s = self._clock()
        if said_hello:
            self.window = min(float(self._open_limit), self.window + 1)
        elif now_s - self._shrunk_s >= 1:
            self._shrunk_s = now_s
            self.window = max(min(LEAST_WINDOW, float(self._open_limit)), self.window / 2)

    def _next_slot(self, begin_s: float) -> int:
        """Seconds until the refused one's own time, which is not before those who stand at the door now are through."""
        now_s = self._at_s
        self._slot_s = min(max(self._slot_s, begin_s) + 1 / self.pace_per_s, now_s + MAX_WAIT_S)
        return max(1, math.ceil(self._slot_s - now_s))

    def _set_pace(self, now_s: float) -> None:
        past_s = now_s - self._second_s
        if past_s < 1:
            return
        let_in_per_s = min(self._admitted / past_s, self._most_per_s)
        self._can_per_s = max(let_in_per_s, self._can_per_s * KEPT**past_s)
        if self._late:
            self.pace_per_s = max(self._least_per_s, self._can_per_s, self.pace_per_s * SLOWER)
        else:
            self.pace_per_s = min(self._most_per_s, self.pace_per_s + self._most_per_s * FASTER)
        self._second_s, self._late, self._admitted = now_s, False, 0

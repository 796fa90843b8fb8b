"""A circuit breaker and a retry budget: what keeps a sick upstream from being hit harder. No I/O, clock injected."""

from __future__ import annotations

FAILURES_TO_OPEN = 5
"""Failures in a row."""
FIRST_PAUSE_NS = 1_000_000_000
LONGEST_PAUSE_NS = 30_000_000_000
PROBE_NS = 60_000_000_000
"""A probe that has not come back by then is given up, so that another may go."""


class Breaker:
    """Closed: all pass. Open: none, for a pause that doubles. Then one probe decides.

    Units: `now_ns` monotonic nanoseconds.
    """

    __slots__ = ("_failures", "_open_until_ns", "_pause_ns", "_probe_until_ns")

    def __init__(self) -> None:
        self._failures = 0
        self._open_until_ns = 0
        self._pause_ns = FIRST_PAUSE_NS
        self._probe_until_ns = 0

    def admit(self, now_ns: int) -> int:
        """0 if a call may go; else nanoseconds until the next may be tried."""
        if self._open_until_ns == 0:
            return 0
        if now_ns < self._open_until_ns:
            return self._open_until_ns - now_ns
        if now_ns < self._probe_until_ns:
            return min(self._probe_until_ns - now_ns, self._pause_ns)
        self._probe_until_ns = now_ns + PROBE_NS
        return 0

    @property
    def is_open(self) -> bool:
        """Open, or waiting for a probe that decides."""
        return self._open_until_ns != 0

    def succeeded(self) -> None:
        self._failures = 0
        if self._open_until_ns:
            self._open_until_ns = self._probe_until_ns = 0
            self._pause_ns = FIRST_PAUSE_NS

    def failed(self, now_ns: int) -> None:
        if self._open_until_ns:
            if now_ns >= self._open_until_ns:
                self._pause_ns = min(self._pause_ns * 2, LONGEST_PAUSE_NS)
                self._open(now_ns)
            return
        self._failures += 1
        if self._failures >= FAILURES_TO_OPEN:
            self._open(now_ns)

    def unknown(self) -> None:
        """The call ended without telling anything about the upstream: a probe is free for the next."""
        self._probe_until_ns = 0

    def _open(self, now_ns: int) -> None:
        self._open_until_ns = now_ns + self._pause_ns
        self._probe_until_ns = 0


class RetryBudget:
    """At most one repeat to five first tries, beyond a small reserve."""

    __slots__ = ("_tokens",)
    RATIO = 0.2
    RESERVE = 3.0
    MOST = 20.0

    def __init__(self) -> None:
        self._tokens = self.RESERVE

    def first_try(self) -> None:
        self._tokens = min(self._tokens + self.RATIO, self.MOST)

    def take(self) -> bool:
        """May a repeat be made?"""
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True

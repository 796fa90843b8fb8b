"""How quick a statement is, and so whether others may stand in line behind it."""

from __future__ import annotations

from typing import Final

QUICK_NS: Final = 1_000_000
SLOW_NS: Final = 20_000_000
_MEAN_NS: Final = 5_000_000
_WINDOW: Final = 32
_ALONE: Final = 200
"""Calls that go alone after one that was slow or failed."""


class Pace:
    """Of a statement that changes nothing.

    NOTE: what it takes is read from the best of the last calls: where many connections share a core, the mean says how
    many they are.
    Units: `best_ns` nanoseconds of the server's for a call, of the last 32 to 64 the shortest.
    """

    __slots__ = ("_alone", "_before_ns", "_mean_ns", "_now_ns", "_seen", "best_ns")

    def __init__(self) -> None:
        self.best_ns = self._before_ns = self._now_ns = SLOW_NS
        self._mean_ns = 0
        self._seen = 0
        self._alone = 0

    @property
    def quick(self) -> bool:
        return self.best_ns <= QUICK_NS and self._mean_ns <= _MEAN_NS and not self._alone

    def note(self, spent_ns: int) -> None:
        """A call took so long."""
        self._seen += 1
        if self._seen == _WINDOW:
            self._seen, self._before_ns, self._now_ns = 0, self._now_ns, spent_ns
        elif spent_ns < self._now_ns:
            self._now_ns = spent_ns
        self.best_ns = min(self._before_ns, self._now_ns)
        self._mean_ns += (min(spent_ns, SLOW_NS) - self._mean_ns) // 8
        if self._alone < 0:
            return
        self._alone = _ALONE if spent_ns >= SLOW_NS else max(0, self._alone - 1)

    def stay_alone(self) -> None:
        """For good: it changes something after all."""
        self._alone = -1

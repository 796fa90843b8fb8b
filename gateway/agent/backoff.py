"""How long to wait before the next dial."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

Draw = Callable[[], float]
"""A number in [0, 1)."""


@dataclass(slots=True)
class Backoff:
    """Full jitter: after n failures in a row, anything from 0 to min(cap, base * 2^n).

    Units: `base_s`, `cap_s` and every result seconds.
    Source: the protocol page; full jitter spreads a fleet that lost its gateway at the same moment.
    """

    base_s: float = 1.0
    cap_s: float = 30.0
    draw: Draw = random.random
    failures: int = field(default=0, init=False)

    def succeeded(self) -> None:
        """A connection came up: the next failure counts as the first."""
        self.failures = 0

    def after_failure(self) -> float:
        limit_s = min(self.cap_s, self.base_s * 2.0 ** min(self.failures, 32))
        self.failures += 1
        return limit_s * self.draw()

    def after_goaway(self, retry_ms: int, jitter_ms: int) -> float:
        """The slot that the gateway assigned, plus our share of the jitter."""
        return (max(retry_ms, 0) + max(jitter_ms, 0) * self.draw()) / 1000.0

    def after_refusal(self, at_least_s: float) -> float:
        """A gateway that said no is asked again not before `at_least_s`; a quarter more at most, so units spread."""
        self.failures += 1
        return at_least_s * (1.0 + 0.25 * self.draw())

"""How fast the units of a worker that leaves are asked to dial again: as fast as its siblings take them in."""

from __future__ import annotations

from typing import Final

MOVING: Final = 256
"""How many may have been asked and not have come to a sibling.

PERF: `all_back_s` of `make fleet`: where siblings took in fewer in a second than were sent to them, dials waited at the
door until they were told to come later, and came twice."""


class Moves:
    """Units: `per_s` connections a second at most, if that is enough; `grace_s` seconds until all must have moved."""

    def __init__(self, per_s: float, connections: int, grace_s: float) -> None:
        # In half of the grace all are asked, however slowly siblings take them in.
        self._least_per_s = 2 * connections / max(0.1, grace_s)
        self._most_per_s = max(per_s, self._least_per_s)
        self._asked = 0

    def due(self, elapsed_s: float, moving: int) -> int:
        """How many to ask now; `moving` were asked before and have not left."""
        at_most = int(elapsed_s * self._most_per_s) + 1 - self._asked
        at_least = int(elapsed_s * self._least_per_s) + 1 - self._asked
        return max(0, at_least, min(at_most, MOVING - moving))

    def asked(self, number: int) -> None:
        self._asked += number

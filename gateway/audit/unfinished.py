"""Requests that were begun and never ended, counted as they come of age: each intent is looked at once."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Final

SETTLED_S: Final = 600.0
"""Twice the longest deadline that a route can have: whatever is older has ended, and its event has arrived."""
SPAN_S: Final = 3600.0
"""How long one that was found is told of; a gateway that starts looks back as far."""
_SLICE_S: Final = 300.0


class Unfinished:
    """What was found in the last hour's looks. Of one that looks late, each look takes the next five minutes."""

    def __init__(
        self,
        count: Callable[[float, float], int],
        tell: Callable[[int], None],
        now_s: Callable[[], float] = time.time,
    ) -> None:
        """Shapes: `count(since, until)` asks the trail; `tell(found)`. Units: seconds since 1970."""
        self._count = count
        self._tell = tell
        self._now_s = now_s
        self._until_s = now_s() - SETTLED_S - SPAN_S
        self._found: deque[tuple[float, int]] = deque()

    def look(self) -> None:
        """Raises: what `count` raises; the next look takes the same span again. Yields to the hub: yes."""
        settled_s = self._now_s() - SETTLED_S
        until_s = min(self._until_s + _SLICE_S, settled_s)
        if until_s > self._until_s:
            number = self._count(self._until_s, until_s)
            if number:
                self._found.append((until_s, number))
            self._until_s = until_s
        while self._found and self._found[0][0] <= settled_s - SPAN_S:
            self._found.popleft()
        self._tell(sum(number for _, number in self._found))

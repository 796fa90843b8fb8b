"""Unit tokens that were used, until they have run out: this worker's and what its siblings told."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable

from gateway.errors import Overloaded


class UsedTokens:
    """A token is for one dial, at whichever worker of the machine.

    NOTE: siblings are told at once, over the mesh; two dials of one token within that moment may both succeed.
    Shapes: a mark stands for a token, see `mark_of`. Units: seconds since 1970.
    """

    def __init__(self, capacity: int = 100_000) -> None:
        self._capacity = capacity
        self._ends: list[tuple[float, str]] = []
        self._marks: set[str] = set()
        self.announce: Callable[[str, float], None] = lambda mark, expires_s: None
        """Told of each token that is used here: the mesh passes it on."""

    def use(self, mark: str, expires_s: float, now_s: float) -> bool:
        """False if it was used before. Raises: Overloaded if there is no room to remember it."""
        self._forget(now_s)
        if mark in self._marks:
            return False
        if len(self._marks) >= self._capacity:
            # SEC: forgetting one to make room would let it be used again.
            raise Overloaded("Too many units dial at once", retry_after_s=5)
        self._add(mark, expires_s)
        self.announce(mark, expires_s)
        return True

    def recall(self, mark: str, expires_s: float) -> None:
        """A sibling saw this one. Without room it is not remembered: then no other is accepted here either."""
        if mark not in self._marks and len(self._marks) < self._capacity:
            self._add(mark, expires_s)

    def rows(self) -> list[tuple[str, float]]:
        """All that are remembered, with their ends."""
        return [(mark, expires_s) for expires_s, mark in self._ends]

    def _add(self, mark: str, expires_s: float) -> None:
        self._marks.add(mark)
        heapq.heappush(self._ends, (expires_s, mark))

    def _forget(self, now_s: float) -> None:
        while self._ends and self._ends[0][0] <= now_s:
            self._marks.discard(heapq.heappop(self._ends)[1])


def mark_of(unit: str, token_id: str) -> str:
    """32 characters for a token, however long its id is."""
    return hashlib.blake2b(f"{unit}\n{token_id}".encode(), digest_size=16).hexdigest()

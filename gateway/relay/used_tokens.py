"""Unit tokens that were used, until they have run out: this worker's and what its siblings told."""

from __future__ import annotations

import contextlib
import hashlib
import heapq
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from gateway.errors import Overloaded

STALE_S: Final = 600.0
"""No unit token lives so long: a mark of that age is left from workers that were killed."""

LEEWAY_S: Final = 120.0
"""The most that `gateway.leeway_s` of a configuration may be: so long after its end a token may still be accepted."""


class UsedTokens:
    """A token is for one dial, at whichever worker of the machine.

    Siblings are told over the mesh. An empty file for each mark, in a directory of the machine, decides between two
    dials at the same moment: the kernel makes it once. PERF: 30 us a dial.
    Shapes: a mark stands for a token, see `mark_of`. Units: seconds since 1970.
    """

    def __init__(self, capacity: int = 100_000, directory: Path | None = None) -> None:
        self._capacity = capacity
        self._directory = directory
        self._ends: list[tuple[float, str]] = []
        self._marks: set[str] = set()
        self.announce: Callable[[str, float], None] = lambda mark, expires_s: None
        """Told of each token that is used here: the mesh passes it on."""

    def use(self, mark: str, expires_s: float, now_s: float) -> bool:
        """False if it was used before. Raises: Overloaded if there is no room to remember it.

        Units: `expires_s`, the token's own end.
        """
        self._forget(now_s)
        if mark in self._marks:
            return False
        if len(self._marks) >= self._capacity:
            # SEC: forgetting one to make room would let it be used again.
            raise Overloaded("Too many units dial at once", retry_after_s=5)
        if not self._claim(mark):
            return False
        self._add(mark, expires_s)
        self.announce(mark, expires_s)
        return True

    def _claim(self, mark: str) -> bool:
        """False if a sibling has it. Raises: Overloaded if that cannot be known."""
        if self._directory is None:
            return True
        try:
            os.close(os.open(self._directory / mark, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        except FileExistsError:
            return False
        except OSError:
            # SEC: without a place to say so, another worker might accept the same token.
            raise Overloaded("Units cannot be admitted now", retry_after_s=5) from None
        return True

    def open(self, now_s: float) -> None:
        """Make the directory, and take away what workers left that were killed. Raises: OSError."""
        if self._directory is None:
            return
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for entry in os.scandir(self._directory):
            with contextlib.suppress(OSError):
                if entry.stat().st_mtime < now_s - STALE_S:
                    os.unlink(entry)

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
        # SEC: the clocks of unit and gateway may differ; forgotten at its end, a token could be used again until then.
        while self._ends and self._ends[0][0] + LEEWAY_S <= now_s:
            mark = heapq.heappop(self._ends)[1]
            self._marks.discard(mark)
            if self._directory is not None:
                (self._directory / mark).unlink(missing_ok=True)


def mark_of(unit: str, token_id: str) -> str:
    """32 characters for a token, however long its id is."""
    return hashlib.blake2b(f"{unit}\n{token_id}".encode(), digest_size=16).hexdigest()

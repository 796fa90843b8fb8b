"""Unit tokens that were used, until they have run out: one record for all workers of a machine."""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from gateway.errors import Overloaded

LEEWAY_S: Final = 120.0
"""The most that `gateway.leeway_s` of a configuration may be: so long after its end a token may still be accepted."""

CLEAN_S: Final = 60.0
"""How often this worker's own memory of marks drops those that have run out."""

_ENTRY: Final = struct.Struct("16sd")
_NEXT: Final = struct.Struct("Q")
_FULL_RETRY_S: Final = 5
_NEVER: Final = float("-inf")


class UsedTokens:
    """A token is for one dial, at whichever worker of the machine, before and after a restart.

    ```
     u64 entries ever written, 16 bytes of nothing | entry 0 | entry 1 | … | entry capacity-1
     entry: 16 bytes mark, f64 its token's end; number n is at place n modulo capacity
    ```
    The file is mapped by every worker and written under its lock, so each sees what the others wrote before it decides.
    PERF: `worker_ms_per_dial` of `make fleet`: an empty file for each mark and a record to each sibling took 0.3 ms of
    CPU a dial, and a file system that was busy held the whole worker up.
    Shapes: a mark stands for a token, see `mark_of`. Units: seconds since 1970.
    """

    def __init__(self, path: Path, capacity: int = 100_000) -> None:
        self._path = path
        self._capacity = capacity
        self._descriptor = -1
        self._ring: mmap.mmap | None = None
        self._seen = 0
        self._marks: dict[bytes, float] = {}
        self._clean_s = 0.0

    def open(self) -> None:
        """Map the file. Raises: OSError."""
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        self._descriptor = os.open(self._path, flags, 0o600)
        size = _ENTRY.size * (1 + self._capacity)
        with self._alone():
            # NOTE: with its blocks, or a full disk would end the worker at a write to the mapping.
            os.posix_fallocate(self._descriptor, 0, size)
            self._ring = mmap.mmap(self._descriptor, size)

    def close(self) -> None:
        """Use no more tokens; what is in the file stays."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        if self._ring is not None:
            self._ring.close()
            self._ring = None

    def use(self, mark: bytes, expires_s: float, now_s: float) -> bool:
        """False if it was used before. Raises: Overloaded if there is no room to remember it.

        Units: `expires_s`, the token's own end.
        """
        ring = self._ring
        if ring is None:
            # SEC: without a place to say so, another worker might accept the same token.
            raise Overloaded("Units cannot be admitted now", retry_after_s=_FULL_RETRY_S)
        with self._alone():
            number = self._catch_up(ring)
            self._clean(now_s)
            if _is_live(self._marks.get(mark, _NEVER), now_s):
                return False
            place = _ENTRY.size * (1 + number % self._capacity)
            if number >= self._capacity and _is_live(_ENTRY.unpack_from(ring, place)[1], now_s):
                # SEC: forgetting one to make room would let it be used again.
                raise Overloaded("Too many units dial at once", retry_after_s=_FULL_RETRY_S)
            _ENTRY.pack_into(ring, place, mark, expires_s)
            _NEXT.pack_into(ring, 0, number + 1)
        return True

    def _catch_up(self, ring: mmap.mmap) -> int:
        """Take in what was written since the last time; the number of the next entry."""
        following: int = _NEXT.unpack_from(ring, 0)[0]
        for number in range(max(self._seen, following - self._capacity), following):
            mark, expires_s = _ENTRY.unpack_from(ring, _ENTRY.size * (1 + number % self._capacity))
            self._marks[mark] = expires_s
        self._seen = following
        return following

    def _clean(self, now_s: float) -> None:
        if now_s >= self._clean_s:
            self._clean_s = now_s + CLEAN_S
            self._marks = {mark: end_s for mark, end_s in self._marks.items() if _is_live(end_s, now_s)}

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Holds: the file's lock, which its holders keep for microseconds and without yielding."""
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)


def _is_live(expires_s: float, now_s: float) -> bool:
    # SEC: the clocks of unit and gateway may differ; forgotten at its end, a token could be used again until then.
    return expires_s + LEEWAY_S > now_s


def mark_of(unit: str, token_id: str) -> bytes:
    """16 bytes for a token, however long its id is."""
    return hashlib.blake2b(f"{unit}\n{token_id}".encode(), digest_size=16).digest()

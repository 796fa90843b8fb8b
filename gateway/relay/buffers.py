"""What a worker keeps of bodies in memory: no new large one where it is much; where it is too much, streams that stand
still are dropped."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Final, Protocol

LARGE_BYTES: Final = 65_536
"""A body up to this size is taken always."""

BUFFER_BYTES: Final = 268_435_456

SUM_SHARE: Final = 32
"""PERF: of 5,000 streams the sum takes 4 ms of the hub: at most a 32nd of its time goes there for large bodies."""

BUFFERS_FULL: Final = "buffers-full"
"""Why a stream ended that was dropped."""


class Holder(Protocol):
    """A stream that keeps bytes until somebody takes them.

    Units: `moved_s` when he last did, or the first of them came: who waited for them has not stood still; monotonic
    seconds.
    """

    moved_s: float

    @property
    def held_bytes(self) -> int: ...

    def drop(self) -> None:
        """Forget them: the stream fails. May not block."""


class Buffers:
    """Above four fifths of the limit no large body begins; above seven eighths room is made. It is summed up whenever a
    sixteenth of it has come, so that small requests pay for none of it.

    Units: bytes. Shapes: `meters` say what is kept, and twice what is kept to be sent again and has not left yet;
    `spares` drop what is kept only to be sent again;
    `holders` are the streams that may be dropped; `on_dropped` is told of each that was.
    """

    def __init__(self, limit_bytes: int = BUFFER_BYTES, on_dropped: Callable[[], None] = lambda: None) -> None:
        self._much = limit_bytes * 4 // 5
        self._too_much = limit_bytes * 7 // 8
        self._look_after = limit_bytes // 16
        self._on_dropped = on_dropped
        self._arrived = 0
        self._recent = 0
        self._stale_s = 0.0
        self.meters: list[Callable[[], int]] = []
        self.spares: list[Callable[[], None]] = []
        self.holders: list[Callable[[], Iterable[Holder]]] = []

    def held_bytes(self) -> int:
        """Summed up, for who asks seldom."""
        return sum(meter() for meter in self.meters)

    def takes(self, length: int | None) -> bool:
        """May a body of this length begin? None: nobody knows it."""
        return (length is not None and length <= LARGE_BYTES) or self._recently_held() <= self._much

    def _recently_held(self) -> int:
        now_s = time.monotonic()
        if now_s >= self._stale_s:
            begun_s = time.thread_time()
            self._recent = self.held_bytes()
            self._stale_s = now_s + SUM_SHARE * (time.thread_time() - begun_s)
        return self._recent

    def arrived(self, size: int) -> None:
        """So many bytes more may be kept by now. NOTE: any stream may fail in here."""
        self._arrived += size
        if self._arrived >= self._look_after:
            self._arrived = 0
            if self.held_bytes() > self._too_much:
                self._make_room()

    def _make_room(self) -> None:
        """Until it is not much any more. Who keeps much for long goes first: who is slow, not who has just arrived."""
        self._stale_s = 0.0
        for spare in self.spares:
            spare()
        over, now_s = self.held_bytes() - self._much, time.monotonic()
        found = [(held, holder) for holders in self.holders for holder in holders() if (held := holder.held_bytes)]
        found.sort(key=lambda entry: entry[0] * (now_s - entry[1].moved_s), reverse=True)
        for held, holder in found:
            if over <= 0:
                return
            over -= held
            holder.drop()
            self._on_dropped()

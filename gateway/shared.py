"""Memory that all workers of a machine share: rate-limit buckets and metrics; made in the arbiter, before the fork."""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass, field

from fastpath.bucket import BucketTable, segment_bytes
from gateway.metrics import SERIES_BYTES, clear_gauges
from gateway.settings import Settings


@dataclass(slots=True)
class Shared:
    """Holds: anonymous shared mappings, inherited through fork; they end with the last process."""

    buckets: BucketTable
    regions: list[memoryview]
    secret: bytes
    life: memoryview
    slots: dict[int, int] = field(default_factory=dict)
    """Region in use -> identity of its worker; kept by the arbiter."""
    generation: int = 1
    """Of the workers that are forked now. `life` holds the arbiter's at 0, and at 1 + a region that of its worker while
    that accepts connections."""

    def renew(self) -> None:
        """In the arbiter, at HUP: from here on workers are of another generation, and the older ones know."""
        self.generation += 1
        self.life[0] = self.generation

    def take_slot(self, worker: int) -> int:
        """A free region for a worker, or -1 if all are taken (its metrics then stay its own)."""
        for slot in range(len(self.regions)):
            if slot not in self.slots:
                self.slots[slot] = worker
                self.life[1 + slot] = 0
                return slot
        return -1

    def free_slot(self, worker: int) -> None:
        """Give a dead worker's region to the next one; its counters stay, its gauges go."""
        for slot in [s for s, owner in self.slots.items() if owner == worker]:
            clear_gauges(self.regions[slot])
            self.life[1 + slot] = 0
            del self.slots[slot]


def create(settings: Settings) -> Shared:
    """Map the segments for a machine's workers, with room for as many again during a reload."""
    secret = os.urandom(16)
    memory = mmap.mmap(-1, segment_bytes(settings.bucket_capacity))
    buckets = BucketTable(memory, settings.bucket_capacity, secret, create=True)
    size = -(-settings.metric_series * SERIES_BYTES // mmap.PAGESIZE) * mmap.PAGESIZE
    regions = [memoryview(mmap.mmap(-1, size)) for _ in range(3 * settings.workers + 2)]
    life = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("I")
    life[0] = 1
    return Shared(buckets, regions, secret, life)


slot = -1
"""This worker's region; -1: none."""
_made: Shared | None = None


def arbiter(settings: Settings) -> Shared:
    """The machine's shared memory: made at the first call, in the arbiter; workers inherit it."""
    global _made
    if _made is None:
        _made = create(settings)
    return _made


def is_accepting() -> None:
    """In a worker: it accepts connections from here on."""
    if _made is not None and slot >= 0:
        _made.life[1 + slot] = _made.generation


def is_leaving() -> None:
    """In a worker: it accepts no more connections from here on."""
    if _made is not None and slot >= 0:
        _made.life[1 + slot] = 0


def takes_leave(others: int) -> bool:
    """In a worker: may it leave, since at least so many others accept connections? If so it counts as one no more.

    NOTE: two that ask in the same microseconds see each other, and neither may.
    """
    if _made is None or slot < 0:
        return True
    if _others() < others:
        return False
    is_leaving()
    if _others() < others:
        is_accepting()
        return False
    return True


def _others() -> int:
    assert _made is not None  # noqa: S101
    ours = 1 + slot
    return sum(1 for at in range(1, 1 + len(_made.regions)) if at != ours and _made.life[at])


def is_superseded() -> bool:
    """In a worker: is a newer generation meant to take its place?"""
    return _made is not None and _made.life[0] > _made.generation


def successors() -> int:
    """In a worker: how many of the newest generation accept connections."""
    if _made is None:
        return 0
    return sum(1 for generation in _made.life[1 : 1 + len(_made.regions)] if generation == _made.life[0])

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
    slots: dict[int, int] = field(default_factory=dict)
    """Region in use -> identity of its worker; kept by the arbiter."""

    def take_slot(self, worker: int) -> int:
        """A free region for a worker, or -1 if all are taken (its metrics then stay its own)."""
        for slot in range(len(self.regions)):
            if slot not in self.slots:
                self.slots[slot] = worker
                return slot
        return -1

    def free_slot(self, worker: int) -> None:
        """Give a dead worker's region to the next one; its counters stay, its gauges go."""
        for slot in [s for s, owner in self.slots.items() if owner == worker]:
            clear_gauges(self.regions[slot])
            del self.slots[slot]


def create(settings: Settings) -> Shared:
    """Map the segments for a machine's workers, with room for as many again during a reload."""
    secret = os.urandom(16)
    memory = mmap.mmap(-1, segment_bytes(settings.bucket_capacity))
    buckets = BucketTable(memory, settings.bucket_capacity, secret, create=True)
    size = -(-settings.metric_series * SERIES_BYTES // mmap.PAGESIZE) * mmap.PAGESIZE
    regions = [memoryview(mmap.mmap(-1, size)) for _ in range(3 * settings.workers + 2)]
    return Shared(buckets, regions, secret)


slot = -1
"""This worker's region; -1: none."""
_made: Shared | None = None


def arbiter(settings: Settings) -> Shared:
    """The machine's shared memory: made at the first call, in the arbiter; workers inherit it."""
    global _made
    if _made is None:
        _made = create(settings)
    return _made

"""What is sampled of each worker, and when it counts as growth."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

WARM_UP_SHARE = 0.25
"""Caches, pools and allocators fill in the first part of a run; it is not judged."""
LEAST_SAMPLES = 6


@dataclass(frozen=True, slots=True)
class Allowance:
    """How much a metric may grow over a run: `noise`, `per_minute` of the judged part, and `filling` in a short run.

    Source: in the first minute an allocator takes one more arena, four MiB at a time, without anything leaking.
    """

    noise: float
    per_minute: float
    filling: float = 0.0


ALLOWANCES: dict[str, Allowance] = {
    "rss_mib": Allowance(noise=4.0, per_minute=0.5, filling=4.0),
    "descriptors": Allowance(noise=16, per_minute=0.5),
    "greenlets": Allowance(noise=16, per_minute=0.5),
}


@dataclass(frozen=True, slots=True)
class Sample:
    """One look at a worker. Units: `at_s` since the load's start."""

    at_s: float
    worker: int
    values: dict[str, float]


@dataclass(frozen=True, slots=True)
class Growth:
    """Shapes: `first` and `last` are medians of the first and the last third of the judged samples."""

    worker: int
    metric: str
    first: float
    last: float
    allowed: float

    @property
    def grew(self) -> float:
        return self.last - self.first

    @property
    def excessive(self) -> bool:
        return self.grew > self.allowed


def growth_of(samples: Iterable[Sample], seconds: float) -> list[Growth]:
    """Growth of every metric of every worker, after the warm-up.

    Raises: ValueError if a worker was seen too seldom to be judged.
    """
    judged: dict[int, list[Sample]] = {}
    for sample in samples:
        held = judged.setdefault(sample.worker, [])
        if sample.at_s >= WARM_UP_SHARE * seconds:
            held.append(sample)
    for worker, held in judged.items():
        if len(held) < LEAST_SAMPLES:
            raise ValueError(f"worker {worker} has {len(held)} samples after the warm-up, {LEAST_SAMPLES} are needed")
    return [_growth(worker, metric, held) for worker, held in judged.items() for metric in ALLOWANCES]


def _growth(worker: int, metric: str, held: Sequence[Sample]) -> Growth:
    third = len(held) // 3
    first, last = (statistics.median(s.values[metric] for s in part) for part in (held[:third], held[-third:]))
    allowance = ALLOWANCES[metric]
    minutes = (held[-1].at_s - held[0].at_s) / 60
    allowed = allowance.noise + allowance.per_minute * minutes + allowance.filling / max(1.0, minutes)
    return Growth(worker, metric, first, last, allowed)

"""Interleaved measurement: ours, the peer's, ours, the peer's, so that a slow moment of the machine hits both."""

from __future__ import annotations

import gc
from statistics import median
from time import perf_counter_ns

from loadtests.bench_fastpath.row import Result, Row, Work


def measure(row: Row, *, rounds: int, round_ns: int) -> Result:
    """Measure one row. Units: `round_ns` is how long one side of a round takes at least."""
    sides = [row.ours] if row.peer is None else [row.ours, row.peer]
    for work in sides:
        _time(work, 0)
    collected = gc.isenabled()
    gc.disable()
    try:
        samples = [[_time(work, round_ns) for work in sides] for _ in range(rounds)]
    finally:
        if collected:
            gc.enable()
    return _result(row, samples)


def _time(work: Work, least_ns: int) -> float:
    """Nanoseconds per operation over as many runs as it takes to fill `least_ns`, at least one."""
    spent_ns = operations = 0
    while operations == 0 or spent_ns < least_ns:
        work.prepare()
        started_ns = perf_counter_ns()
        work.run()
        spent_ns += perf_counter_ns() - started_ns
        operations += work.operations
    return spent_ns / operations


def _result(row: Row, samples: list[list[float]]) -> Result:
    peer_ns = ratio = None
    if row.peer is not None:
        peer_ns = median(sample[1] for sample in samples)
        ratio = median(sample[0] / sample[1] for sample in samples)
    return Result(
        kernel=row.kernel,
        ns=median(sample[0] for sample in samples),
        peer_name=row.peer_name,
        peer_ns=peer_ns,
        ratio=ratio,
        limit_ratio=row.limit_ratio,
        limit_ns=row.limit_ns,
        met=None if ratio is None or row.limit_ratio is None else ratio <= row.limit_ratio,
    )

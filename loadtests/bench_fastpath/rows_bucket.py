"""Token buckets: a take beside a bucket that one process keeps for itself in a Python dictionary."""

from __future__ import annotations

import mmap
from time import monotonic_ns

from fastpath.bucket import BucketTable, segment_bytes
from loadtests.bench_fastpath.row import Row, Work

CAPACITY = 100_000
INTERVAL_NS, BURST = 1_000, 1_000_000
SECRET = b"0123456789abcdef"


def rows(fast: bool) -> list[Row]:
    asked = 10 if fast else 2_000
    memory = mmap.mmap(-1, segment_bytes(CAPACITY))
    table = BucketTable(memory, CAPACITY, SECRET, create=True)
    one = [table.key("rule", "192.0.2.1")] * asked
    held = [table.key("rule", str(i)) for i in range(asked if fast else CAPACITY)]
    spread = [held[i * 7919 % len(held)] for i in range(asked)]
    for key in held:
        table.take(key, INTERVAL_NS, BURST, monotonic_ns())
    return [
        Row("bucket take, one key", taking(table, one), "Python dictionary", dictionary(one), limit_ns=300),
        Row(
            "bucket take, of 100,000 keys", taking(table, spread), "Python dictionary", dictionary(spread), limit_ns=300
        ),
        Row("bucket refused take", refusing(table, asked), limit_ns=300),
        Row("bucket key", hashing(table, asked)),
    ]


def taking(table: BucketTable, keys: list[int]) -> Work:
    def run() -> None:
        take, now_ns = table.take, monotonic_ns()
        for key in keys:
            take(key, INTERVAL_NS, BURST, now_ns)

    return Work(run, len(keys))


def refusing(table: BucketTable, count: int) -> Work:
    key, now_ns = table.key("empty"), monotonic_ns()
    table.take(key, 1 << 60, 1, now_ns)

    def run() -> None:
        take = table.take
        for _ in range(count):
            take(key, 1 << 60, 1, now_ns)

    return Work(run, count)


def dictionary(keys: list[int]) -> Work:
    full_at: dict[int, int] = {}

    def take(key: int, interval_ns: int, burst: int, now_ns: int) -> tuple[bool, int, int, int]:
        after = max(full_at.get(key, 0), now_ns) + interval_ns
        ahead = after - now_ns
        if ahead > interval_ns * burst:
            return False, 0, ahead - interval_ns * burst, ahead - interval_ns
        full_at[key] = after
        return True, (interval_ns * burst - ahead) // interval_ns, 0, ahead

    def run() -> None:
        now_ns = monotonic_ns()
        for key in keys:
            take(key, INTERVAL_NS, BURST, now_ns)

    return Work(run, len(keys))


def hashing(table: BucketTable, count: int) -> Work:
    def run() -> None:
        key = table.key
        for _ in range(count):
            key("portal principal 100000000 20", "https://id.example", "pat-0001")

    return Work(run, count)

"""Measure every row, print the table as it grows, save the figures; ends with 1 if a ratio is over its limit."""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import loadtests.bench_fastpath as package
from loadtests.bench_fastpath.measure import measure
from loadtests.bench_fastpath.report import save, table
from loadtests.bench_fastpath.row import Row
from loadtests.interruption import interruptible

ROUNDS = 15
ROUND_NS = 40_000_000


def all_rows(*, fast: bool, wanted: str = "") -> Iterator[Row]:
    """The rows of every `rows_*.py`, in the order of the files' names; `wanted` is a part of the kernel's name."""
    for module in sorted(m.name for m in pkgutil.iter_modules(package.__path__) if m.name.startswith("rows_")):
        rows: list[Row] = importlib.import_module(f"{package.__name__}.{module}").rows(fast)
        yield from (row for row in rows if wanted in row.kernel)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench_fastpath", description=__doc__)
    parser.add_argument("--fast", action="store_true", help="run everything once, judge nothing")
    parser.add_argument("--only", default="", metavar="TEXT", help="rows whose kernel's name has TEXT")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--json", type=Path, default=Path(".caregate/bench-fastpath.json"), metavar="FILE")
    options = parser.parse_args(argv)
    rounds, round_ns = (1, 0) if options.fast else (max(options.rounds, 1), ROUND_NS)
    results = []
    for row in all_rows(fast=options.fast, wanted=options.only):
        print(f"measuring {row.kernel} ...", file=sys.stderr, flush=True)
        results.append(measure(row, rounds=rounds, round_ns=round_ns))
    print(table(results))
    save(results, options.json, rounds=rounds)
    judged = [result for result in results if result.met is not None]
    print(f"{sum(bool(result.met) for result in judged)} of {len(judged)} limits met; figures in {options.json}")
    return 0 if options.fast or all(result.met for result in judged) else 1


if __name__ == "__main__":
    raise SystemExit(interruptible(main))

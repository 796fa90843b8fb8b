"""The table people read and the JSON programs read."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from loadtests.bench_fastpath.row import Result

HEADINGS = ("kernel", "ns", "peer", "ns", "ratio", "limit", "met")


def table(results: Sequence[Result]) -> str:
    """A fixed-width table, one line a row."""
    lines = [HEADINGS, *map(_cells, results)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADINGS))]
    return "\n".join(_line(line, widths) for line in [*lines[:1], tuple("-" * width for width in widths), *lines[1:]])


def _cells(result: Result) -> tuple[str, ...]:
    return (
        result.kernel,
        f"{result.ns:,.0f}",
        result.peer_name,
        "" if result.peer_ns is None else f"{result.peer_ns:,.0f}",
        "" if result.ratio is None else f"{result.ratio:.4f}",
        _limit(result),
        {None: "", True: "yes", False: "NO"}[result.met],
    )


def _limit(result: Result) -> str:
    if result.limit_ratio is not None:
        return f"{result.limit_ratio:g}"
    return "" if result.limit_ns is None else f"about {result.limit_ns:,.0f} ns"


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    aligned = (
        cell.rjust(width) if column in (1, 3, 4, 5) else cell.ljust(width)
        for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
    )
    return "  ".join(aligned).rstrip()


def save(results: Sequence[Result], path: Path, *, rounds: int) -> None:
    """Shape: {python, machine, rounds, rows: [a Result each]}."""
    document = {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "rounds": rounds,
        "rows": [asdict(result) for result in results],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n")

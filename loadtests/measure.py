"""What the callers saw: every request by kind, its time exactly, and why the failed ones failed."""

from __future__ import annotations

import math
import os
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

PORTAL_READ, PORTAL_WRITE, UNIT_CALL = KINDS = ("portal_read", "portal_write", "unit_call")
PERCENTILES = (50, 95, 99)


def percentile(ordered: Sequence[float], percent: float) -> float | None:
    """The smallest value that at least `percent` of them do not exceed (nearest rank); None of no values."""
    if not ordered:
        return None
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]


@dataclass(slots=True)
class _Series:
    times_ms: array[float] = field(default_factory=lambda: array("d"))
    failures: int = 0


class Measure:
    """Counts as the requests end. NOTE: a failed request's time counts too, or a timeout would look fast."""

    def __init__(self) -> None:
        self._series = {kind: _Series() for kind in KINDS}
        self._reasons: Counter[tuple[str, str]] = Counter()

    def add(self, kind: str, elapsed_ms: float, failure: str | None) -> None:
        """Raises: KeyError for a kind that is none of KINDS."""
        series = self._series[kind]
        series.times_ms.append(elapsed_ms)
        if failure is not None:
            series.failures += 1
            self._reasons[kind, failure] += 1

    @property
    def requests(self) -> int:
        return sum(len(series.times_ms) for series in self._series.values())

    @property
    def failures(self) -> int:
        return sum(series.failures for series in self._series.values())

    def counts(self) -> dict[str, Any]:
        """Cheap enough for every second."""
        return {"requests": self.requests, "failures": self.failures}

    def summary(self) -> dict[str, Any]:
        """Everything; sorts, so it is for the end."""
        return {
            **self.counts(),
            "kinds": {kind: _summary(series) for kind, series in self._series.items()},
            "reasons": [[kind, reason, count] for (kind, reason), count in self._reasons.most_common(20)],
        }


def _summary(series: _Series) -> dict[str, Any]:
    ordered = sorted(series.times_ms)
    times = {f"p{percent}_ms": _rounded(percentile(ordered, percent)) for percent in PERCENTILES}
    return {"requests": len(ordered), "failures": series.failures, **times}


def _rounded(value_ms: float | None) -> float | None:
    return None if value_ms is None else round(value_ms, 2)


def write_report(path: Path, report: dict[str, Any]) -> None:
    """Whole or not at all, so that a reader never sees half of it."""
    part = path.with_suffix(".part")
    part.write_bytes(orjson.dumps(report))
    os.replace(part, path)


def read_report(path: Path) -> dict[str, Any] | None:
    """None if there is none yet."""
    try:
        report: dict[str, Any] = orjson.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    return report

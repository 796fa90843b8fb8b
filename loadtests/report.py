"""What a load prints: progress, the table, the RESULT line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson

from loadtests.measure import KINDS, PERCENTILES


def progress(elapsed_s: float, rate: float, counts: dict[str, Any], fleet: dict[str, Any]) -> str:
    """One line. Units: `rate` requests a second, lately."""
    return (
        f"{elapsed_s:6.0f} s  {rate:7.0f}/s  {counts['requests']:8d} requests  {counts['failures']:5d} failures  "
        f"{fleet['connected']}/{fleet['units']} units connected"
    )


def result(summary: dict[str, Any], fleet: dict[str, Any], seconds: float) -> dict[str, Any]:
    """The RESULT object. Units: `seconds` the load's length; `*_ms` of the callers' clock, queueing included."""
    return {
        "requests": summary["requests"],
        "failures": summary["failures"],
        "units": fleet["connected"],
        "seconds": round(seconds, 1),
        "rps": round(summary["requests"] / seconds, 1),
        "kinds": summary["kinds"],
    }


def passed(final: dict[str, Any]) -> bool:
    """No failure, and every kind was really asked for: a load that asked nothing has shown nothing."""
    return final["failures"] == 0 and all(kind["requests"] for kind in final["kinds"].values())


def table(summary: dict[str, Any], fleet: dict[str, Any]) -> Iterator[str]:
    """Lines: one a kind, then why requests failed, then the fleet."""
    yield f"{'kind':<14}{'requests':>10}{'failures':>10}" + "".join(f"{f'p{p} ms':>10}" for p in PERCENTILES)
    for name in KINDS:
        kind = summary["kinds"][name]
        times = "".join(f"{_time(kind[f'p{p}_ms']):>10}" for p in PERCENTILES)
        yield f"{name:<14}{kind['requests']:>10}{kind['failures']:>10}{times}"
    for name, reason, count in summary["reasons"]:
        yield f"  {count} x {name}: {reason}"
    yield f"fleet: {fleet['connected']}/{fleet['units']} units connected, {fleet['connections']} connections,"
    yield f"       {fleet['requests']} requests answered, {fleet['lost']} connections lost{_refusals(fleet['refused'])}"


def _time(value_ms: float | None) -> str:
    return "-" if value_ms is None else f"{value_ms:.1f}"


def _refusals(refused: dict[str, int]) -> str:
    return "".join(f", {count} dials refused with {status}" for status, count in sorted(refused.items()))


def result_line(final: dict[str, Any]) -> str:
    return "RESULT " + orjson.dumps(final).decode()

from __future__ import annotations

import json
from typing import Any

import pytest

from loadtests import report
from loadtests.measure import KINDS, Measure

FLEET = {"units": 3, "connected": 2, "connections": 2, "requests": 9, "lost": 1, "refused": {"503": 4}}


def measured(**requests: int) -> dict[str, Any]:
    measure = Measure()
    for kind, count in requests.items():
        for _ in range(count):
            measure.add(kind, 1.5, None)
    return measure.summary()


def test_result_line_is_json_with_every_kind() -> None:
    summary = measured(portal_read=5, portal_write=2, unit_call=3)
    line = report.result_line(report.result(summary, FLEET, 4))
    word, _, rest = line.partition(" ")
    final = json.loads(rest)
    assert word == "RESULT"
    assert {key: final[key] for key in ("requests", "failures", "units", "seconds", "rps")} == {
        "requests": 10, "failures": 0, "units": 2, "seconds": 4, "rps": 2.5,
    }  # fmt: skip
    assert set(final["kinds"]) == set(KINDS)
    assert final["kinds"]["unit_call"] == {
        "requests": 3, "failures": 0, "p50_ms": 1.5, "p95_ms": 1.5, "p99_ms": 1.5,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("requests", "failing", "expected"),
    [
        pytest.param({"portal_read": 1, "portal_write": 1, "unit_call": 1}, None, True, id="all right"),
        pytest.param({"portal_read": 1, "portal_write": 1}, None, False, id="a kind was never asked for"),
        pytest.param({"portal_read": 1, "portal_write": 1, "unit_call": 1}, "unit_call", False, id="one failure"),
    ],
)
def test_passed(requests: dict[str, int], failing: str | None, expected: bool) -> None:
    measure = Measure()
    for kind, count in requests.items():
        for _ in range(count):
            measure.add(kind, 1.0, "status 502" if kind == failing else None)
    assert report.passed(report.result(measure.summary(), FLEET, 1)) is expected


def test_table_names_kinds_reasons_and_the_fleet() -> None:
    measure = Measure()
    measure.add("unit_call", 12.34, "status 503")
    text = "\n".join(report.table(measure.summary(), FLEET))
    assert "unit_call" in text
    assert "12.3" in text
    assert "1 x unit_call: status 503" in text
    assert "2/3 units connected" in text
    assert "1 connections lost, 4 dials refused with 503" in text

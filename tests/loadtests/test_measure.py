from __future__ import annotations

import pytest

from loadtests.measure import KINDS, PORTAL_READ, UNIT_CALL, Measure, percentile, read_report, write_report


@pytest.mark.parametrize(
    ("ordered", "percent", "expected"),
    [
        pytest.param([], 50, None, id="no values"),
        pytest.param([7.0], 99, 7.0, id="one value"),
        pytest.param([1.0, 2.0, 3.0, 4.0], 50, 2.0, id="even count takes the lower middle"),
        pytest.param([1.0, 2.0, 3.0], 50, 2.0, id="odd count takes the middle"),
        pytest.param([float(n) for n in range(1, 101)], 99, 99.0, id="99 of 1 to 100"),
        pytest.param([float(n) for n in range(1, 102)], 99, 100.0, id="99 of 1 to 101 rounds up"),
        pytest.param([1.0, 2.0], 100, 2.0, id="all of them"),
        pytest.param([1.0, 2.0], 0, 1.0, id="none of them is the smallest"),
    ],
)
def test_percentile_is_nearest_rank(ordered: list[float], percent: float, expected: float | None) -> None:
    assert percentile(ordered, percent) == expected


def test_summary_counts_each_kind_and_times_failures_too() -> None:
    measure = Measure()
    for elapsed_ms in (3.0, 1.0, 2.0):
        measure.add(PORTAL_READ, elapsed_ms, None)
    measure.add(PORTAL_READ, 900.126, "status 503")
    measure.add(UNIT_CALL, 5.0, None)
    summary = measure.summary()
    assert (summary["requests"], summary["failures"]) == (5, 1)
    assert summary["kinds"][PORTAL_READ] == {
        "requests": 4, "failures": 1, "p50_ms": 2.0, "p95_ms": 900.13, "p99_ms": 900.13,
    }  # fmt: skip
    assert summary["kinds"][UNIT_CALL]["failures"] == 0
    assert summary["reasons"] == [[PORTAL_READ, "status 503", 1]]


def test_a_kind_without_requests_has_no_percentiles() -> None:
    summary = Measure().summary()
    assert set(summary["kinds"]) == set(KINDS)
    assert summary["kinds"][PORTAL_READ] == {
        "requests": 0, "failures": 0, "p50_ms": None, "p95_ms": None, "p99_ms": None,
    }  # fmt: skip


def test_unknown_kind_is_refused() -> None:
    with pytest.raises(KeyError):
        Measure().add("portal", 1.0, None)


def test_report_is_read_back(tmp_path) -> None:
    path = tmp_path / "report.json"
    assert read_report(path) is None
    write_report(path, {"requests": 1})
    write_report(path, {"requests": 2})
    assert read_report(path) == {"requests": 2}
    assert list(tmp_path.iterdir()) == [path]

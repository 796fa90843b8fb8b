"""The kernels' benchmark runs, judges by the ratio and saves what it prints. No time is asserted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from loadtests.bench_fastpath import __main__ as bench
from loadtests.bench_fastpath.measure import measure
from loadtests.bench_fastpath.report import table
from loadtests.bench_fastpath.row import Row, Work


def busy(units: int) -> Work:
    return Work(lambda: sum(range(units)), 1)


def test_every_row_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "figures" / "bench.json"
    assert bench.main(["--fast", "--json", str(path)]) == 0
    saved = json.loads(path.read_text())
    printed = capsys.readouterr().out
    assert len(saved["rows"]) >= 6
    assert all(row["kernel"] in printed and row["ns"] > 0 for row in saved["rows"])
    assert {row["limit_ratio"] for row in saved["rows"]} >= {0.13, 0.02, 1.3}


@pytest.mark.parametrize(("units", "limit", "status"), [(1, 0.5, 0), (100_000, 0.5, 1), (100_000, None, 0)], ids=str)
def test_ratio_over_the_limit_fails(
    units: int, limit: float | None, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = Row("busy", busy(units), "peer", busy(20_000), limit_ratio=limit)
    monkeypatch.setattr(bench, "all_rows", lambda **_: iter([row]))
    monkeypatch.setattr(bench, "ROUND_NS", 0)
    assert bench.main(["--rounds", "3", "--json", str(tmp_path / "bench.json")]) == status


def test_prepare_is_not_timed_and_runs_before_each_run() -> None:
    order: list[str] = []
    work = Work(lambda: order.append("run"), 10, prepare=lambda: order.append("prepare"))
    result = measure(Row("k", work), rounds=2, round_ns=0)
    assert order == ["prepare", "run"] * 3
    assert (result.ratio, result.met) == (None, None)


def test_table_is_aligned() -> None:
    row = Row("kernel with a long name", busy(1), "peer", busy(1), limit_ratio=1000)
    lines = table([measure(row, rounds=1, round_ns=0), measure(Row("k", busy(1), limit_ns=7), rounds=1, round_ns=0)])
    heading, _, first, second = lines.splitlines()
    assert first.index("peer") == heading.index("peer")
    assert first.endswith("1000  yes")
    assert second.endswith("about 7 ns")

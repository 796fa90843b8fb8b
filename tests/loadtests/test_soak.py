"""The soak's judgement over made-up samples, and a short soak for real."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from loadtests.soak.__main__ import report, table
from loadtests.soak.samples import Sample, growth_of

ROOT = Path(__file__).resolve().parents[2]
SECONDS = os.environ.get("CAREGATE_TEST_SOAK_SECONDS", "15")
FLAT = {"rss_mib": 70.0, "descriptors": 40.0, "greenlets": 40.0}


def samples(seconds, **slopes):
    """Two workers; the second one grows by `slopes` a minute."""
    grown = [
        Sample(at, 2, {metric: value + slopes.get(metric, 0) * at / 60 for metric, value in FLAT.items()})
        for at in range(0, seconds, 5)
    ]
    return [*grown, *(Sample(at, 1, FLAT) for at in range(0, seconds, 5))]


@pytest.mark.parametrize(
    ("slopes", "excessive"),
    [
        pytest.param({}, set(), id="flat"),
        pytest.param({"rss_mib": 0.2}, set(), id="memory within its noise"),
        pytest.param({"rss_mib": 3.0}, {(2, "rss_mib")}, id="memory"),
        pytest.param({"descriptors": 10}, {(2, "descriptors")}, id="descriptors"),
        pytest.param({"greenlets": 10}, {(2, "greenlets")}, id="greenlets"),
        pytest.param({"greenlets": -30}, set(), id="shrinking"),
    ],
)
def test_growth(slopes, excessive):
    assert {(g.worker, g.metric) for g in growth_of(samples(600, **slopes), 600) if g.excessive} == excessive


def test_a_warm_up_is_no_growth():
    warm = [Sample(at, 1, {**FLAT, "rss_mib": min(70.0, 40.0 + at)}) for at in range(0, 200, 2)]
    assert not [g for g in growth_of(warm, 200) if g.excessive]


def test_too_few_samples_are_no_verdict():
    with pytest.raises(ValueError, match="worker 1 has 2 samples"):
        growth_of([Sample(at, 1, FLAT) for at in (0, 90, 95)], 100)


@pytest.mark.parametrize(
    ("slopes", "failures", "passed"),
    [({}, {}, True), ({"rss_mib": 5}, {}, False), ({}, {("portal read", "500"): 1}, False)],
    ids=["good", "grown", "wrong answer"],
)
def test_the_verdict(slopes, failures, passed):
    callers = SimpleNamespace(counts=Counter(read=3), failures=Counter(failures))
    grown = growth_of(samples(600, **slopes), 600)
    assert report(600, callers, grown)["passed"] is passed
    assert any("GREW" in line for line in table(callers, grown)) is bool(slopes)


@pytest.mark.integration
@pytest.mark.slow
def test_a_short_soak():
    result = subprocess.run(
        [sys.executable, "-m", "loadtests.soak", "--seconds", SECONDS, "--each", "1"],
        cwd=ROOT, capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    last = result.stdout.splitlines()[-1]
    assert last.startswith("RESULT "), result.stderr
    final = json.loads(last.removeprefix("RESULT "))
    assert result.returncode == 0, result.stdout
    assert min(final["turns"].values()) > 0
    assert len(final["turns"]) == 9
    assert final["growth"].keys() == FLAT.keys()

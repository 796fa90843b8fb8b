"""Twelve seconds of `make chaos`, half a minute in CI; CAREGATE_TEST_CHAOS_SECONDS makes it longer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration
SECONDS = os.environ.get("CAREGATE_TEST_CHAOS_SECONDS", "12")


def test_no_promise_is_broken_while_things_are_killed():
    run = subprocess.run(
        [sys.executable, "-m", "loadtests.chaos", "--seconds", SECONDS, "--every", "0.8"],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=float(SECONDS) + 90, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]
    result = json.loads(run.stdout.splitlines()[-1].removeprefix("RESULT "))
    assert result["passed"]
    assert sorted(result["kills"]) == ["agent", "local service", "socket cut", "socket silent, then cut", "worker"]
    assert min(result["kills"].values()) >= 1
    assert result["answered"] > 100

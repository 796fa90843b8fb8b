"""Twelve seconds of `make chaos`; CAREGATE_CHAOS_SECONDS makes it longer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration
SECONDS = os.environ.get("CAREGATE_CHAOS_SECONDS", "12")


def test_no_promise_is_broken_while_things_are_killed():
    run = subprocess.run(
        [sys.executable, "-m", "loadtests.chaos", "--seconds", SECONDS],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=float(SECONDS) + 90, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]
    result = json.loads(run.stdout.splitlines()[-1].removeprefix("RESULT "))
    assert result["passed"]
    assert sum(result["kills"].values()) >= int(SECONDS) // 4
    assert result["answered"] > 100

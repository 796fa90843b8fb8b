"""A small fleet through the whole of `make fleet`: connect, roll under load, kill."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from gateway.demo.platform import ROOT

pytestmark = pytest.mark.integration
UNITS = os.environ.get("UNITS", "40")


def test_no_request_fails_while_all_workers_are_replaced() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "loadtests.fleet_run", "--units", UNITS, "--workers", "2", "--simulators", "1",
         "--rate", "40", "--seconds", "2"],
        cwd=ROOT, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout.splitlines()[-1].removeprefix("RESULT "))
    assert (result["failed_idempotent"], result["failed_posts"], result["doubled_posts"]) == (0, 0, 0)
    assert result["failed_after_kill"] == 0
    assert result["roll_dials"] < 8, "its connections were handed over"
    assert result["requests"] > 100
    assert "rolled: 2 workers replaced" in done.stdout


def test_too_few_descriptors_are_said_at_once() -> None:
    done = subprocess.run(
        ["sh", "-c", f"ulimit -n 2000 && exec {sys.executable} -m loadtests.fleet_run --units 5000"],
        cwd=ROOT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert "RLIMIT_NOFILE" in done.stderr

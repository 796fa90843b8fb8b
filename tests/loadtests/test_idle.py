"""Idle connections for real, few of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.integration, pytest.mark.slow]


def run(connections, **options):
    command = [sys.executable, "-m", "loadtests.idle", "--connections", str(connections)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False, **options)


def test_200_are_held_and_let_go():
    result = run(200)
    assert result.returncode == 0, result.stderr
    final = json.loads(result.stdout.splitlines()[-1].removeprefix("RESULT "))
    assert final["asked_again"] == 201
    assert 200 <= final["held"] <= 204
    assert final["left_descriptors"] <= 4, "a leak would leave one for each of the 200"
    assert final["kib_each"] < 60

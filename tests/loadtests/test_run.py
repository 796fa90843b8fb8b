"""The whole load, small: real gateway, real PostgreSQL, real units, real callers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from loadtests.measure import KINDS
from tests.loadtests.interruptions import take_interruptions

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.integration, pytest.mark.slow]


def start(tmp_path: Path, *arguments: str) -> subprocess.Popen[str]:
    """The load in a session of its own, with its directories under the test's."""
    return subprocess.Popen(
        [sys.executable, "-m", "loadtests.run", "--html", str(tmp_path / "load.html"), *arguments],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)},
        preexec_fn=take_interruptions,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def processes_of(tmp_path: Path) -> list[str]:
    """Command lines and working directories of living processes that name the test's directory."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            environment = (process / "environ").read_bytes()
            command = (process / "cmdline").read_bytes()
        except OSError:
            continue
        if str(tmp_path).encode() in environment + command and int(process.name) != os.getpid():
            found.append(command.replace(b"\0", b" ").decode())
    return found


def test_a_small_load_has_no_failure_and_leaves_nothing_behind(tmp_path: Path) -> None:
    load = start(tmp_path, "--seconds", "5", "--units", "20", "--users", "10", "--rate", "40")
    output, _ = load.communicate(timeout=120)
    assert load.returncode == 0, output
    word, _, rest = output.strip().splitlines()[-1].partition(" ")
    final = json.loads(rest)
    assert (word, final["failures"], final["units"]) == ("RESULT", 0, 20)
    assert final["requests"] == sum(final["kinds"][kind]["requests"] for kind in KINDS) > 50
    for kind in KINDS:
        times = final["kinds"][kind]
        assert 0 < times["p50_ms"] <= times["p95_ms"] <= times["p99_ms"] < 15_000
    assert "<html" in (tmp_path / "load.html").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["load.html"]
    assert processes_of(tmp_path) == []


def test_ctrl_c_stops_everything(tmp_path: Path) -> None:
    load = start(tmp_path, "--seconds", "60", "--units", "5", "--users", "10", "--rate", "10")
    assert load.stdout is not None
    for line in load.stdout:
        if " requests " in line:
            break
    load.send_signal(signal.SIGINT)
    started_s = time.monotonic()
    output, _ = load.communicate(timeout=60)
    assert load.returncode == 130, output
    assert time.monotonic() - started_s < 30
    assert processes_of(tmp_path) == []
    assert "RESULT" not in output

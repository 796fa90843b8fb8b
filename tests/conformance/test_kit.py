"""The conformance kit on our own agent, and on a small one whose broken rules it must find."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OWN = ["-m", "gateway.cli.main", "agent", "--gateway", "{gateway}", "--unit", "{unit}", "--key", "{key}",
       "--target", "{target}", "--connections", "1"]  # fmt: skip
SMALL = [str(Path(__file__).with_name("small_agent.py"))]


def conformance(agent, *options, **environment):
    return subprocess.run(
        [sys.executable, "-m", "gateway.cli.main", "conformance", *options, "--agent", sys.executable, *agent],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT), **environment}, capture_output=True, text=True,
        timeout=90, check=False,
    )  # fmt: skip


def test_our_own_agent_keeps_every_rule():
    run = conformance(OWN)
    assert "BROKEN" not in run.stdout, run.stdout
    assert run.returncode == 0, run.stdout + run.stderr


BREAKABLE = [
    "handshake", "get", "ack", "body-up", "window", "at-once", "hold", "cancel", "unreachable", "deadline", "text",
    "sync", "again",
]  # fmt: skip


@pytest.fixture(scope="module")
def verdicts():
    """What the kit says of each broken rule; a few at a time, since most of it is waiting."""
    found = {}
    for start in range(0, len(BREAKABLE), 8):
        runs = {}
        for name in BREAKABLE[start : start + 8]:
            runs[name] = subprocess.Popen(
                [sys.executable, "-m", "gateway.cli.main", "conformance", "--rule", name, "--agent", sys.executable,
                 *SMALL], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT), "BREAK": name},
                stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
        for name, run in runs.items():
            output, _ = run.communicate(timeout=60)
            found[name] = (run.returncode, output)
    return found


@pytest.mark.parametrize("name", BREAKABLE)
def test_a_broken_rule_is_found(verdicts, name):
    status, output = verdicts[name]
    assert status == 1, output
    assert output.startswith(f"BROKEN  {name}"), output


def test_the_small_agent_keeps_them_otherwise():
    options = [word for name in BREAKABLE for word in ("--rule", name)]
    run = conformance(SMALL, *options)
    assert run.returncode == 0, run.stdout


@pytest.mark.parametrize("options", [["--rule", "no-such"], []], ids=["unknown rule", "no agent"])
def test_arguments(options):
    command = [sys.executable, "-m", "gateway.cli.main", "conformance", *options]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 2

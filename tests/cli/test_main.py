"""The `caregate` command as the shell runs it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "action",
    [pytest.param(["schema"], id="long"), pytest.param(["show-routes", "gateway/demo/caregate.yaml"], id="short")],
)
def test_a_reader_that_leaves_early_gets_no_complaint(action: list[str]) -> None:
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with subprocess.Popen(
        [sys.executable, "-m", "gateway.cli.main", "config", *action],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=buffered,
    ) as command:
        assert command.stdout is not None
        assert command.stderr is not None
        command.stdout.close()
        assert b"BrokenPipe" not in command.stderr.read()
    assert command.returncode == 1

"""Ctrl-C in the middle of a measurement: it ends in order, says so in a line, and leaves nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.loadtests.interruptions import take_interruptions

PROGRAM = """
import asyncio, sys, time
from loadtests.interruption import interruptible, run_loop, scratch

async def busy():
    print("runs", flush=True)
    while True:
        await asyncio.sleep(0)

def main():
    folder = scratch("caregate-test-")
    (folder / "some").touch()
    try:
        if sys.argv[1] == "asyncio":
            run_loop(busy())
        print("runs", flush=True)
        time.sleep(60)
    finally:
        print("stops", (folder / "some").exists(), flush=True)

sys.exit(interruptible(main))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("way", ["asyncio", "sleep"])
def test_it_ends_in_order(tmp_path: Path, way: str, number: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, way], cwd=Path(__file__).resolve().parents[2], text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        preexec_fn=take_interruptions,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "runs\n"
    process.send_signal(number)
    output, _ = process.communicate(timeout=30)
    assert output == "stops True\ninterrupted; everything is stopped\n"
    assert process.returncode == 128 + number
    assert not list(tmp_path.iterdir())

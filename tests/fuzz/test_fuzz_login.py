"""The fuzz target holds on damaged seeds, and runs under atheris where that is installed."""

from __future__ import annotations

import importlib.util
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

TARGET = Path(__file__).with_name("fuzz_login.py")
spec = importlib.util.spec_from_file_location("fuzz_login", TARGET)
assert spec is not None
assert spec.loader is not None
fuzz_login = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fuzz_login)


def test_damaged_seeds() -> None:
    chance = random.Random(3)
    for _ in range(3_000):
        fuzz_login.one_input(fuzz_login.damaged(chance))
    assert min(fuzz_login.accepted.values()) > 50, "what is good gets through"


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris is not installed")
def test_under_atheris(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, str(TARGET), "-runs=2000", "-max_total_time=20"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        cwd=tmp_path,
        capture_output=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr.decode()[-2000:]
    assert b"Done 2000 runs" in ended.stderr

"""The fuzz target itself runs: on seeds and mutations here, under atheris where it is installed."""

from __future__ import annotations

import importlib.util
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

TARGET = Path(__file__).with_name("fuzz_target.py")
ROOT = TARGET.parents[2]
SEEDS = [b"/", b"/a/b?c=d", b"/%7e/%C3%A9", b"/f/x/y/", b"/a;b/..;c", b"/%2e%2e/", b"/%f0%9f%98%80//", b"/a%2fb"]


def test_holds_on_mutated_seeds() -> None:
    spec = importlib.util.spec_from_file_location("fuzz_target", TARGET)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    rng = random.Random(7)
    for _ in range(20_000):
        data = bytearray(rng.choice(SEEDS) + rng.choice(SEEDS)[: rng.randrange(9)])
        for _ in range(rng.randrange(3)):
            data[rng.randrange(len(data))] = rng.choice(b"/.%;?#\\ 2eEfF0aA\x00\xff")
        module.one_input(bytes(data))


def test_runs_under_atheris(tmp_path) -> None:
    pytest.importorskip("atheris")
    for index, seed in enumerate(SEEDS):
        (tmp_path / str(index)).write_bytes(seed)
    done = subprocess.run(
        [sys.executable, str(TARGET), str(tmp_path), "-runs=20000", "-seed=1", "-max_len=64"],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Done 20000 runs" in done.stderr

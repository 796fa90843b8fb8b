"""The fuzz target holds on damaged seeds, and runs under atheris where that is installed."""

from __future__ import annotations

import importlib.util
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

TARGET = Path(__file__).with_name("fuzz_token.py")
spec = importlib.util.spec_from_file_location("fuzz_token", TARGET)
assert spec is not None
assert spec.loader is not None
fuzz_token = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fuzz_token)


def damaged(seed: bytes, chance: random.Random) -> bytes:
    data = bytearray(seed)
    for _ in range(chance.randrange(5)):
        place = chance.randrange(len(data))
        data[place : place + chance.randrange(3)] = chance.choice(
            [b"", b'"', b"{", b"\\", b"\x00", b"\xff", b"9", b"e"]
        )
    return bytes(data)


@pytest.mark.parametrize("kind", range(6))
def test_damaged_seeds(kind: int) -> None:
    chance = random.Random(kind)
    before = fuzz_token.VERIFIER.hits
    for _ in range(1500):
        body = damaged(chance.choice(fuzz_token.SEEDS), chance)
        prefix = fuzz_token.HEADER + b"\n" if kind == 3 else b""
        fuzz_token.one_input(bytes([kind]) + prefix + body)
    assert (fuzz_token.VERIFIER.hits > before) == (kind in (2, 3)), "sealed seeds are accepted, others are not"


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris is not installed")
def test_under_atheris(tmp_path: Path) -> None:
    for number, seed in enumerate(fuzz_token.SEEDS):
        (tmp_path / str(number)).write_bytes(b"\x02" + seed)
    ended = subprocess.run(
        [sys.executable, str(TARGET), "-runs=3000", "-max_total_time=20", str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        cwd=tmp_path,
        capture_output=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr.decode()[-2000:]
    assert b"Done 3000 runs" in ended.stderr

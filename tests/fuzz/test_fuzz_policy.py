"""The fuzz targets of the policy run: on their corpus and mutations of it here, under atheris where it is installed."""

from __future__ import annotations

import importlib.util
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ALPHABETS = {"scope": b"/.*? rsudcptObe\x00\xff", "search": b"=&;,%:._ ptnPs012\x00\xff"}


@pytest.mark.parametrize("name", sorted(ALPHABETS))
def test_holds_on_the_corpus_and_mutations(name: str) -> None:
    spec = importlib.util.spec_from_file_location(f"fuzz_{name}", HERE / f"fuzz_{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    seeds = [path.read_bytes() for path in sorted((HERE / "corpus" / name).iterdir())]
    assert len(seeds) >= 10
    for seed in seeds:
        module.one_input(seed)
    rng = random.Random(11)
    for _ in range(6_000):
        data = bytearray(rng.choice(seeds) + rng.choice(seeds)[: rng.randrange(9)])
        for _ in range(rng.randrange(4)):
            data[rng.randrange(len(data))] = rng.choice(ALPHABETS[name])
        module.one_input(bytes(data))


@pytest.mark.parametrize("name", sorted(ALPHABETS))
def test_runs_under_atheris(name: str, tmp_path: Path) -> None:
    pytest.importorskip("atheris")
    done = subprocess.run(
        [sys.executable, str(HERE / f"fuzz_{name}.py"), str(tmp_path), str(HERE / "corpus" / name), "-runs=5000",
         "-seed=1", "-max_len=128"],
        cwd=HERE.parents[1], env={**os.environ, "PYTHONPATH": str(HERE.parents[1])}, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Done 5000 runs" in done.stderr

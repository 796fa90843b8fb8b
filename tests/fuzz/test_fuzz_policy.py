"""The fuzz targets of the policy run: on their corpus and mutations of it here, under atheris where it is installed."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.fuzz.targets import load, run_under_atheris

HERE = Path(__file__).parent
ALPHABETS = {"scope": b"/.*? rsudcptObe\x00\xff", "search": b"=&;,%:._ ptnPs012\x00\xff"}


@pytest.mark.parametrize("name", sorted(ALPHABETS))
def test_holds_on_the_corpus_and_mutations(name: str) -> None:
    module = load(name)
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
    run_under_atheris(name, 5_000, tmp_path, str(tmp_path), str(HERE / "corpus" / name), "-max_len=128")

"""The fuzz target of tokens holds on damaged seeds, and runs under atheris where that is installed."""

from __future__ import annotations

import random
from pathlib import Path

from tests.fuzz.targets import load, run_under_atheris

fuzz_token = load("token")


def test_damaged_seeds() -> None:
    chance = random.Random(1)
    for _ in range(6000):
        fuzz_token.one_input(fuzz_token.damaged(chance))
    assert fuzz_token.VERIFIER.hits > 500, "many are accepted"
    assert fuzz_token.VERIFIER.misses > 2 * fuzz_token.VERIFIER.hits, "more are not"


def test_under_atheris(tmp_path: Path) -> None:
    run_under_atheris("token", 3_000, tmp_path, "-max_total_time=20")

"""The fuzz target of logins holds on damaged seeds, and runs under atheris where that is installed."""

from __future__ import annotations

import random
from pathlib import Path

from tests.fuzz.targets import load, run_under_atheris

fuzz_login = load("login")


def test_damaged_seeds() -> None:
    chance = random.Random(3)
    for _ in range(3_000):
        fuzz_login.one_input(fuzz_login.damaged(chance))
    assert min(fuzz_login.accepted.values()) > 50, "what is good gets through"


def test_under_atheris(tmp_path: Path) -> None:
    run_under_atheris("login", 2_000, tmp_path, "-max_total_time=20")

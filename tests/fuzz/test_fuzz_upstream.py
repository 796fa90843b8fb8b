"""The fuzz target of upstreams' answers runs, on its seeds and their mutations."""

from __future__ import annotations

import random

from tests.fuzz.targets import load


def test_holds_on_mutated_answers() -> None:
    target = load("upstream")
    chance = random.Random(7)
    for raw in target.SEEDS:
        target.one_input(raw)
    for _ in range(6_000):
        target.one_input(target.mutated(chance, chance.choice(target.SEEDS)))

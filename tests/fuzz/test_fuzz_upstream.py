"""The fuzz target of upstreams' answers runs, on its seeds and their mutations."""

from __future__ import annotations

import importlib.util
import random
import sys
from pathlib import Path


def test_holds_on_mutated_answers() -> None:
    path = Path(__file__).with_name("fuzz_upstream.py")
    spec = importlib.util.spec_from_file_location("fuzz_upstream", path)
    assert spec is not None
    assert spec.loader is not None
    target = sys.modules["fuzz_upstream"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(target)
    chance = random.Random(7)
    for raw in target.SEEDS:
        target.one_input(raw)
    for _ in range(6_000):
        target.one_input(target.mutated(chance, chance.choice(target.SEEDS)))

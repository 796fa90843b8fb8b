"""The fuzz target of HTTP itself runs, on the corpus and its mutations."""

from __future__ import annotations

import importlib.util
import random
from pathlib import Path


def test_holds_on_the_mutated_corpus() -> None:
    path = Path(__file__).with_name("fuzz_http.py")
    spec = importlib.util.spec_from_file_location("fuzz_http", path)
    assert spec is not None
    assert spec.loader is not None
    target = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(target)
    seeds = target.seeds()
    chance = random.Random(7)
    for raw in seeds:
        target.one_input(raw)
    for _ in range(8_000):
        target.one_input(target.mutated(chance, chance.choice(seeds)))

"""The fuzz target of HTTP itself runs, on the corpus and its mutations, and on what fuzzing found."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.fuzz.targets import load

HERE = Path(__file__).parent


def test_holds_on_the_mutated_corpus() -> None:
    target = load("http")
    seeds = target.seeds()
    chance = random.Random(7)
    for raw in seeds:
        target.one_input(raw)
    for _ in range(8_000):
        target.one_input(target.mutated(chance, chance.choice(seeds)))


@pytest.mark.parametrize("name", sorted(path.name for path in (HERE / "corpus").iterdir()))
def test_holds_on_what_was_found(name: str) -> None:
    target = load(name)
    found = sorted((HERE / "corpus" / name).iterdir())
    assert found
    for path in found:
        target.one_input(path.read_bytes())


def test_a_request_line_too_long_is_refused_however_it_is_cut() -> None:
    target = load("http")
    line = b"GET /" + b"a" * 400
    outcomes = [
        target.read_head(pieces) for pieces in ([line + b"\r\nHo"], [line, b"\r\nHo"], [b"\r\n", line + b"\r\nHo"])
    ]
    assert outcomes == ["refused"] * 3

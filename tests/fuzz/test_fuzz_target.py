"""The fuzz target itself runs: on seeds and mutations here, under atheris where it is installed."""

from __future__ import annotations

import random

from tests.fuzz.targets import load, run_under_atheris

SEEDS = [b"/", b"/a/b?c=d", b"/%7e/%C3%A9", b"/f/x/y/", b"/a;b/..;c", b"/%2e%2e/", b"/%f0%9f%98%80//", b"/a%2fb"]


def test_holds_on_mutated_seeds() -> None:
    module = load("target")
    rng = random.Random(7)
    for _ in range(20_000):
        data = bytearray(rng.choice(SEEDS) + rng.choice(SEEDS)[: rng.randrange(9)])
        for _ in range(rng.randrange(3)):
            data[rng.randrange(len(data))] = rng.choice(b"/.%;?#\\ 2eEfF0aA\x00\xff")
        module.one_input(bytes(data))


def test_runs_under_atheris(tmp_path) -> None:
    for index, seed in enumerate(SEEDS):
        (tmp_path / str(index)).write_bytes(seed)
    run_under_atheris("target", 20_000, tmp_path, str(tmp_path), "-max_len=64")

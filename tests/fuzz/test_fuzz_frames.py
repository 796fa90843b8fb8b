"""The fuzz target of frames itself runs, on the vectors and their mutations."""

from __future__ import annotations

import json
import random
from pathlib import Path

from fastpath.frames import encode_frame
from tests.fuzz.targets import load

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "relay-frames.json").read_text())


def test_holds_on_mutated_vectors() -> None:
    module = load("frames")
    seeds = [bytes.fromhex(vector["hex"]) for vector in VECTORS["valid"] + VECTORS["invalid"]]
    rng = random.Random(11)
    for _ in range(3_000):
        data = bytearray(rng.choice(seeds)[:400])
        for _ in range(rng.randrange(4) if data else 0):
            data[rng.randrange(len(data))] = rng.choice([0, 1, 2, 4, 8, 127, 128, 255, rng.randrange(256)])
        if rng.random() < 0.3:
            framed = encode_frame(rng.choice([0, 1, 2]), data[:100], b"abcd", rng.random() < 0.7)
            data = bytearray(framed + data[:20])
        module.one_input(bytes(data))

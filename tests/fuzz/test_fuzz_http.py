"""The fuzz target of HTTP itself runs, on the corpus and its mutations."""

from __future__ import annotations

import importlib.util
import random
import sys
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).parent
SPICE = [
    b"\r\n",
    b"\r",
    b"\n",
    b"\0",
    b" ",
    b":",
    b";",
    b",",
    b"0",
    b"5",
    b"\t",
    b"_",
    b"chunked",
    b"Host: a\r\n",
    b"%2e",
    b"\xff",
    b'"',
    b"=",
]


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def mutated(rng: random.Random, seed: bytes) -> bytes:
    data = seed
    for _ in range(rng.randrange(4)):
        at = rng.randrange(len(data) + 1)
        data = data[:at] + rng.choice(SPICE) + data[at + rng.randrange(3) :]
    return data


def test_holds_on_the_mutated_corpus() -> None:
    target = load(HERE / "fuzz_http.py")
    cases = load(HERE.parent / "corpus" / "raw_requests.py").CASES
    requests = [case.raw for case in cases if len(case.raw) < 1500]
    bodies = [raw.partition(b"\r\n\r\n")[2] for raw in requests if b"chunked\r\n" in raw]
    rng = random.Random(7)
    for raw in requests + bodies:
        target.one_input(raw)
    for _ in range(6_000):
        target.one_input(mutated(rng, rng.choice(requests)))
        target.one_input(mutated(rng, rng.choice(bodies)))

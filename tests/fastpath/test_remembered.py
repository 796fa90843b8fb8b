"""The hash table of verified tokens beside a dict, and SipHash against its authors' vectors."""

from __future__ import annotations

import random
import sys

import pytest

from fastpath.remembered import Remembered, siphash24

KEY = bytes(range(16))
SHORT = [(0, 0x726FDB47DD0E0E31), (1, 0x74F839C593DC67FD), (8, 0x93F5F5799A932462), (15, 0xA129CA6149BE45E5)]
WIDE = [(0, "a3817f04ba25a8e66df67214c7550293"), (1, "da87c1d86b99af44347659119b22fc45")]


@pytest.mark.parametrize(("size", "expected"), SHORT)
def test_siphash(size: int, expected: int) -> None:
    assert siphash24(KEY, bytes(range(size))) == expected


@pytest.mark.parametrize(("size", "expected"), WIDE)
def test_siphash_of_128_bits(size: int, expected: str) -> None:
    assert siphash24(KEY, bytes(range(size)), wide=True).to_bytes(16, "little").hex() == expected


def test_as_a_dict_does() -> None:
    chance = random.Random(1)
    table, model = Remembered(), {}
    # Few different beginnings, so that many meet in one place.
    names = [chance.randbytes(2) + b"same" + chance.randbytes(10) for _ in range(3_000)]
    for _ in range(20_000):
        name = chance.choice(names)
        if chance.random() < 0.5:
            model[name] = object()
            table.set(name, model[name])
        assert table.get(name) is model.get(name)
    assert len(table) == len(model)
    assert all(table.get(name) is value for name, value in model.items())


def test_both_halves_of_the_hash_count() -> None:
    table = Remembered()
    table.set(b"a" * 8 + b"b" * 8, 1)
    assert table.get(b"a" * 8 + b"c" * 8) is None
    assert table.get(b"c" * 8 + b"b" * 8) is None


def test_it_holds_what_it_remembers_and_lets_go_of_it() -> None:
    table, value, other = Remembered(), object(), object()
    before = sys.getrefcount(value)
    for number in range(100):
        table.set(number.to_bytes(16, "little"), value)
    assert sys.getrefcount(value) == before + 100
    for number in range(40):
        table.set(number.to_bytes(16, "little"), other)
    assert (len(table), sys.getrefcount(value)) == (100, before + 60)
    del table
    assert sys.getrefcount(value) == before
    with pytest.raises(ValueError, match="16 bytes"):
        Remembered().get(b"short")


def test_memory_that_held_something_else_is_an_empty_table() -> None:
    for _ in range(3):
        used = [bytearray(b"\xff" * 512) for _ in range(200)]
        del used
        assert Remembered().get(b"\xff" * 16) is None

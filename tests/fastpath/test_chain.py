"""Records on a hash chain: the kernel writes what the plain way would."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastpath.chain import Chain, sha256
from gateway.audit.chain import genesis, link
from gateway.audit.spool import RECORD

START = genesis("0123456789abcdef")


class Pages(Chain):
    """A chain over buffers of a fixed size."""

    def __init__(self, size: int, sequence: int = 0) -> None:
        self.pages: list[bytearray] = []
        self.page_bytes = size
        self.hash, self.sequence, self._map, self._size, self._at = START, sequence, bytearray(), 0, 0

    def _roll(self, need_bytes: int) -> None:
        if need_bytes + RECORD.size > self.page_bytes:
            raise OverflowError
        self._map = bytearray(self.page_bytes)
        self._size, self._at = self.page_bytes, 0
        self.pages.append(self._map)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.binary(max_size=300), max_size=12), st.integers(0, 2**62), st.integers(400, 1000))
def test_records_are_those_of_the_plain_way(events: list[bytes], sequence: int, size: int) -> None:
    chain = Pages(size, sequence)
    head, pages = START, [b""]
    for number, event in enumerate(events, sequence + 1):
        assert chain.append(event) == number
        head = link(head, number, event)
        record = RECORD.pack(len(event), number, head) + event
        if len(pages[-1]) + len(record) > size or not pages[-1]:
            pages.append(b"")
        pages[-1] += record
    assert (chain.hash, chain.sequence) == (head, sequence + len(events))
    assert [bytes(page) for page in chain.pages] == [page.ljust(size, b"\0") for page in pages[1:]]


def test_what_finds_no_room_is_not_added() -> None:
    chain = Pages(100)
    chain.append(b"x" * 56)
    before = (chain.hash, chain.sequence, chain._at, bytes(chain.pages[0]))
    with pytest.raises(OverflowError):
        chain.append(b"x" * 57)
    assert (chain.hash, chain.sequence, chain._at, bytes(chain.pages[0])) == before


@pytest.mark.parametrize(
    ("change", "error"),
    [
        pytest.param({"_size": 200, "_at": 60}, "mapping", id="a mapping that is smaller than was said"),
        pytest.param({"_at": -60}, "mapping", id="a position before it"),
        pytest.param({"hash": b"short"}, "hash", id="no hash"),
    ],
)
def test_nothing_is_written_outside(change: dict[str, object], error: str) -> None:
    chain = Pages(100)
    chain.append(b"x" * 50)
    for name, value in change.items():
        setattr(chain, name, value)
    with pytest.raises(ValueError, match=error):
        chain.append(b"y" * 6)
    assert chain.sequence == 1
    assert b"y" not in chain.pages[0]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.binary(max_size=200), max_size=8))
def test_the_hash_is_hashlibs(parts: list[bytes]) -> None:
    assert sha256(parts) == sha256(parts, here=False) == hashlib.sha256(b"".join(parts)).digest()


def test_the_hash_is_hashlibs_at_every_size_up_to_three_blocks() -> None:
    data = bytes(range(200))
    assert [sha256([data[:size]]) for size in range(200)] == [
        hashlib.sha256(data[:size]).digest() for size in range(200)
    ]


# FIPS 180-4's examples, from NIST's page of example values.
@pytest.mark.parametrize(
    ("message", "digest"),
    [
        (b"abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
        (
            b"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
            "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1",
        ),
    ],
)
def test_the_standards_examples(message: bytes, digest: str) -> None:
    assert sha256([message]).hex() == digest

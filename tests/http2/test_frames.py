"""Borders of frames and budgets, without a socket."""

from __future__ import annotations

import random

import pytest

from gateway.http2.frames import FrameBudget, FrameScanner, Kind, TooManyFrames

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SECOND = 1_000_000_000


def frame(kind: int, flags: int = 0, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + b"\0\0\0\1" + payload


SCRIPT = [
    (4, 0, b""),
    (1, 1, b"abc"),
    (9, 0, b"d" * 40),
    (9, 4, b""),
    (0, 0, b"x" * 300),
    (6, 0, b"12345678"),
    (0x42, 9, b""),
]
RAW = PREFACE + b"".join(frame(*one) for one in SCRIPT)


@pytest.mark.parametrize("seed", range(20))
def test_however_the_bytes_are_cut(seed: int) -> None:
    chance, scanner, seen, at = random.Random(seed), FrameScanner(), [], 0
    while at < len(RAW):
        step = chance.randrange(1, 30) if seed else len(RAW)
        seen += scanner.feed(RAW[at : at + step])
        at += step
    assert seen == [(kind, flags, len(payload)) for kind, flags, payload in SCRIPT]
    assert not scanner.inside


def test_what_is_open() -> None:
    scanner = FrameScanner()
    assert scanner.inside, "the preface is to come"
    scanner.feed(PREFACE)
    assert not scanner.inside
    scanner.feed(b"\0")
    assert (scanner.inside, scanner.inside_head) == (True, False)
    scanner.feed(frame(1, 1, b"ab")[1:])
    assert (scanner.inside, scanner.inside_head, scanner.block_bytes) == (True, True, 2), "the block goes on"
    scanner.feed(frame(9, 4, b"cde"))
    assert (scanner.inside, scanner.inside_head, scanner.block_bytes) == (False, False, 5)


BUDGETS = {
    "ping": ((6, 0, 8), FrameBudget.MAX_BARE),
    "settings": ((4, 0, 6), FrameBudget.MAX_BARE),
    "priority": ((2, 0, 5), FrameBudget.MAX_BARE),
    "unknown": ((99, 0, 0), FrameBudget.MAX_BARE),
    "empty-data": ((0, 0, 0), FrameBudget.MAX_BARE),
    "window-update": ((8, 0, 4), FrameBudget.MAX_BARE),
    "data": ((0, 0, 1), None),
    "data-end": ((0, 1, 0), None),
    "headers": ((1, 5, 10), None),
}


@pytest.mark.parametrize(("one", "most"), BUDGETS.values(), ids=BUDGETS)
def test_frames_that_carry_no_request_are_bounded(one: tuple[int, int, int], most: int | None) -> None:
    budget = FrameBudget(0, 1000)
    budget.take([one] * (most or 5_000), 0, SECOND)
    if most is not None:
        with pytest.raises(TooManyFrames):
            budget.take([one], 0, 9 * SECOND)
        budget.take([one] * most, 0, 20 * SECOND)


def test_sent_bytes_give_reason_for_updates() -> None:
    budget = FrameBudget(0, 1000)
    budget.sent(FrameBudget.BYTES_EACH_UPDATE * 500)
    budget.take([(Kind.WINDOW_UPDATE, 0, 4)] * (FrameBudget.MAX_BARE + 500), 0, SECOND)
    with pytest.raises(TooManyFrames):
        budget.take([(Kind.WINDOW_UPDATE, 0, 4)], 0, SECOND)


def test_answers_pay_for_frames() -> None:
    """A client that gives back its windows after every small answer is no flood."""
    budget = FrameBudget(0, 1000)
    for _ in range(5_000):
        budget.take([(Kind.HEADERS, 5, 10), *[(Kind.WINDOW_UPDATE, 0, 4)] * 2, (6, 0, 8)], 0, SECOND)
        budget.answered()


def test_aborted_streams_and_blocks_are_bounded() -> None:
    budget = FrameBudget(0, 1000)
    for _ in range(FrameBudget.MAX_ABORTED):
        budget.abort(SECOND)
    with pytest.raises(TooManyFrames):
        budget.abort(SECOND)
    budget.abort(20 * SECOND)
    with pytest.raises(TooManyFrames):
        budget.take([], 1001, 20 * SECOND)

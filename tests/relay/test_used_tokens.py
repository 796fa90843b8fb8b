"""Unit tokens are used once, and forgotten when they have run out."""

from __future__ import annotations

import os
import stat
from contextlib import suppress

import pytest

from gateway.errors import Overloaded
from gateway.relay.used_tokens import CLEAN_S, LEEWAY_S, UsedTokens, mark_of

A, B, C, D = (letter * 16 for letter in (b"a", b"b", b"c", b"d"))


@pytest.fixture
def worker(tmp_path):
    opened = []

    def open_one(capacity: int = 100) -> UsedTokens:
        used = UsedTokens(tmp_path / "run" / "used-tokens", capacity)
        used.open()
        opened.append(used)
        return used

    yield open_one
    for used in opened:
        used.close()


def test_used_tokens_are_forgotten_when_they_ran_out_and_never_before(worker):
    used = worker(capacity=2)
    assert used.use(A, 10.0, 0.0)
    assert not used.use(A, 10.0, 9.9)
    assert used.use(B, 20.0, 0.0)
    with pytest.raises(Overloaded):
        used.use(C, 20.0, 5.0)
    assert not used.use(A, 10.0, 9.9 + LEEWAY_S)
    assert used.use(C, 20.0, 10.0 + LEEWAY_S)
    assert used.use(A, 30.0, 20.0 + LEEWAY_S)


def test_a_token_in_its_leeway_is_for_one_dial_too(worker):
    used = worker()
    assert used.use(A, 10.0, 12.0)
    assert not used.use(A, 10.0, 12.0)
    assert not used.use(A, 10.0, 14.0)


def test_one_of_two_workers_takes_a_token_at_the_same_moment(worker):
    here, there = worker(), worker()
    assert here.use(A, 10.0, 0.0)
    assert not there.use(A, 10.0, 0.0)
    assert there.use(B, 10.0, 0.0)
    assert not here.use(B, 10.0, 0.0)
    assert [used.use(mark, 20.0, 11.0 + LEEWAY_S) for used, mark in ((here, C), (there, D))] == [True, True]


def test_a_refusal_does_not_take_the_token(worker):
    used = worker(capacity=1)
    assert used.use(A, 10.0, 0.0)
    with pytest.raises(Overloaded):
        used.use(B, 10.0, 0.0)
    assert used.use(B, 300.0, 10.0 + LEEWAY_S)


def test_a_worker_that_starts_later_knows_what_was_used(worker):
    early = worker()
    assert early.use(A, 10.0, 0.0)
    early.close()
    assert not worker().use(A, 10.0, 1.0)


def test_a_worker_that_was_away_for_more_than_there_is_room_for_knows_what_counts(worker):
    here, there = worker(capacity=4), worker(capacity=4)
    assert here.use(A, 10.0, 0.0)
    now_s = 11.0 + LEEWAY_S
    for number in range(4):
        assert there.use(bytes([number]) * 16, 300.0, now_s)
    assert [here.use(bytes([number]) * 16, 300.0, now_s) for number in range(4)] == [False] * 4


def test_memory_holds_no_more_than_what_counts(worker):
    used = worker(capacity=10)
    for number in range(100):
        assert used.use(number.to_bytes(16, "big"), number * CLEAN_S, number * CLEAN_S)
    assert len(used._marks) <= 2 + LEEWAY_S / CLEAN_S


def test_without_a_place_to_remember_no_unit_is_admitted(tmp_path):
    with pytest.raises(Overloaded):
        UsedTokens(tmp_path / "used").use(A, 10.0, 0.0)


def test_the_file_is_its_owners_alone_and_no_link_is_followed(worker, tmp_path):
    worker()
    assert stat.S_IMODE((tmp_path / "run" / "used-tokens").stat().st_mode) == 0o600
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic"):
        UsedTokens(tmp_path / "link").open()
    assert not (tmp_path / "elsewhere").exists()


def test_many_processes_take_each_token_once(worker):
    first = worker(capacity=1_000)
    children = []
    read, write = os.pipe()
    for _ in range(3):
        pid = os.fork()
        if not pid:
            with suppress(BaseException):
                used = worker(capacity=1_000)
                won = sum(used.use(number.to_bytes(16, "big"), 10.0, 0.0) for number in range(300))
                os.write(write, won.to_bytes(4, "big"))
            os._exit(0)
        children.append(pid)
    for pid in children:
        os.waitpid(pid, 0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        told = pipe.read()
    assert len(told) == 12
    assert sum(int.from_bytes(told[at : at + 4], "big") for at in (0, 4, 8)) == 300
    assert not any(first.use(number.to_bytes(16, "big"), 10.0, 0.0) for number in range(300))


def test_marks_tell_units_and_ids_apart():
    assert len({mark_of("a", "b"), mark_of("a", "c"), mark_of("b", "b"), mark_of("a", "b" * 8000)}) == 4
    assert len(mark_of("a", "b" * 8000)) == 16

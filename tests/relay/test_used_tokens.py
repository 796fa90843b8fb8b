"""Unit tokens are used once, and forgotten when they have run out."""

from __future__ import annotations

import os

import pytest

from gateway.errors import Overloaded
from gateway.relay.used_tokens import LEEWAY_S, UsedTokens, mark_of


def test_used_tokens_are_forgotten_when_they_ran_out_and_never_before():
    used = UsedTokens(capacity=2)
    assert used.use("a", 10.0, 0.0)
    assert not used.use("a", 10.0, 9.9)
    assert used.use("b", 20.0, 0.0)
    with pytest.raises(Overloaded):
        used.use("c", 20.0, 5.0)
    assert not used.use("a", 10.0, 9.9 + LEEWAY_S)
    assert used.use("c", 20.0, 10.0 + LEEWAY_S)
    assert used.use("a", 30.0, 20.0 + LEEWAY_S)


def test_a_token_in_its_leeway_is_for_one_dial_too():
    used = UsedTokens()
    assert used.use("a", 10.0, 12.0)
    assert not used.use("a", 10.0, 12.0)
    assert not used.use("a", 10.0, 14.0)


def test_one_of_two_workers_takes_a_token_at_the_same_moment(tmp_path):
    here, there = (UsedTokens(directory=tmp_path / "used") for _ in range(2))
    here.open(0.0)
    there.open(0.0)
    assert here.use("a", 10.0, 0.0)
    assert not there.use("a", 10.0, 0.0)
    assert there.use("b", 10.0, 0.0)
    assert not here.use("b", 10.0, 0.0)
    assert [used.use(mark, 20.0, 11.0 + LEEWAY_S) for used, mark in ((here, "c"), (there, "d"))] == [True, True]
    assert sorted(os.listdir(tmp_path / "used")) == ["c", "d"]


def test_without_a_place_to_remember_no_unit_is_admitted(tmp_path):
    with pytest.raises(Overloaded):
        UsedTokens(directory=tmp_path / "missing").use("a", 10.0, 0.0)


def test_what_killed_workers_left_is_taken_away(tmp_path):
    (tmp_path / "old").touch()
    os.utime(tmp_path / "old", (1_000.0, 1_000.0))
    (tmp_path / "new").touch()
    os.utime(tmp_path / "new", (1_900.0, 1_900.0))
    UsedTokens(directory=tmp_path).open(2_000.0)
    assert os.listdir(tmp_path) == ["new"]


def test_what_a_sibling_saw_counts_and_is_not_told_again():
    told = []
    here, there = UsedTokens(), UsedTokens()
    there.announce = lambda mark, expires_s: (told.append(mark), here.recall(mark, expires_s))
    assert there.use("a", 10.0, 0.0)
    assert not here.use("a", 10.0, 1.0)
    late = UsedTokens()
    for row in here.rows():
        late.recall(*row)
    assert not late.use("a", 10.0, 1.0)
    assert told == ["a"]


def test_marks_tell_units_and_ids_apart():
    assert len({mark_of("a", "b"), mark_of("a", "c"), mark_of("b", "b"), mark_of("a", "b" * 8000)}) == 4
    assert len(mark_of("a", "b" * 8000)) == 32

"""The kill checker's verdict, rule by rule, the callers' judgement of what they are answered, and what is killed."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from types import SimpleNamespace

import pytest

from loadtests.chaos.__main__ import result, table
from loadtests.chaos.callers import Attempt, Caller, Records
from loadtests.chaos.kills import Kill, Killer
from loadtests.chaos.verdict import judge, read_journals


def attempt(name="1-1.1", method="POST", told="answered", **options):
    return Attempt(name.partition(".")[0], name, method, told=told, **options)


OVERLOADED = {"told": "problem", "code": "unit-overloaded", "delivery": "not_dispatched"}
CASES = [
    ("fine", [attempt()], {"1-1.1": 1}, None),
    ("lost, ran", [attempt(told="broken")], {"1-1.1": 1}, None),
    ("lost, did not run", [attempt(told="broken")], {}, None),
    ("unknown, ran", [attempt(told="problem", delivery="unknown")], {"1-1.1": 1}, None),
    ("not dispatched, did not run", [attempt(**OVERLOADED)], {}, None),
    ("ran twice", [attempt(method="GET")], {"1-1.1": 2}, "ran_twice"),
    ("not dispatched, ran", [attempt(**OVERLOADED)], {"1-1.1": 1}, "not_dispatched_ran"),
    ("answered, did not run", [attempt()], {}, "answered_without_running"),
    ("slow", [attempt(took_s=3.1)], {"1-1.1": 1}, "hanging"),
    ("gave up", [attempt(told="broken", fault="hanging")], {}, "hanging"),
    ("mixed up", [attempt(fault="the answer to another request")], {"1-1.1": 1}, "answered_wrongly"),
    ("POST twice", [attempt("1-1.1", **OVERLOADED), attempt("1-1.2")], {"1-1.2": 1, "1-1.1": 1}, "post_ran_twice"),
    (
        "key, run once",
        [attempt("1-1.key", told="broken", keyed=True), attempt("1-1.key", keyed=True)],
        {"1-1.key": 1},
        None,
    ),
    (
        "key, run twice",
        [attempt("1-1.key", told="broken", keyed=True), attempt("1-1.key", keyed=True)],
        {"1-1.key": 2},
        "ran_twice",
    ),
    (
        "key, refused first",
        [attempt("1-1.key", keyed=True, **OVERLOADED), attempt("1-1.key", keyed=True)],
        {"1-1.key": 1},
        None,
    ),
    ("GET twice", [attempt("1-1.1", "GET", "broken"), attempt("1-1.2", "GET")], {"1-1.2": 1, "1-1.1": 1}, None),
]


@pytest.mark.parametrize(("attempts", "runs", "broken"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_verdict(attempts, runs, broken):
    verdict = judge(attempts, Counter(runs))
    assert verdict.passed is (broken is None)
    if broken is not None:
        assert verdict.rules()[broken]


def test_a_caller_knows_his_own_answer():
    caller = Caller(1, "token", ["unit"], Records(), 1)
    mine, another = attempt("1-1.1", told="broken"), attempt("1-2.1", told="broken")
    for one in (mine, another):
        caller._judge(one, 200, b"1-1.1\nxxx")
    assert (mine.told, mine.fault) == ("answered", "")
    assert another.fault


def test_half_a_request_has_no_answer():
    half = attempt("1-1.1", told="broken", stalls=True)
    Caller(1, "token", ["unit"], Records(), 1)._judge(half, 200, b"1-1.1\nxxx")
    assert half.fault


def test_journals_are_counted(tmp_path):
    (tmp_path / "a").write_text("1-1.1 0\n1-1.1 0\n")
    assert read_journals([tmp_path / "a", tmp_path / "none"]) == {"1-1.1": 2}


class Line:
    """A line that has no connection at first."""

    def __init__(self, empty=0):
        self.empty = empty

    def cut(self, dice):
        self.empty -= 1
        return self.empty < 0

    async def silence(self, dice):
        return self.cut(dice)


PLATFORM = SimpleNamespace(units=("u",), workers=1, worker_pids=lambda: [4711], restart=lambda name: None)


@pytest.fixture
def killer(monkeypatch):
    monkeypatch.setattr("loadtests.chaos.kills.os.kill", lambda pid, number: None)
    return lambda line, seed: Killer(PLATFORM, line, 0.0, random.Random(seed))


def after(killer, turns):
    async def take_turns():
        for _ in range(turns):
            await killer.once()

    asyncio.run(take_turns())
    return killer.kills


@pytest.mark.parametrize("seed", range(8))
def test_every_kind_of_kill_comes_in_its_round(killer, seed):
    assert after(killer(Line(), seed), len(Kill)) == Counter(list(Kill))
    assert after(killer(Line(), seed), 3 * len(Kill)) == Counter(3 * list(Kill))


@pytest.mark.parametrize("seed", range(8))
def test_what_could_not_be_killed_is_tried_again(killer, seed):
    assert after(killer(Line(empty=3), seed), len(Kill) + 3) == Counter(list(Kill))


@pytest.mark.parametrize("missing", [None, *Kill], ids=str)
def test_a_run_without_a_kind_of_kill_proves_nothing(missing):
    kills = Counter(kill for kill in Kill if kill is not missing)
    attempts = [attempt()]
    verdict = judge(attempts, Counter({"1-1.1": 1}))
    found = result(SimpleNamespace(seconds=30), attempts, kills, verdict)
    assert found["passed"] is (missing is None)
    assert (f"never killed: {missing.value}" if missing else "") in "\n".join(table(attempts, kills, verdict))

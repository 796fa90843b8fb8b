"""The pace at which the units of a leaving worker are asked to dial again."""

from __future__ import annotations

import time

import pytest

from gateway.relay.moving import MOVING, Moves


@pytest.mark.parametrize(
    ("elapsed_s", "asked", "moving", "due"),
    [
        pytest.param(0.0, 0, 0, 1, id="the first at once"),
        pytest.param(0.1, 1, 0, 80, id="by the rate"),
        pytest.param(0.1, 81, 80, 0, id="no more than the rate"),
        pytest.param(5.0, 701, 250, 6, id="siblings are slow: as many as have left"),
        pytest.param(5.0, 701, MOVING + 50, 0, id="siblings take nobody in"),
        pytest.param(10.0, 600, MOVING, 1401 - 600, id="siblings take nobody in, and the grace goes by"),
        pytest.param(10.0, 1500, MOVING, 0, id="ahead of the grace"),
    ],
)
def test_as_many_as_siblings_take_in_within_the_grace(elapsed_s, asked, moving, due) -> None:
    moves = Moves(800, connections=1_400, grace_s=20.0)
    moves.asked(asked)
    assert moves.due(elapsed_s, moving) == due


def test_a_short_grace_beats_the_rate() -> None:
    assert Moves(800, connections=4_000, grace_s=2.0).due(1.0, MOVING) == 4_001


@pytest.fixture
def workers(rig):
    """One that leaves next, one of its age, one that is new, all in one mesh."""
    leaving, old, new = workers = [rig.worker() for _ in range(3)]
    rig.until(lambda: all(len(worker.relay.fabric.siblings) == 2 for worker in workers))
    began_s = time.monotonic() - 60
    for worker in (leaving, old):
        worker.relay._began_s = began_s
        for link in worker.relay.fabric._asking:
            if link.name != new.relay.fabric.name:
                link.began_s = began_s
    return workers


def held(rig, workers, number=1):
    """How many connections each worker holds, once there are so many."""
    rig.until(lambda: sum(len(worker.relay._connections) for worker in workers) == number)
    return [len(worker.relay._connections) for worker in workers]


def test_while_workers_are_replaced_a_unit_is_given_to_a_new_one(rig, workers):
    leaving, old, new = workers
    leaving.relay.registry.sibling_left_s = time.monotonic()
    rig.unit(leaving)
    assert held(rig, workers) == [0, 0, 1]
    new.relay.registry.sibling_left_s = time.monotonic()
    rig.unit(new, index=1)
    assert held(rig, workers, 2)[2] == 1, "the second connection is not where the first is"


@pytest.mark.parametrize("ago_s", [float("inf"), 60.0])
def test_else_a_unit_stays_where_it_has_dialled(rig, workers, ago_s):
    leaving = workers[0]
    leaving.relay.registry.sibling_left_s = time.monotonic() - ago_s
    rig.unit(leaving)
    assert held(rig, workers) == [1, 0, 0]


def test_a_new_worker_keeps_who_dials_it(rig, workers):
    new = workers[2]
    new.relay.registry.sibling_left_s = time.monotonic()
    rig.unit(new)
    assert held(rig, workers) == [0, 0, 1]


def test_a_sibling_that_sends_a_unit_away_is_noticed(rig, workers):
    leaving, old, _ = workers
    rig.unit(leaving)
    rig.until(lambda: any(old.relay.registry._units))
    assert old.relay.registry.sibling_left_s == float("-inf")
    (connection,) = leaving.relay._connections
    connection.drain(0, "draining", retry_ms=0, jitter_ms=0)
    rig.until(lambda: time.monotonic() - old.relay.registry.sibling_left_s < 10)

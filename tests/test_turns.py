"""Turns: so many at once, the rest in line, and nobody's turn is lost however he leaves."""

from __future__ import annotations

import time

import gevent
import pytest

from gateway.turns import Turns

SECOND_NS = 1_000_000_000


def take(turns: Turns, within_ns: int = SECOND_NS) -> bool:
    if turns.free:
        turns.free -= 1
        return True
    return turns.wait(time.monotonic_ns() + within_ns)


def test_first_come_first_served() -> None:
    turns, served = Turns(2), []

    def use(name: int) -> None:
        assert take(turns)
        served.append(name)
        gevent.sleep(0)
        turns.give_back()

    gevent.joinall([gevent.spawn(use, name) for name in range(10)], raise_error=True)
    assert served == list(range(10))
    assert (turns.free, turns.line) == (2, 0)


def test_a_turn_that_does_not_come_in_time() -> None:
    turns = Turns(1)
    assert take(turns)
    beside = gevent.spawn(gevent.sleep, 1)
    assert not take(turns, 1)
    beside.kill()
    assert turns.line == 0
    turns.give_back()
    assert turns.free == 1


@pytest.mark.parametrize("called", [False, True], ids=["in line", "just called"])
def test_a_killed_waiter_leaves_the_turn_to_others(called: bool) -> None:
    turns = Turns(1)
    assert take(turns)
    waiter = gevent.spawn(take, turns)
    gevent.sleep(0)
    assert turns.line == 1
    gevent.get_hub().loop.run_callback(waiter.throw, gevent.GreenletExit)
    if called:
        turns.give_back()
    waiter.join()
    if not called:
        turns.give_back()
    assert (turns.free, turns.line) == (1, 0)
    assert take(turns)


def test_whoever_was_called_is_not_late() -> None:
    turns = Turns(1)
    assert take(turns)
    waiter = gevent.spawn(take, turns, 1)
    gevent.sleep(0)
    turns.give_back()
    waiter.join()
    assert waiter.value is True
    assert turns.free == 0

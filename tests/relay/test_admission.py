"""Admission of dials: by rate, by how many are open, by how long they waited; and a time of its own for each."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import pytest

from gateway.errors import Overloaded
from gateway.relay.admission import KEPT, LATE_MS, LEAST, LEAST_WINDOW, MAX_WAIT_S, TOO_LATE_MS, WINDOW, DialGate


@pytest.fixture
def clock():
    return SimpleNamespace(now=100.0)


def refusal(gate: DialGate, waited_ms: int = 0) -> int:
    with pytest.raises(Overloaded) as caught:
        gate.admit(waited_ms)
    assert caught.value.retry_after_s is not None
    return caught.value.retry_after_s


def test_by_rate(clock):
    gate = DialGate(10, clock=lambda: clock.now)
    for _ in range(10):
        gate.admit()
    assert refusal(gate) == 1
    clock.now += 0.11
    gate.admit()


def test_by_how_many_have_not_said_hello(clock):
    gate = DialGate(1_000, 3, lambda: clock.now)
    for _ in range(3):
        gate.admit()
        gate.opened()
    refusal(gate)
    gate.settled()
    gate.admit()


def test_the_window_of_open_dials_follows_the_hellos(clock):
    gate = DialGate(1_000, 200, lambda: clock.now)
    assert gate.window == WINDOW
    for _ in range(300):
        gate.opened()
        gate.settled(True)
    assert gate.window == 200
    for _ in range(40):
        clock.now += 0.5
        gate.opened()
        gate.settled(False)
    assert gate.window == LEAST_WINDOW
    for _ in range(8):
        gate.admit()
        gate.opened()
    refusal(gate)


@pytest.mark.parametrize(("waited_ms", "admitted"), [(0, True), (LATE_MS, True), (LATE_MS + 1, False)])
def test_by_how_long_it_waited_at_the_door(clock, waited_ms, admitted):
    gate = DialGate(1_000, clock=lambda: clock.now)
    if admitted:
        gate.admit(waited_ms)
    else:
        refusal(gate, waited_ms)


def test_where_all_are_late_a_few_are_let_in(clock):
    gate = DialGate(1_000, clock=lambda: clock.now)
    admitted = 0
    for _ in range(1_000):
        clock.now += 0.01
        try:
            gate.admit(TOO_LATE_MS)
            admitted += 1
        except Overloaded:
            pass
    assert admitted == pytest.approx(10 * 1_000 * LEAST, abs=2)


@pytest.mark.parametrize(("waited_ms", "share"), [(LATE_MS + 300, 0.9), ((LATE_MS + TOO_LATE_MS) // 2, 0.5)])
def test_the_longer_they_waited_the_fewer_are_let_in(clock, waited_ms, share):
    gate = DialGate(1_000, clock=lambda: clock.now)
    admitted = 0
    for _ in range(1_000):
        with contextlib.suppress(Overloaded):
            gate.admit(waited_ms)
            admitted += 1
    assert admitted == pytest.approx(1_000 * share, abs=2)


def test_the_time_of_a_late_one_is_not_before_those_who_wait_now_are_through(clock):
    gate = DialGate(1_000, clock=lambda: clock.now)
    assert refusal(gate, TOO_LATE_MS) == TOO_LATE_MS // 1_000 + 1


def test_late_ones_come_again_as_fast_as_dials_are_let_in(clock):
    gate = DialGate(1_000, clock=lambda: clock.now)
    for _ in range(5):
        for _ in range(200):
            clock.now += 0.005
            gate.admit()
        with contextlib.suppress(Overloaded):
            gate.admit(TOO_LATE_MS)
    clock.now += 0.01
    gate.admit()
    assert gate.pace_per_s == pytest.approx(200, rel=0.05)


def test_a_queue_of_late_dials_does_not_hide_what_the_worker_can_do(clock):
    """While it works off those that nobody waits for any more it lets in next to nothing."""
    gate = DialGate(1_000, dials_open=100_000, clock=lambda: clock.now)
    for _ in range(600):
        gate.admit()
    for _ in range(5):
        clock.now += 1.0
        with contextlib.suppress(Overloaded):
            gate.admit(TOO_LATE_MS)
    assert gate.pace_per_s == pytest.approx(600 * KEPT**4, rel=0.01)


def test_each_that_is_refused_gets_a_time_of_its_own(clock):
    gate = DialGate(512, 0, lambda: clock.now)
    waits = [refusal(gate) for _ in range(320)]
    assert waits == sorted(waits)
    assert [waits.count(second) for second in (1, 2, 3)] == [128, 128, 64]
    assert max(refusal(gate) for _ in range(10_000)) == MAX_WAIT_S


def test_the_pace_falls_while_dials_are_late_and_rises_again(clock):
    gate = DialGate(1_000, clock=lambda: clock.now)
    paces = []
    for waited_ms in [LATE_MS + 1] * 10 + [0] * 20:
        clock.now += 1
        with contextlib.suppress(Overloaded):
            gate.admit(waited_ms)
        paces.append(gate.pace_per_s)
    assert paces[:10] == sorted(paces[:10], reverse=True)
    assert paces[1:3] == pytest.approx([150, 75])
    assert min(paces) == 1_000 * LEAST
    assert paces[-1] == pytest.approx(1_000)

"""Breaker and retry budget with an injected clock."""

from __future__ import annotations

from gateway.upstream.breaker import FAILURES_TO_OPEN, FIRST_PAUSE_NS, LONGEST_PAUSE_NS, PROBE_NS, Breaker, RetryBudget

START = 10**12


def opened() -> Breaker:
    breaker = Breaker()
    for _ in range(FAILURES_TO_OPEN):
        breaker.failed(START)
    return breaker


def test_closed_until_enough_failures_in_a_row() -> None:
    breaker = Breaker()
    for _ in range(FAILURES_TO_OPEN - 1):
        breaker.failed(START)
    breaker.succeeded()
    for _ in range(FAILURES_TO_OPEN - 1):
        breaker.failed(START)
    assert breaker.admit(START) == 0
    breaker.failed(START)
    assert breaker.admit(START) == FIRST_PAUSE_NS


def test_one_probe_after_the_pause() -> None:
    breaker = opened()
    assert breaker.admit(START + FIRST_PAUSE_NS - 1) == 1
    assert breaker.admit(START + FIRST_PAUSE_NS) == 0
    assert breaker.admit(START + FIRST_PAUSE_NS) > 0


def test_a_good_probe_closes() -> None:
    breaker = opened()
    breaker.admit(START + FIRST_PAUSE_NS)
    breaker.succeeded()
    assert [breaker.admit(START + FIRST_PAUSE_NS) for _ in range(3)] == [0, 0, 0]


def test_a_bad_probe_doubles_the_pause_up_to_a_bound() -> None:
    breaker, now, pauses = opened(), START, []
    for _ in range(8):
        pauses.append(breaker.admit(now))
        now += pauses[-1]
        assert breaker.admit(now) == 0
        breaker.failed(now)
    assert pauses == [min(FIRST_PAUSE_NS * 2**i, LONGEST_PAUSE_NS) for i in range(8)]


def test_failures_of_calls_already_under_way_do_not_lengthen_the_pause() -> None:
    breaker = opened()
    for _ in range(10):
        breaker.failed(START + 1)
    assert breaker.admit(START + FIRST_PAUSE_NS) == 0


def test_a_probe_that_tells_nothing_frees_the_next() -> None:
    breaker = opened()
    assert breaker.admit(START + FIRST_PAUSE_NS) == 0
    breaker.unknown()
    assert breaker.admit(START + FIRST_PAUSE_NS) == 0


def test_a_lost_probe_is_given_up() -> None:
    breaker = opened()
    assert breaker.admit(START + FIRST_PAUSE_NS) == 0
    assert breaker.admit(START + FIRST_PAUSE_NS + PROBE_NS) == 0


def test_budget_is_a_fifth_and_a_reserve() -> None:
    budget = RetryBudget()
    repeats = 0
    for _ in range(1000):
        budget.first_try()
        repeats += budget.take()
    assert repeats == 203


def test_unused_budget_is_bounded() -> None:
    budget = RetryBudget()
    for _ in range(10_000):
        budget.first_try()
    assert sum(budget.take() for _ in range(100)) == RetryBudget.MOST

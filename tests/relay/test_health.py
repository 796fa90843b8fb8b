"""When a connection that answers pings is taken out: one session, looked at as the relay does."""

from __future__ import annotations

import pytest

from gateway.relay import frames as fr
from gateway.relay.core import Limits
from gateway.relay.health import IDLE_LOOKS, LOOK_S, LOOKS, Health
from gateway.relay.session import GatewaySession


@pytest.fixture
def session() -> GatewaySession:
    made = GatewaySession(Limits(), 0.0)
    made.receive(fr.encode(fr.Hello("a", "i", 0)), 0.0)
    made.welcome(fr.Welcome("c", 1), 0.0, fr.Hello("a", "i", 0))
    return made


def ask(session: GatewaySession, *, acked: bool, hold: bool = False) -> int:
    request = fr.Request("r", "GET", "/", [])
    request.hold = hold
    stream = session.send_request(request, 1_000.0)
    session.data_to_send(0.0)
    if acked:
        session.receive(fr.encode(fr.Ack(stream)), 0.0)
    return stream


def verdicts(health: Health, session: GatewaySession, looks: int) -> list[str]:
    return [health.look(session, (n + 1) * LOOK_S) for n in range(looks)]


def test_requests_that_are_never_acknowledged(session):
    health = Health()
    ask(session, acked=False)
    # the first look sees that it was asked, the next ones that it still waits
    assert verdicts(health, session, 1 + LOOKS) == [""] * LOOKS + ["slow-ack"]


@pytest.mark.parametrize(
    ("acked", "hold"), [(True, False), (False, True)], ids=["a slow answer is the service's", "held by the caller"]
)
def test_what_waits_for_something_else_is_no_fault(session, acked, hold):
    health = Health()
    ask(session, acked=acked, hold=hold)
    assert set(verdicts(health, session, 10)) == {""}


def test_one_in_more_than_a_hundred_is_no_fault(session):
    health = Health()
    ask(session, acked=False)
    for look in range(10):
        for _ in range(101):
            stream = ask(session, acked=True)
            session.reset(stream, fr.ResetCode.CANCEL)
        session.data_to_send(0.0)
        assert health.look(session, look * LOOK_S) == ""


def test_deadlines_that_pass_without_an_ack_count_too(session):
    health = Health()
    found = []
    for look in range(LOOKS):
        session.reset(ask(session, acked=False), fr.ResetCode.DEADLINE)
        health.missed += 1
        found.append(health.look(session, look * LOOK_S))
    assert found == [""] * (LOOKS - 1) + ["slow-ack"]


def test_a_ping_that_is_never_answered(session):
    health = Health()
    session.tick(18.0)
    for now_s in range(18, 18 + 70, 5):
        session.receive(fr.encode(fr.Ping(b"12345678")), float(now_s))
        assert health.look(session, float(now_s)) == ""
    assert health.look(session, 89.0) == "deaf"


def test_a_unit_that_stays_although_it_was_asked_to_leave(session):
    health = Health()
    session.go_away(fr.GoAwayCode.DRAIN, "draining")
    session.data_to_send(0.0)
    assert verdicts(health, session, IDLE_LOOKS + 1)[-2:] == ["", "stays"]

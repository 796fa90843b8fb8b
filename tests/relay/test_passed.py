"""A session that another process goes on with: whatever it had reached, the unit notices nothing."""

from __future__ import annotations

import dataclasses

import msgspec
import pytest

from gateway.relay import events as ev
from gateway.relay import frames as fr
from gateway.relay.frames import GoAwayCode, ResetCode
from gateway.relay.passed import SessionState
from gateway.relay.session import GatewaySession, Limits, State
from tests.relay.test_session import SMALL, answer, deliver, pair, request

decode_state = msgspec.json.Decoder(SessionState).decode


def passed(gateway, limits=SMALL):
    """The session as another process has it; a unit's has a token that runs out."""
    gateway.token_expires_s = min(gateway.token_expires_s, 1_000.0)
    state = gateway.state_to_pass()
    assert state is not None
    known = decode_state(msgspec.json.encode(state))
    assert known == state
    return GatewaySession.resumed(limits, known)


def exchange(gateway, unit, body=b"body", reply=b"reply", now_s=0.0):
    """One request and its answer; the stream. All of it is consumed."""
    stream = gateway.send_request(request(), now_s + 30.0, body)
    (event,) = deliver(gateway, unit, now_s)
    unit.consumed(stream, len(event.body))
    answer(unit, stream, reply)
    events = deliver(unit, gateway, now_s)
    assert [type(event) for event in events] == [ev.Acked, ev.ResponseReceived]
    gateway.consumed(stream, len(reply))
    return stream


def idle(gateway, unit): ...


def used(gateway, unit):
    for _ in range(7):
        exchange(gateway, unit, b"b" * 300, b"r" * 300)


def leased(gateway, unit):
    unit.send_lease(2)
    deliver(unit, gateway)


def pinged(gateway, unit):
    gateway.tick(gateway.next_deadline_s)
    gateway.data_to_send(15.0)


def silent(gateway, unit):
    gateway.tick(21.0)
    gateway.data_to_send(21.0)
    assert gateway.state is State.SUSPECT


def cancelled(gateway, unit):
    stream = gateway.send_request(request(), 30.0)
    deliver(gateway, unit)
    gateway.reset(stream, ResetCode.CANCEL)
    gateway.data_to_send(0.0)


@pytest.mark.parametrize("reach", [idle, used, leased, pinged, silent, cancelled])
def test_both_sides_go_on(reach):
    gateway, unit = pair()
    reach(gateway, unit)
    following = passed(gateway, Limits())
    for name in ("_receive_credit", "_owed", "max_streams", "_agreed_streams", "max_frame", "conn_window", "ping_s"):
        assert getattr(following, name) == getattr(gateway, name), name
    assert following.outbox.credit == gateway.outbox.credit
    assert following.next_deadline_s <= gateway.next_deadline_s
    last = gateway.last_stream
    for number in range(40):
        assert exchange(following, unit, b"b" * 900, b"r" * 900) == (last or -1) + 2 * (number + 1)


def test_a_lease_can_be_lifted_up_to_what_was_agreed():
    gateway, unit = pair()
    leased(gateway, unit)
    following = passed(gateway)
    assert following.max_streams == 2
    unit.send_lease(1_000)
    deliver(unit, following)
    assert following.max_streams == SMALL.max_streams


def test_a_ping_that_is_under_way_is_answered_to_who_has_it_now():
    gateway, unit = pair()
    due_s = gateway.next_deadline_s
    gateway.tick(due_s)
    messages = gateway.data_to_send(due_s)
    following = passed(gateway)
    assert following.unanswered_ping_s == due_s
    for message in messages:
        unit.receive(message, due_s)
    deliver(unit, following, due_s + 0.25)
    assert following.unanswered_ping_s is None
    assert following.rtt_s == pytest.approx(0.25)


def test_its_time_goes_on():
    gateway, unit = pair()
    gateway.token_expires_s = 2.0
    following = passed(gateway)
    assert following.tick(1.9) == []
    assert following.state is State.ACTIVE
    following.tick(2.0)
    assert (following.state, following.close_reason) == (State.DRAINING, "token-expired")
    (event,) = deliver(following, unit)
    assert event.code == GoAwayCode.AUTH_EXPIRED


def test_silence_counts_from_the_last_frame():
    gateway, unit = pair()
    following = passed(gateway)
    following.tick(20.0)
    assert following.state is State.SUSPECT
    assert [type(event) for event in following.tick(35.0)] == [ev.SessionClosed]


def test_late_frames_of_streams_that_ended_are_late_and_others_a_violation():
    gateway, unit = pair()
    stream = gateway.send_request(request(), 30.0)
    deliver(gateway, unit)
    answer(unit, stream, b"late")
    gateway.reset(stream, ResetCode.CANCEL)
    gateway.data_to_send(0.0)
    following = passed(gateway)
    assert deliver(unit, following) == []
    assert following._owed == gateway._owed + len(b"late")
    events = following.receive(fr.encode(fr.Ack(stream + 2)), 0.0)
    assert [event.reason for event in events] == ["violation"]


def opened(gateway, unit):
    gateway.send_request(request(), 30.0)


def sent(gateway, unit):
    opened(gateway, unit)
    deliver(gateway, unit)


def unread(gateway, unit):
    stream = gateway.send_request(request(), 30.0)
    deliver(gateway, unit)
    answer(unit, stream, b"reply")
    deliver(unit, gateway)


def going_away(gateway, unit):
    gateway.go_away(GoAwayCode.DRAIN)
    gateway.data_to_send(0.0)


def ended(gateway, unit):
    gateway.fail_all()


def about_to_write(gateway, unit):
    gateway.accept_token(1, 100.0)


@pytest.mark.parametrize("reach", [opened, sent, unread, going_away, ended, about_to_write])
def test_what_is_under_way_is_not_passed(reach):
    gateway, unit = pair()
    reach(gateway, unit)
    assert gateway.state_to_pass() is None


def test_one_that_has_not_said_hello_is_not_passed():
    assert GatewaySession(SMALL, 0.0).state_to_pass() is None


@pytest.mark.parametrize(
    "change",
    [
        {"max_streams": 9},
        {"max_streams": -1},
        {"agreed_streams": 1 << 33},
        {"conn_window": 1 << 31},
        {"stream_window": -1},
        {"owed": 3_001},
        {"owed": -1},
        {"max_frame": 0},
        {"max_frame": 131_073},
        {"credit": -1},
        {"credit": 1 << 31},
        {"last_stream": 1 << 32},
        {"last_stream": 1.5},
        {"ping_count": -1},
        {"ping_count": 1 << 63},
        {"timed_ping": (1, 1.0)},
        {"timed_ping": (-1, 1.0)},
        {"timed_ping": (0,)},
        {"dead_s": 0.0},
        {"next_ping_s": None},
        {"rtt_s": "fast"},
    ],
    ids=str,
)
def test_a_session_that_cannot_be_is_refused(change):
    gateway, _ = pair()
    gateway.token_expires_s = 1_000.0
    state = dataclasses.asdict(gateway.state_to_pass())
    decode_state(msgspec.json.encode(state))
    with pytest.raises(msgspec.ValidationError):
        decode_state(msgspec.json.encode({**state, **change}))

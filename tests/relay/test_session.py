"""Both sides of a connection, back to back, by hand. See test_simulation for what chance does."""

from __future__ import annotations

import random

import pytest

from gateway.errors import Delivery
from gateway.relay import events as ev
from gateway.relay import frames as fr
from gateway.relay.core import NotSendable
from gateway.relay.decoding import decode
from gateway.relay.frames import GoAwayCode, ResetCode
from gateway.relay.session import GatewaySession, Limits, State, UnitSession

SMALL = Limits(max_streams=8, stream_window=1_000, conn_window=3_000, max_frame=1_100)


def pair(limits=SMALL, unit_limits=None, now_s=0.0):
    """An active gateway and unit."""
    unit_limits = unit_limits or limits
    hello = fr.Hello(
        "sim", "one", 0, [], unit_limits.max_streams, unit_limits.stream_window, unit_limits.conn_window,
        unit_limits.max_frame,
    )  # fmt: skip
    gateway, unit = GatewaySession(limits, now_s, lambda: 0.5), UnitSession(unit_limits, now_s, hello, lambda: 0.5)
    (event,) = deliver(unit, gateway, now_s)
    welcome = fr.Welcome(
        "c", 1, "", 0, [], limits.max_streams, limits.stream_window, limits.conn_window, limits.max_frame,
        round(limits.ping_s * 1000), round(limits.dead_s * 1000),
    )  # fmt: skip
    gateway.welcome(welcome, now_s, event.hello)
    assert isinstance(deliver(gateway, unit, now_s)[0], ev.WelcomeReceived)
    return gateway, unit


def deliver(source, target, now_s=0.0):
    events = []
    while source.has_frames:
        for message in source.data_to_send(now_s):
            events += target.receive(message, now_s)
    return events


def request(method="POST", **options):
    return fr.Request("id", method, "/x", [], **options)


def answer(unit, stream, body=b"", status=200, length=None, end=True):
    unit.send_ack(stream)
    unit.send_response(stream, fr.Response(status, [], length), body, end)


# --- one outcome, by hand


@pytest.mark.parametrize("size", [1_000, 1_060, 1_100, 3_000])
def test_a_whole_answer_keeps_to_the_frame(size):
    limits = Limits(max_streams=8, stream_window=5_000, conn_window=9_000, max_frame=1_100)
    gateway, unit = pair(limits)
    stream = gateway.send_request(request("GET"), 30.0, b"", True)
    deliver(gateway, unit)
    answer(unit, stream, b"x" * size)
    messages = []
    while unit.has_frames:
        messages += unit.data_to_send(0.0)
    assert max(map(len, messages)) <= limits.max_frame
    told = [event for message in messages for event in gateway.receive(message, 0.0)]
    assert b"".join(getattr(event, "body", b"") for event in told) == b"x" * size
    assert told[-1].end


def test_a_request_and_its_answer():
    gateway, unit = pair()
    stream = gateway.send_request(request(), 30.0, b"body")
    (event,) = deliver(gateway, unit)
    assert (event.stream, event.body, event.end) == (1, b"body", True)
    answer(unit, stream, b"done", length=4)
    acked, response = deliver(unit, gateway)
    assert (acked, response.body, response.end) == (ev.Acked(stream), b"done", True)
    assert gateway.idle
    assert unit.idle
    assert gateway.fail_all() == unit.fail_all() == []


def test_ids_are_odd_and_ascend():
    gateway, unit = pair()
    assert [gateway.send_request(request(), 9.0) for _ in range(3)] == [1, 3, 5]
    assert [event.stream for event in deliver(gateway, unit)] == [1, 3, 5]


DELIVERIES = [
    ("queued", 0, Delivery.NOT_DISPATCHED),
    ("sent", 1, Delivery.UNKNOWN),
    ("accepted", 2, Delivery.DISPATCHED),
    ("streaming", 3, Delivery.RESPONSE_STARTED),
]


def advance(gateway, unit, steps):
    stream = gateway.send_request(request(), 30.0, b"x")
    if steps >= 1:
        deliver(gateway, unit)
    if steps >= 2:
        unit.send_ack(stream)
    if steps >= 3:
        unit.send_response(stream, fr.Response(200, []), b"part", False)
    deliver(unit, gateway)
    return stream


@pytest.mark.parametrize(("steps", "delivery"), [d[1:] for d in DELIVERIES], ids=[d[0] for d in DELIVERIES])
def test_delivery_when_the_connection_is_lost(steps, delivery):
    gateway, unit = pair()
    stream = advance(gateway, unit, steps)
    assert gateway.fail_all() == [(stream, delivery)]
    assert gateway.fail_all() == []
    assert gateway.state is State.CLOSED


@pytest.mark.parametrize(("steps", "delivery"), [d[1:] for d in DELIVERIES], ids=[d[0] for d in DELIVERIES])
def test_delivery_when_the_deadline_passes(steps, delivery):
    gateway, unit = pair()
    stream = advance(gateway, unit, steps)
    assert gateway.next_deadline_s <= 30.0
    for now_s in (12.0, 25.0) if steps else ():
        gateway.tick(now_s)
        deliver(gateway, unit, now_s)
        deliver(unit, gateway, now_s)
    assert gateway.tick(30.0) == [ev.StreamAborted(stream, ResetCode.DEADLINE, "deadline", delivery, remote=False)]
    told = deliver(gateway, unit, 30.0)
    assert [type(e) for e in told] == ([] if steps == 0 else [ev.StreamAborted])
    if steps:
        assert deliver(unit, gateway, 30.0) == [ev.ResetAcked(stream, steps >= 2)]
    assert gateway.fail_all() == unit.fail_all() == []


@pytest.mark.parametrize(("steps", "delivery"), [d[1:] for d in DELIVERIES], ids=[d[0] for d in DELIVERIES])
def test_delivery_when_the_caller_cancels(steps, delivery):
    gateway, unit = pair()
    stream = advance(gateway, unit, steps)
    assert gateway.reset(stream, ResetCode.CANCEL) is delivery
    assert gateway.reset(stream, ResetCode.CANCEL) is None
    deliver(gateway, unit)
    assert not unit.streams


TOLD = [
    *((getattr(ResetCode, n), None, False, Delivery.NOT_DISPATCHED) for n in ("REFUSED", "UPSTREAM_CONNECT", "SHED")),
    (ResetCode.INTERNAL, None, False, Delivery.UNKNOWN),
    (ResetCode.INTERNAL, False, False, Delivery.NOT_DISPATCHED),
    (ResetCode.INTERNAL, True, False, Delivery.DISPATCHED),
    (ResetCode.INTERNAL, False, True, Delivery.DISPATCHED),
    (ResetCode.UPSTREAM_CONNECT, False, True, Delivery.NOT_DISPATCHED),
    (ResetCode.UPSTREAM_CONNECT, None, True, Delivery.DISPATCHED),
]


@pytest.mark.parametrize(("code", "dispatched", "ack", "delivery"), TOLD, ids=str)
def test_what_a_reset_tells(code, dispatched, ack, delivery):
    gateway, unit = pair()
    stream = advance(gateway, unit, 2 if ack else 1)
    unit.reset(stream, code, "why", dispatched)
    assert deliver(unit, gateway) == [ev.StreamAborted(stream, code, "why", delivery, remote=True)]


def test_frames_of_a_stream_that_was_reset_are_late_and_harmless():
    gateway, unit = pair()
    stream = advance(gateway, unit, 1)
    gateway.reset(stream, ResetCode.CANCEL)
    answer(unit, stream, b"x" * 900)
    assert deliver(unit, gateway) == [ev.ResetAcked(1, True)] or gateway.state is State.ACTIVE
    assert deliver(gateway, unit) == []
    assert not unit.streams
    # The bytes nobody wanted count as taken: the connection's credit is whole again or owed.
    assert unit.outbox.credit + gateway._owed == 3_000


def test_an_answer_before_the_end_of_the_request():
    gateway, unit = pair()
    stream = gateway.send_request(request(), 30.0, b"x" * 5_000, end=True)
    deliver(gateway, unit)
    answer(unit, stream, b"enough", status=413)
    events = deliver(unit, gateway)
    assert events[-1].end
    deliver(gateway, unit)
    assert not unit.streams
    assert gateway.idle


@pytest.mark.parametrize("size", [0, 1, 999, 1_000])
def test_an_answer_that_never_left_costs_no_credit(size):
    gateway, unit = pair()
    stream = advance(gateway, unit, 1)
    answer(unit, stream, b"x" * size)
    assert unit.queued_bytes(stream) == size
    gateway.reset(stream, ResetCode.CANCEL)
    deliver(gateway, unit)
    assert not unit.streams
    assert (unit.outbox.credit, unit.outbox.queued_bytes, unit.outbox.wholes) == (3_000, 0, {})
    assert [e for e in deliver(unit, gateway) if not isinstance(e, ev.ResetAcked)] == []


def test_answers_in_one_frame_take_the_connections_credit_once_and_wait_when_there_is_none():
    gateway, unit = pair()
    streams = [advance(gateway, unit, 1) for _ in range(5)]
    for stream in streams:
        answer(unit, stream, b"x" * 900)
    assert sum(len(e.body) for e in deliver(unit, gateway) if hasattr(e, "body")) == 3_000
    for stream in streams[:3]:
        gateway.consumed(stream, 900)
    deliver(gateway, unit)
    assert sum(len(e.body) for e in deliver(unit, gateway) if hasattr(e, "body")) == 1_500
    assert not unit.streams
    assert unit.outbox.queued_bytes == 0


# --- credits and turns


def test_a_window_stops_one_stream_and_credit_lets_it_go_on():
    gateway, unit = pair()
    stream = gateway.send_request(request(), 99.0, b"x" * 2_500)
    first = deliver(gateway, unit)
    assert sum(len(e.body) for e in first) == 1_000
    assert gateway.queued_bytes(stream) == 1_500
    unit.consumed(stream, 499)
    assert deliver(unit, gateway) == []
    assert deliver(gateway, unit) == []
    unit.consumed(stream, 1)
    deliver(unit, gateway)
    assert sum(len(e.body) for e in deliver(gateway, unit)) == 500
    other = gateway.send_request(request(), 99.0, b"y" * 900)
    assert sum(len(e.body) for e in deliver(gateway, unit) if e.stream == other) == 900


def test_the_connections_window_stops_all_streams_until_what_it_let_through_is_here():
    gateway, unit = pair()
    streams = [gateway.send_request(request(), 99.0, bytes(1_000)) for _ in range(5)]
    under_way = gateway.data_to_send(0.0, 100_000)
    assert gateway.data_to_send(0.0, 100_000) == []
    got = [event for message in under_way for event in unit.receive(message, 0.0)]
    assert sum(len(e.body) for e in got) == unit.unread_bytes == 3_000
    deliver(unit, gateway)
    assert sum(len(e.body) for e in deliver(gateway, unit)) == 2_000
    for stream in streams:
        unit.consumed(stream, 1_000)
    assert unit.unread_bytes == 0


def test_no_credit_for_thirty_seconds():
    gateway, unit = pair(Limits(stream_window=1_000, conn_window=3_000, max_frame=1_100, dead_s=500, suspect_s=400))
    stream = gateway.send_request(request(), 300.0, b"x" * 2_500)
    deliver(gateway, unit, 0.0)
    assert gateway.next_deadline_s <= 30.0
    assert gateway.tick(29.9) == []
    (event,) = gateway.tick(30.0)
    assert (event.stream, event.code) == (stream, ResetCode.FLOW_CONTROL)


def test_turns_are_fair_by_bytes_and_control_comes_first():
    gateway, unit = pair(Limits())
    big = gateway.send_request(request(), 99.0, bytes(200_000))
    small = gateway.send_request(request(), 99.0, bytes(100))
    gateway.data_to_send(0.0, 1)
    gateway.reset(99, ResetCode.CANCEL)
    gateway.outbox.control.append(fr.encode(fr.Ping(b"12345678")))
    kinds = [message[1] for message in gateway.data_to_send(0.0, 40_000)]
    assert kinds[:2] == [fr.FrameType.PING, fr.FrameType.REQ]
    assert gateway.queued_bytes(small) == 0
    assert gateway.queued_bytes(big) > 100_000


VIOLATIONS = [
    ("more-than-the-stream-window", lambda g, s: [fr.Data(s, bytes(600)), fr.Data(s, bytes(600))], "credit"),
    ("ack-twice", lambda g, s: [fr.Ack(s)], "state"),
    ("response-twice", lambda g, s: [fr.ResponseFrame(s, fr.Response(200, []))], "state"),
    ("request", lambda g, s: [fr.RequestFrame(9, request())], "state"),
    ("go", lambda g, s: [fr.Go(s)], "state"),
    ("never-opened", lambda g, s: [fr.Data(77, b"x")], "stream"),
    ("credit-overflow", lambda g, s: [fr.Window(0, fr.MAX_CREDIT)] * 2, "credit"),
    ("welcome", lambda g, s: [fr.Welcome("c", 1)], "state"),
    ("hello-again", lambda g, s: [fr.Hello("a", "b")], "state"),
]


@pytest.mark.parametrize(("frames", "code"), [v[1:] for v in VIOLATIONS], ids=[v[0] for v in VIOLATIONS])
def test_violations_end_the_session_once(frames, code):
    gateway, unit = pair()
    stream = advance(gateway, unit, 3)
    events = [event for frame in frames(gateway, stream) for event in gateway.receive(fr.encode(frame), 0.0)]
    assert [e.reason for e in events if isinstance(e, ev.SessionClosed)] == ["violation"]
    assert events[-1].detail.startswith(code)
    last = fr.GoAway(GoAwayCode.PROTOCOL, 0, 0, "violation")
    assert gateway.data_to_send(0.0)[-1] == fr.encode(last)
    assert gateway.receive(fr.encode(fr.Ping(b"12345678")), 0.0) == []
    assert gateway.fail_all() == [(stream, Delivery.RESPONSE_STARTED)]


def test_bad_fields_cost_one_stream_and_not_the_connection():
    gateway, unit = pair()
    stream, other = advance(gateway, unit, 2), advance(gateway, unit, 2)
    bad = fr.encode(fr.ResponseFrame(stream, fr.Response(200, [("bad name", "x")]), b"body"))
    (event,) = gateway.receive(bad, 0.0)
    assert (event.stream, event.code, event.delivery) == (stream, ResetCode.PROTOCOL, Delivery.DISPATCHED)
    answer_ = fr.encode(fr.ResponseFrame(other, fr.Response(200, []), b"fine", True))
    assert gateway.receive(answer_, 0.0)[0].end


@pytest.mark.parametrize("body", [b"abc", b"abcdef"], ids=["short", "long"])
def test_a_body_of_another_length_than_announced(body):
    gateway, unit = pair()
    stream = advance(gateway, unit, 1)
    answer(unit, stream, body, length=4)
    events = deliver(unit, gateway)
    assert [type(e) for e in events] == [ev.Acked, ev.StreamAborted]


@pytest.mark.parametrize(("method", "status"), [("HEAD", 200), ("GET", 304), ("GET", 204)])
def test_answers_without_a_body_may_announce_a_length(method, status):
    gateway, unit = pair()
    stream = gateway.send_request(request(method), 30.0)
    deliver(gateway, unit)
    answer(unit, stream, status=status, length=1234)
    assert deliver(unit, gateway)[-1].end


# --- the connection's life


def test_streams_and_lease():
    gateway, unit = pair()
    unit.send_lease(2)
    deliver(unit, gateway)
    gateway.send_request(request(), 9.0)
    gateway.send_request(request(), 9.0)
    with pytest.raises(NotSendable, match="streams"):
        gateway.send_request(request(), 9.0)


def test_the_lower_of_the_two_sides_holds():
    gateway, unit = pair(Limits(), SMALL)
    assert gateway.stream_window == unit.stream_window == 1_000
    assert gateway.max_streams == unit.max_streams == 8
    gateway.send_request(request(), 9.0, bytes(5_000))
    assert all(len(message) <= 1_100 for message in gateway.data_to_send(0.0))


def test_a_draining_side_takes_no_new_streams_and_finishes_the_open_ones():
    gateway, unit = pair()
    stream = advance(gateway, unit, 1)
    late = gateway.send_request(request(), 30.0)
    unit.go_away(GoAwayCode.DRAIN, "stopping")
    events = deliver(gateway, unit)
    assert events == []
    events = deliver(unit, gateway)
    refused = next(e for e in events if isinstance(e, ev.StreamAborted))
    assert (refused.stream, refused.code, refused.delivery) == (late, ResetCode.REFUSED, Delivery.NOT_DISPATCHED)
    with pytest.raises(NotSendable, match="draining"):
        gateway.send_request(request(), 30.0)
    answer(unit, stream, b"last")
    assert deliver(unit, gateway)[-1].end
    assert gateway.idle


def test_pings_suspicion_and_silence():
    gateway, unit = pair()
    assert gateway.tick(14.9) == []
    assert not gateway.has_frames
    gateway.tick(15.0)
    assert gateway.has_frames
    gateway.data_to_send(15.0)
    gateway.tick(20.0)
    assert gateway.state is State.SUSPECT
    gateway.receive(fr.encode(fr.Pong(bytes(7) + b"\1")), 21.0)
    assert gateway.state is State.ACTIVE
    assert gateway.rtt_s == 6.0
    gateway.tick(42.0)
    assert gateway.tick(56.0) == [ev.SessionClosed("silent", "no frame from the peer")]


def test_no_hello():
    gateway = GatewaySession(SMALL, 0.0)
    assert gateway.next_deadline_s == 5.0
    assert gateway.tick(5.0) == [ev.SessionClosed("no-hello", "")]


def test_hold_and_go():
    gateway, unit = pair()
    stream = gateway.send_request(request(hold=True), 30.0)
    (event,) = deliver(gateway, unit)
    assert event.request.hold
    with pytest.raises(RuntimeError):
        unit.send_ack(stream)
    gateway.send_go(stream)
    assert deliver(gateway, unit) == [ev.GoReceived(stream)]
    answer(unit, stream)
    assert deliver(unit, gateway)[-1].end


def test_an_ack_before_go_is_a_violation():
    gateway, unit = pair()
    stream = gateway.send_request(request(hold=True), 30.0)
    deliver(gateway, unit)
    (event,) = gateway.receive(fr.encode(fr.Ack(stream)), 0.0)
    assert event.reason == "violation"


def test_sync_resets_what_only_one_side_knows_after_two_lists():
    gateway, unit = pair()
    stream = advance(gateway, unit, 1)
    unit.streams.clear()
    empty = fr.encode(fr.Sync([]))
    assert gateway.receive(empty, 1.0) == []
    (event,) = gateway.receive(empty, 61.0)
    assert (event.stream, event.code) == (stream, ResetCode.INTERNAL)


def test_a_flood_of_pings_is_a_violation():
    gateway, _ = pair()
    events = []
    for _ in range(2_000):
        events += gateway.receive(fr.encode(fr.Ping(b"12345678")), 0.0)
    assert [e.reason for e in events] == ["violation"]
    assert len(gateway.outbox.control) < 1_100


def test_token_expiry_drains():
    gateway, unit = pair()
    gateway.token_expires_s = 3.0
    assert gateway.next_deadline_s == 3.0
    gateway.tick(3.0)
    (event,) = deliver(gateway, unit)
    assert event.code == GoAwayCode.AUTH_EXPIRED
    assert gateway.state is State.DRAINING


# --- what the simulator found


def test_go_does_not_overtake_its_request():
    """GO is a control frame and would overtake it: the unit would hear of a stream that was never opened."""
    gateway, unit = pair()
    stream = gateway.send_request(request(hold=True), 30.0)
    gateway.send_go(stream)
    assert [type(event) for event in deliver(gateway, unit)] == [ev.RequestReceived, ev.GoReceived]
    answer(unit, stream)
    assert deliver(unit, gateway)[-1].end


def test_a_held_request_has_certainly_not_run():
    gateway, unit = pair()
    held, released = (gateway.send_request(request(hold=True), 30.0) for _ in range(2))
    deliver(gateway, unit)
    gateway.send_go(released)
    assert gateway.fail_all() == [(held, Delivery.NOT_DISPATCHED), (released, Delivery.UNKNOWN)]


@pytest.mark.parametrize(
    ("dispatched", "delivery"), [(True, "dispatched"), (False, "not_dispatched"), (None, "not_dispatched")]
)
def test_what_a_reset_tells_of_a_held_request(dispatched, delivery):
    gateway, unit = pair()
    stream = gateway.send_request(request(hold=True), 30.0)
    deliver(gateway, unit)
    unit.reset(stream, ResetCode.INTERNAL, "", dispatched)
    assert deliver(unit, gateway)[0].delivery == delivery


def test_a_unit_that_acknowledges_a_held_request_may_have_run_it():
    gateway, unit = pair()
    stream = gateway.send_request(request(hold=True), 30.0)
    deliver(gateway, unit)
    gateway.receive(fr.encode(fr.Ack(stream)), 0.0)
    assert gateway.fail_all() == [(stream, Delivery.DISPATCHED)]


def test_go_for_what_is_not_held_is_a_violation():
    gateway, unit = pair()
    stream = gateway.send_request(request(), 30.0)
    deliver(gateway, unit)
    (event,) = unit.receive(fr.encode(fr.Go(stream)), 0.0)
    assert event.reason == "violation"


def test_a_header_over_the_negotiated_frame_is_not_sent():
    gateway, unit = pair()
    big = fr.Request("id", "GET", "/", [("a", "x" * 1_100)])
    with pytest.raises(fr.Oversize):
        gateway.send_request(big, 30.0)
    stream = advance(gateway, unit, 2)
    with pytest.raises(fr.Oversize):
        unit.send_response(stream, fr.Response(200, [("a", "x" * 1_100)]))
    with pytest.raises(fr.Oversize):
        unit.renew_token("x" * 1_100)
    assert list(gateway.streams) == [stream]
    answer_ = fr.Response(200, [])
    assert unit.send_response(stream, answer_, b"", True)
    assert deliver(unit, gateway)[-1].end


def test_no_more_streams_than_one_list_of_them_has_room_for():
    many = Limits(max_streams=9_000, max_frame=1_024)
    gateway, unit = pair(many)
    assert gateway.max_streams == unit.max_streams == (1_024 - 12) // 4


def test_a_lease_is_not_over_what_both_sides_agreed():
    gateway, unit = pair(Limits(max_streams=64), SMALL)
    unit.send_lease(99)
    deliver(unit, gateway)
    assert gateway.max_streams == 8


def test_an_answer_to_what_was_never_sent():
    gateway, unit = pair()
    stream = gateway.send_request(request(), 30.0)
    (event,) = gateway.receive(fr.encode(fr.Ack(stream)), 0.0)
    assert event.detail.startswith("state: ")
    assert gateway.fail_all() == [(stream, Delivery.NOT_DISPATCHED)]


@pytest.mark.parametrize("side", ["gateway", "unit"])
def test_leaving_before_the_greetings_is_the_end(side):
    session = GatewaySession(SMALL, 0.0) if side == "gateway" else UnitSession(SMALL, 0.0, fr.Hello("a", "b"))
    session.go_away(GoAwayCode.DRAIN, "stopping", 10, 20)
    assert session.state is State.CLOSED
    assert session.data_to_send(0.0)[-1] == fr.encode(fr.GoAway(0, 10, 20, "stopping"))


def test_credit_that_the_peer_does_not_read_is_a_violation():
    gateway, unit = pair(Limits(max_streams=8, stream_window=1_000, conn_window=1, max_frame=1_100))
    stream = advance(gateway, unit, 1)
    gateway.reset(stream, ResetCode.CANCEL)
    for _ in range(2_000):
        events = gateway.receive(fr.encode(fr.Data(stream, b"x", False)), 0.0)
    assert (gateway.state, events) == (State.CLOSED, [])
    assert len(gateway.outbox.control) <= 1_025


def test_a_flood_of_tokens_is_a_violation():
    gateway, _ = pair()
    events = []
    while gateway.state is State.ACTIVE:
        for event in gateway.receive(fr.encode(fr.Token("a.b.c")), 0.0):
            if isinstance(event, ev.TokenReceived):
                gateway.accept_token(1, 99.0)
            events.append(event)
    assert events[-1].detail.startswith("flood")
    assert len(events) < 1_100


def test_a_timer_is_not_early():
    """Sums of times round: what is due at `next_deadline_s` is done by the tick of that very moment."""
    dice = random.Random(3)
    for _ in range(500):
        gateway, unit = pair(now_s=dice.random() * 1e6)
        while gateway.state is not State.CLOSED:
            due_s = gateway.next_deadline_s
            gateway.tick(due_s)
            gateway.data_to_send(due_s)
            assert gateway.next_deadline_s > due_s or gateway.state is State.CLOSED


def test_reasons_are_cut_to_what_the_peer_takes():
    assert len(decode(fr.encode(fr.GoAway(0, 0, 0, "x" * 900))).why) == 128
    assert len(decode(fr.encode(fr.Hello("a", "b", last_close="x" * 900))).last_close) == 128
    assert len(decode(fr.encode(fr.Reset(1, 1, "x" * 900))).reason) == 128

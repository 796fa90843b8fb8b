"""A whole worker over real sockets: requests through a scripted unit, and every way in which it can fail."""

from __future__ import annotations

import os

import gevent
import jwt
import pytest
from gevent import socket

from gateway.relay.frames import ResetCode, Response
from gateway.relay.resource import ORIGIN_WIDE
from gateway.relay.states import StreamState


def silent(unit, event):
    """Never says anything."""


def accept(unit, event):
    unit.ack(event.stream)


def test_get_and_head_and_query(rig):
    worker = rig.worker()
    rig.unit(worker)
    answer = rig.fetch(worker.port, "GET", "/units/hospital/fhir/Patient/7?x=1&y=2")
    assert (answer.status, answer.body) == (200, b"/fhir/Patient/7?x=1&y=2")
    assert answer.headers["relay-source"] == "unit"
    assert worker.seen[-1].delivery == "response_started"
    assert rig.fetch(worker.port, "HEAD", "/units/hospital/a").status == 200


@pytest.mark.parametrize("size", [1, 65_535, 65_536, 65_537, 1_048_576], ids=str)
def test_post_comes_back_whole(rig, size):
    worker = rig.worker()
    rig.unit(worker)
    body = os.urandom(size)
    answer = rig.fetch(worker.port, "POST", "/units/hospital/a", body)
    assert (answer.status, answer.body == body) == (200, True)
    assert not worker.relay.registry.local("hospital")[0].session.streams


def test_what_a_unit_says_of_its_own_paths_is_told_by_the_gateways(rig):
    def script(unit, event):
        unit.ack(event.stream)
        fields = [("location", "/fhir/Patient/7"), ("content-location", "https://elsewhere.example/fhir/Patient/7")]
        unit.answer(event.stream, 201, b"{}", fields=fields)

    worker = rig.worker()
    rig.unit(worker, script)
    answer = rig.fetch(worker.port, "POST", "/units/hospital/fhir/Patient", b"{}")
    assert answer.headers["location"] == "/units/hospital/fhir/Patient/7"
    assert answer.headers["content-location"] == "https://elsewhere.example/fhir/Patient/7"


def test_what_a_unit_is_sent_and_what_comes_back(rig):
    seen = []

    def script(unit, event):
        seen.append(event.request)
        unit.ack(event.stream)
        fields = [
            ("content-type", "application/fhir+json"),
            ("connection", "x-hop"),
            ("x-hop", "1"),
            ("set-cookie", "a=b"),
            ("relay-source", "gateway"),
            ("x-request-id", "forged"),
            ("etag", '"1"'),
            *((name, "x") for name in sorted(ORIGIN_WIDE)),
        ]
        unit.answer(event.stream, 201, b"{}", fields=fields)

    worker = rig.worker()
    rig.unit(worker, script)
    headers = {
        "Authorization": "Bearer secret",
        "Cookie": "c=1",
        "X-Caregate-Context": "forged",
        "Connection": "X-Mine",
        "X-Mine": "1",
        "Accept": "application/fhir+json",
        "X-Forwarded-For": "1.2.3.4",
        "X-Forwarded-User": "admin",
        "X-Original-URL": "/admin",
        "Content-Type": "application/json",
    }
    answer = rig.fetch(worker.port, "POST", "/units/hospital/a%2Cb", b"{}", headers)
    fields = dict(seen[0].fields)
    context = fields.pop("x-caregate-context")
    assert seen[0].target == "/a%2Cb"
    assert seen[0].length == 2
    assert fields == {
        "accept": "application/fhir+json",
        "content-type": "application/json",
        "x-request-id": worker.seen[-1].id,
    }
    claims = jwt.decode(context, rig.CONTEXT_KEY, algorithms=["HS256"], audience="hospital")
    assert claims["rid"] == worker.seen[-1].id
    assert claims["exp"] - claims["iat"] <= 60
    assert answer.status == 201
    assert answer.headers["etag"] == '"1"'
    assert answer.headers["relay-source"] == "unit"
    assert not {"set-cookie", "x-hop", *ORIGIN_WIDE} & set(answer.headers)
    assert answer.headers.get("x-request-id") != "forged"


def test_a_unit_is_asked_for_no_other_method(rig):
    seen = []

    def script(unit, event):
        seen.append(event.request.method)
        unit.ack(event.stream)
        unit.answer(event.stream, 200, b"")

    worker = rig.worker()
    rig.unit(worker, script)
    for override in ("DELETE", "POST, DELETE", ""):
        headers = {"X-HTTP-Method-Override": override}
        assert rig.fetch(worker.port, "POST", "/units/hospital/a", b"{}", headers).status == 400
    assert rig.fetch(worker.port, "GET", "/units/hospital/a", b"DELETE /b HTTP/1.1\r\nHost: x\r\n\r\n").status == 400
    assert rig.fetch(worker.port, "POST", "/units/hospital/a", b"{}", {"X-HTTP-Method": "POST"}).status == 200
    assert seen == ["POST"]


def test_many_at_once(rig):
    worker = rig.worker()
    rig.unit(worker)
    calls = [
        gevent.spawn(rig.fetch, worker.port, "POST", "/units/hospital/a", bytes([i]) * 3000 * i) for i in range(1, 60)
    ]
    gevent.joinall(calls)
    assert [call.value.body for call in calls] == [bytes([i]) * 3000 * i for i in range(1, 60)]


def test_a_slow_caller_stops_his_own_stream_and_no_other(rig):
    sent = []

    def script(unit, event):
        unit.ack(event.stream)
        if event.request.target == "/big":
            unit.answer(event.stream, end=False, length=12_000_000)
            for _ in range(120):
                unit.session.send_data(event.stream, bytes(100_000))
            unit.session.send_data(event.stream, b"", end=True)
            unit.poke()
            sent.append(event.stream)
        else:
            unit.answer(event.stream, 200, b"small")

    worker = rig.worker()
    unit = rig.unit(worker, script)
    slow = rig.send_request(worker.port, "GET", "/units/hospital/big")
    rig.until(lambda: sent)
    for _ in range(20):
        assert rig.fetch(worker.port, "GET", "/units/hospital/small").body == b"small"
    assert unit.session.queued_bytes(sent[0]) > 1_000_000
    received = 0
    while data := slow.recv(65_536):
        received += len(data)
    assert received > 12_000_000


# --- every row of the relay table that a unit can cause


def reset(code, dispatched=None, ack=False):
    def script(unit, event):
        if ack:
            unit.ack(event.stream)
        unit.session.reset(event.stream, code, "because", dispatched)
        unit.poke()

    script.__name__ = f"reset_{code.name.lower()}{'_after_ack' if ack else ''}"
    return script


def cut(unit, event):
    unit.cut()


def accept_and_cut(unit, event):
    unit.ack(event.stream)
    unit.rig.until(lambda: "accepted" in unit.rig.states())
    unit.cut()


def begin_and_cut(unit, event):
    unit.ack(event.stream)
    unit.answer(event.stream, body=b"part", end=False, length=100)
    unit.rig.until(lambda: unit.rig.states() == {"streaming"})
    unit.cut()


def garbage(unit, event):
    unit.ack(event.stream)
    unit.answer(event.stream, fields=[("bad name", "x")])


def wrong_length(unit, event):
    unit.ack(event.stream)
    unit.answer(event.stream, body=b"abc", length=5)


def too_long(unit, event):
    unit.ack(event.stream)
    unit.answer(event.stream, body=bytes(2000))


CASES = [
    (silent, 504, "unit-accept-timeout", "unknown"),
    (accept, 504, "unit-response-timeout", "dispatched"),
    (reset(ResetCode.REFUSED, False), 503, "unit-refused", "not_dispatched"),
    (reset(ResetCode.SHED), 503, "unit-overloaded", "not_dispatched"),
    (reset(ResetCode.UPSTREAM_CONNECT, False), 502, "unit-upstream-unreachable", "not_dispatched"),
    (reset(ResetCode.UPSTREAM_TIMEOUT, True, ack=True), 504, "unit-upstream-timeout", "dispatched"),
    (reset(ResetCode.UPSTREAM_PROTOCOL, True, ack=True), 502, "unit-bad-response", "dispatched"),
    (reset(ResetCode.TOO_LARGE, True, ack=True), 502, "unit-response-too-large", "dispatched"),
    (cut, 502, "unit-disconnected", "unknown"),
    (accept_and_cut, 502, "unit-disconnected", "dispatched"),
    (begin_and_cut, 502, "unit-disconnected", "response_started"),
    (garbage, 502, "unit-bad-response", "dispatched"),
    (wrong_length, 502, "unit-bad-response", "dispatched"),
    (too_long, 502, "unit-response-too-large", "dispatched"),
]


@pytest.mark.parametrize(("script", "status", "code", "delivery"), CASES, ids=[c[0].__name__ for c in CASES])
@pytest.mark.parametrize("hops", [0, 1], ids=["here", "through-sibling"])
def test_relay_table(rig, script, status, code, delivery, hops):
    route = {"deadline_ms": 300 if status == 504 else 3_000, "response_max_bytes": 1000}
    worker = rig.worker(route)
    caller = worker if not hops else rig.worker(route)
    rig.unit(worker, script)
    rig.until(lambda: caller.relay.registry.connected("hospital"))
    answer = rig.fetch(caller.port, "POST", "/units/hospital/a", b"body")
    problem = answer.problem
    assert (answer.status, problem["type"].rpartition(":")[2], problem["delivery"]) == (status, code, delivery)
    assert problem["unit"] == "hospital"
    assert caller.seen[-1].delivery == delivery
    assert answer.headers["relay-source"] == "gateway"


def test_lost_after_the_head_went_out_is_never_a_clean_end(rig):
    def script(unit, event):
        unit.ack(event.stream)
        unit.answer(event.stream, body=bytes(100_000), end=False, length=None)
        unit.rig.until(lambda: unit.rig.states() == {"streaming"} and not unit.session.has_frames)
        unit.cut()

    worker = rig.worker()
    rig.unit(worker, script)
    answer = rig.fetch(worker.port, "GET", "/units/hospital/a")
    assert answer.status == 200
    assert answer.error is not None
    assert worker.seen[-1].error.code == "unit-truncated"


def test_unknown_disabled_and_absent_units(rig):
    worker = rig.worker()
    assert rig.fetch(worker.port, "GET", "/units/nobody/a").problem["type"].endswith("unit-unknown")
    answer = rig.fetch(worker.port, "GET", "/units/hospital/a")
    problem = answer.problem
    assert (answer.status, problem["title"], problem["why"]) == (503, "client not connected", "never-connected")
    assert (problem["delivery"], problem["last_seen"], problem["retryable"]) == ("not_dispatched", None, True)
    assert int(answer.headers["retry-after"]) >= 1
    assert rig.fetch(worker.port, "GET", "/units/post/a").problem["why"] == "disabled"


def test_last_seen_after_a_unit_left(rig):
    worker, sibling = rig.worker(), rig.worker()
    unit = rig.unit(worker)
    rig.until(lambda: sibling.relay.registry.connected("hospital"))
    unit.cut()
    rig.until(lambda: not sibling.relay.registry.connected("hospital"))
    for one in (worker, sibling):
        problem = rig.fetch(one.port, "GET", "/units/hospital/a").problem
        assert problem["last_seen"].endswith("Z")
        assert problem["why"] == "lost"
    assert ("unit.down", "hospital") in worker.events


def test_stream_budget(rig):
    worker = rig.worker()
    rig.unit(worker, silent, limits=rig.Limits(max_streams=2))
    waiting = [gevent.spawn(rig.fetch, worker.port, "GET", "/units/hospital/a") for _ in range(2)]
    rig.until(lambda: len(worker.relay.registry.local("hospital")[0].session.streams) == 2)
    answer = rig.fetch(worker.port, "GET", "/units/hospital/a")
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    assert answer.problem["type"].endswith("unit-overloaded")
    gevent.killall(waiting)


def test_the_caller_goes_away(rig):
    worker = rig.worker()
    unit = rig.unit(worker, accept)
    caller = rig.send_request(worker.port, "GET", "/units/hospital/a")
    rig.until(lambda: "accepted" in rig.states())
    caller.close()
    rig.until(lambda: unit.aborted)
    assert unit.aborted[0].code == ResetCode.CANCEL
    rig.until(lambda: worker.seen[-1].error is not None)
    assert (worker.seen[-1].error.code, worker.seen[-1].delivery) == ("client-disconnected", "dispatched")


def test_a_repeat_goes_to_the_other_connection_once(rig):
    """A unit that says it drains has not run the request: the other connection gets it, body and all."""
    worker = rig.worker()

    def leaving(unit, event):
        unit.session.reset(event.stream, ResetCode.REFUSED, "draining", False)
        unit.poke()

    rig.unit(worker, leaving, instance="a")
    rig.unit(worker, rig.echo, instance="b")
    for _ in range(4):
        assert rig.fetch(worker.port, "POST", "/units/hospital/a", b"x" * 70_000).body == b"x" * 70_000


# --- the mesh


@pytest.mark.parametrize("size", [0, 100, 1_048_576], ids=str)
def test_through_a_sibling(rig, size):
    holder, asker = rig.worker(), rig.worker()
    rig.unit(holder)
    rig.until(lambda: asker.relay.registry.connected("hospital"))
    body = os.urandom(size)
    answer = rig.fetch(asker.port, "POST", "/units/hospital/a", body)
    assert answer.status == 200
    assert answer.body == (body or b"/a")
    rig.until(lambda: not next(iter(asker.relay.fabric._holding.values()))._forwards)
    for link in holder.relay.fabric._holding.values():
        assert not link._forwards
        assert not link.session.streams


def test_a_sibling_that_dies_takes_its_units_along(rig):
    holder, asker = rig.worker(), rig.worker()
    rig.unit(holder, accept)
    rig.until(lambda: asker.relay.registry.connected("hospital"))
    call = gevent.spawn(rig.fetch, asker.port, "GET", "/units/hospital/a")
    rig.until(lambda: holder.relay.registry.local("hospital")[0].session.streams)
    rig.until(lambda: rig.states() == {"accepted"})
    holder.relay.fabric.stop()
    problem = call.get().problem
    assert (problem["type"].rpartition(":")[2], problem["delivery"]) == ("unit-disconnected", "dispatched")
    answer = rig.fetch(asker.port, "GET", "/units/hospital/a")
    assert answer.problem["why"] == "worker-lost"


def test_a_caller_of_a_sibling_goes_away(rig):
    holder, asker = rig.worker(), rig.worker()
    unit = rig.unit(holder, accept)
    rig.until(lambda: asker.relay.registry.connected("hospital"))
    caller = rig.send_request(asker.port, "GET", "/units/hospital/a")
    rig.until(lambda: "accepted" in rig.states())
    caller.close()
    rig.until(lambda: unit.aborted)
    assert unit.aborted[0].code == ResetCode.CANCEL


@pytest.mark.parametrize("hops", [0, 1], ids=["here", "through-sibling"])
def test_a_service_that_answers_while_it_reads(rig, hops):
    """Both directions at once, beyond the windows of both: nobody waits for the other."""

    def pipe(unit, event):
        stream = event.stream
        unit.ack(stream)
        sent = 0
        unit.answer(stream, end=False, length=None)
        while not (stream in unit.ended and sent == len(unit.bodies[stream])):
            rig.until(lambda sent=sent: len(unit.bodies[stream]) > sent or stream in unit.ended)
            rig.until(lambda: unit.session.queued_bytes(stream) < 65_536)
            piece = bytes(unit.bodies[stream][sent:])
            unit.session.send_data(stream, piece)
            unit.session.consumed(stream, len(piece))
            sent += len(piece)
            unit.poke()
        unit.session.send_data(stream, b"", True)
        unit.poke()

    worker = rig.worker()
    caller = worker if not hops else rig.worker()
    rig.unit(worker, pipe, auto_consume=False)
    rig.until(lambda: caller.relay.registry.connected("hospital"))
    body = os.urandom(1_048_576)
    answer = rig.fetch(caller.port, "POST", "/units/hospital/a", body)
    assert (answer.status, answer.body == body) == (200, True)


def test_waiting_for_the_writer_is_the_queue_s_time(rig):
    worker = rig.worker()
    rig.unit(worker)
    link = blocked(worker)
    caller = gevent.spawn(rig.fetch, worker.port, "GET", "/units/hospital/a")
    rig.until(lambda: link.session.streams)
    gevent.sleep(0.01)
    link._writing = False
    link._send_soon()
    assert caller.get(timeout=3).status == 200
    ctx = worker.seen[-1]
    assert 10_000_000 <= ctx.queue_ns < ctx.upstream_ns


def test_what_never_left_was_in_the_queue_all_the_time(rig):
    worker = rig.worker(route={"deadline_ms": 50})
    rig.unit(worker)
    blocked(worker)
    answer = rig.fetch(worker.port, "GET", "/units/hospital/a")
    assert (answer.status, worker.seen[-1].error.code) == (504, "unit-queue-timeout")
    assert worker.seen[-1].queue_ns == worker.seen[-1].upstream_ns > 0


def blocked(worker):
    """The unit's connection, which writes nothing until it is told to."""
    (link,) = worker.relay.registry.local("hospital")
    link._writing = True
    return link


def test_a_caller_who_leaves_after_the_head_was_not_undispatched(rig):
    """The unit has begun to answer: what the trail and the log say is that."""

    def script(unit, event):
        unit.ack(event.stream)
        unit.session.send_response(event.stream, Response(200, [], 1000), b"x" * 10, False)
        unit.poke()

    worker = rig.worker()
    unit = rig.unit(worker, script)
    rig.until(lambda: worker.relay.registry.connected("hospital"))
    caller = socket.create_connection(("127.0.0.1", worker.port))
    caller.sendall(b"GET /units/hospital/a HTTP/1.1\r\nHost: t\r\n\r\n")
    (link,) = worker.relay.registry.local("hospital")
    rig.until(lambda: [r for r in link.session.streams.values() if r.state is StreamState.STREAMING])
    caller.close()
    rig.until(lambda: unit.aborted)
    (ctx,) = [ctx for ctx in worker.seen if ctx.path.startswith("/units/hospital")]
    rig.until(lambda: ctx.delivery)
    assert ctx.delivery == "response_started"

"""The connect endpoint's refusals, and the life of a unit's connection: replacement, limits, silence, drain."""

from __future__ import annotations

import time
from types import SimpleNamespace

import gevent
import pytest

from fastpath.frames import OP_BINARY, OP_CLOSE, OP_PING, OP_PONG, OP_TEXT, Decoder, decode_close, encode_frame
from gateway.config.snapshot import CompiledUnit
from gateway.errors import Overloaded
from gateway.relay import frames as fr
from gateway.relay.admission import DialGate
from gateway.relay.decoding import decode
from gateway.relay.endpoint import accept_key
from gateway.relay.mesh_link import HoldingLink
from gateway.relay.service import SENT_OFF


def dial(rig, worker, request):
    from gevent import socket

    sock = socket.create_connection(("127.0.0.1", worker.port))
    sock.sendall(request)
    data = b""
    while b"\r\n\r\n" not in data and (piece := sock.recv(65_536)):
        data += piece
    return sock, int(data[9:12]), data


NOW = time.time

REFUSALS = [
    ("no-token", lambda rig: rig.handshake(None), 401),
    ("basic", lambda rig: rig.handshake(None, Authorization="Basic abc"), 401),
    ("garbage-token", lambda rig: rig.handshake("x.y.z"), 401),
    ("other-audience", lambda rig: rig.handshake(rig.unit_token(aud="patient-app")), 401),
    ("expired", lambda rig: rig.handshake(rig.unit_token(exp=int(NOW()) - 5)), 401),
    ("long-lived", lambda rig: rig.handshake(rig.unit_token(exp=int(NOW()) + 400)), 401),
    ("old-but-long", lambda rig: rig.handshake(rig.unit_token(iat=int(NOW()) - 250, exp=int(NOW()) + 100)), 401),
    ("no-jti", lambda rig: rig.handshake(rig.unit_token(jti=None)), 401),
    ("sub-of-another", lambda rig: rig.handshake(rig.unit_token(sub="clinic")), 401),
    ("disabled", lambda rig: rig.handshake(rig.unit_token("post")), 403),
    ("unit-not-configured", lambda rig: rig.handshake(rig.unit_token("ghost")), 404),
    ("origin", lambda rig: rig.handshake(rig.unit_token(), Origin="https://evil.example"), 403),
    ("no-upgrade", lambda rig: rig.handshake(rig.unit_token(), Upgrade=None), 426),
    ("not-websocket", lambda rig: rig.handshake(rig.unit_token(), Upgrade="h2c"), 426),
    ("notupgradeable", lambda rig: rig.handshake(rig.unit_token(), Connection="notupgradeable"), 400),
    ("version", lambda rig: rig.handshake(rig.unit_token(), Sec_WebSocket_Version="8"), 426),
    ("short-key", lambda rig: rig.handshake(rig.unit_token(), Sec_WebSocket_Key="AAAA"), 400),
    ("bad-key", lambda rig: rig.handshake(rig.unit_token(), Sec_WebSocket_Key="!" * 24), 400),
    ("no-subprotocol", lambda rig: rig.handshake(rig.unit_token(), Sec_WebSocket_Protocol=None), 426),
    ("substring", lambda rig: rig.handshake(rig.unit_token(), Sec_WebSocket_Protocol="caregate.relay.v10"), 426),
    ("other-case", lambda rig: rig.handshake(rig.unit_token(), Sec_WebSocket_Protocol="Caregate.Relay.v1"), 426),
    ("http10", lambda rig: rig.handshake(rig.unit_token()).replace(b"HTTP/1.1", b"HTTP/1.0"), 400),
    ("post", lambda rig: rig.handshake(rig.unit_token()).replace(b"GET", b"POST"), 405),
]


@pytest.mark.parametrize(("request_of", "status"), [c[1:] for c in REFUSALS], ids=[c[0] for c in REFUSALS])
def test_refusals_are_plain_http(rig, request_of, status):
    worker = rig.worker()
    _, got, head = dial(rig, worker, request_of(rig))
    assert got == status
    assert b"Sec-WebSocket-Accept" not in head
    if status == 426:
        assert b"sec-websocket-" in head.lower()


def test_accept_key_is_the_one_of_the_standard():
    assert accept_key(b"dGhlIHNhbXBsZSBub25jZQ==") == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


def test_a_token_is_for_one_dial(rig):
    worker = rig.worker()
    token = rig.unit_token()
    assert dial(rig, worker, rig.handshake(token))[1] == 101
    assert dial(rig, worker, rig.handshake(token))[1] == 401


def test_bytes_after_the_handshake_are_not_lost(rig):
    worker = rig.worker()
    hello = fr.encode(fr.Hello("early", "one"))
    sock, status, head = dial(rig, worker, rig.handshake(rig.unit_token()) + encode_frame(OP_BINARY, hello, b"abcd"))
    assert status == 101
    rig.until(lambda: worker.relay.registry.connected("hospital"))


@pytest.mark.parametrize("token", [None, "x.y.z"], ids=["none", "garbage"])
def test_who_dials_without_a_good_token_keeps_no_unit_out(rig, token):
    worker = rig.worker()
    worker.relay.connect_resource._gate = DialGate(1, clock=lambda: 100.0)
    assert [dial(rig, worker, rig.handshake(token))[1] for _ in range(3)] == [401] * 3
    assert dial(rig, worker, rig.handshake(rig.unit_token()))[1] == 101
    assert dial(rig, worker, rig.handshake(rig.unit_token()))[1] == 503


def test_too_many_connections(rig):
    worker = rig.worker()
    rig.unit(worker, instance="a")
    rig.unit(worker, instance="b")
    third = rig.unit(worker, instance="c")
    assert third.status == 409


def test_a_dead_connection_gives_its_place(rig, monkeypatch):
    monkeypatch.setattr("gateway.relay.service.PROBE_S", 0.02)
    worker = rig.worker()
    rig.unit(worker, unit="clinic", instance="a")
    frozen = worker.relay.registry.local("clinic")[0]
    monkeypatch.setattr(type(frozen), "probe", lambda self, timeout_s: False)
    assert rig.unit(worker, unit="clinic", instance="a").status == 101
    rig.until(lambda: worker.relay.registry.local("clinic") not in ([], [frozen]))


def test_a_probe_tells_the_living(rig):
    worker = rig.worker()
    rig.unit(worker)
    assert worker.relay.registry.local("hospital")[0].probe(1.0)


def test_a_newer_connection_replaces_the_one_in_its_seat(rig):
    worker = rig.worker()
    new = []
    old, call = rig.busy(worker, new, b"of the old one")
    new.append(rig.unit(worker))
    rig.until(lambda: old.goaway)
    assert old.goaway.code == fr.GoAwayCode.REPLACED
    assert call.get().body == b"of the old one"
    assert old.over.wait(3)
    assert rig.fetch(worker.port, "GET", "/units/hospital/b").body == b"/b"
    assert len(worker.relay.registry.local("hospital")) == 1


def test_replacement_across_workers(rig):
    one, two = rig.worker(), rig.worker()
    old = rig.unit(one)
    rig.until(lambda: two.relay.registry.connected("hospital"))
    rig.unit(two)
    rig.until(lambda: old.goaway)
    assert old.goaway.code == fr.GoAwayCode.REPLACED
    rig.until(lambda: not one.relay.registry.local("hospital"))
    assert rig.fetch(one.port, "GET", "/units/hospital/b").body == b"/b"


def test_a_disabled_unit_loses_its_link_and_others_keep_theirs(rig):
    worker = rig.worker()
    hospital, clinic = rig.unit(worker), rig.unit(worker, unit="clinic")
    rig.holder.swap(
        rig.make_snapshot(
            hospital=CompiledUnit("hospital", "Hospital", False, 2, None),
            clinic=CompiledUnit("clinic", "Clinic", True, 1, None),
        )
    )
    assert hospital.over.wait(3)
    assert hospital.goaway.code == fr.GoAwayCode.UNIT_DISABLED
    assert hospital.close is not None
    assert rig.fetch(worker.port, "GET", "/units/clinic/b").body == b"/b"
    assert clinic.goaway is None


def test_units_are_told_the_gateways_name(rig):
    worker = rig.worker(node_name="gate-1")
    unit = rig.unit(worker)
    assert unit.welcome.node == "gate-1"


REVOKED = [
    ("unit", {"refuses": lambda unit, kid: "revoked"}, 403),
    ("key", {"refuses": lambda unit, kid: "key-revoked"}, 401),
    ("token", {"revoked": lambda unit, jti, issued_s: True}, 401),
]


@pytest.mark.parametrize(("known", "status"), [c[1:] for c in REVOKED], ids=[c[0] for c in REVOKED])
def test_who_is_revoked_while_its_dial_is_checked_gets_no_101(rig, known, status):
    worker = rig.worker()

    def wait_for_room(unit):
        """The last check that may wait for something."""
        for name, answer in known.items():
            setattr(worker.relay, name, answer)
        return True

    worker.relay.connect_resource._has_room = wait_for_room
    _, got, head = dial(rig, worker, rig.handshake(rig.unit_token()))
    assert got == status
    assert b"Sec-WebSocket-Accept" not in head
    assert not worker.relay._connections


def test_one_that_was_revoked_between_its_dial_and_its_link_is_told(rig):
    worker = rig.worker()
    answers = iter(["", "revoked"])
    worker.relay.refuses = lambda unit, kid: next(answers, "revoked")
    unit = rig.unit(worker, wait=False)
    assert unit.over.wait(3)
    assert (unit.goaway.code, unit.goaway.why) == (fr.GoAwayCode.UNIT_DISABLED, "revoked")
    unit.cut()
    rig.until(lambda: not worker.relay._connections)


def test_drain_lets_streams_finish_and_refuses_new_dials(rig):
    worker = rig.worker()
    go = []
    unit, call = rig.busy(worker, go)
    drain = gevent.spawn(worker.relay.drain)
    rig.until(lambda: unit.goaway)
    assert unit.goaway.code == fr.GoAwayCode.DRAIN
    assert dial(rig, worker, rig.handshake(rig.unit_token("clinic")))[1] == 503
    late = gevent.spawn(rig.fetch, worker.port, "GET", "/units/hospital/a")
    go.append(1)
    assert call.get().body == b"whole"
    unit.cut()
    drain.get(timeout=3)
    assert late.get().problem["delivery"] == "not_dispatched"


def test_a_caller_waits_for_a_unit_that_moves_to_another_worker(rig):
    leaving, staying = rig.worker(), rig.worker()
    unit = rig.unit(leaving, rig.echo)
    rig.until(lambda: staying.relay.registry.connected("hospital"))
    staying.relay.handover.stop()  # it takes nothing as it is: see test_leaving for what does
    gevent.spawn(leaving.relay.drain)
    rig.until(lambda: unit.goaway and not staying.relay.registry.connected("hospital"))
    late = gevent.spawn(rig.fetch, staying.port, "GET", "/units/hospital/a")
    gevent.sleep(0.005)
    assert not late.ready()
    rig.unit(staying, rig.echo)
    assert late.get(timeout=3).body == b"/a"


def test_a_new_worker_is_not_told_of_a_connection_that_drains(rig):
    leaving = rig.worker()
    unit = rig.unit(leaving, lambda unit, event: unit.ack(event.stream))
    gevent.spawn(rig.fetch, leaving.port, "GET", "/units/hospital/a")
    rig.until(lambda: unit.bodies)
    gevent.spawn(leaving.relay.drain)
    rig.until(lambda: unit.goaway)
    fresh = rig.worker()
    assert fresh.relay.fabric.siblings
    assert not fresh.relay.registry.connected("hospital")
    assert fresh.relay.registry.why("hospital") == "draining"


def test_a_token_is_for_one_dial_at_whichever_worker(rig):
    first, second = rig.worker(), rig.worker()
    token = rig.unit_token()
    assert dial(rig, first, rig.handshake(token))[1] == 101
    assert dial(rig, second, rig.handshake(token))[1] == 401
    assert dial(rig, rig.worker(), rig.handshake(token))[1] == 401


def test_connections_that_come_together_are_told_together_and_one_that_goes_at_once(rig, monkeypatch):
    told = []
    announce = HoldingLink.announce
    monkeypatch.setattr(HoldingLink, "announce", lambda link, payload: (told.append(payload), announce(link, payload)))
    monkeypatch.setattr("gateway.relay.fabric.TELL_S", 0.2)
    here, there = rig.worker(), rig.worker()
    rig.until(lambda: len(told) == 2 and here.relay.fabric.siblings and there.relay.fabric.siblings)

    def come(number: int) -> SimpleNamespace:
        connection = SimpleNamespace(
            unit=f"u{number}", conn=f"c{number}", epoch=1, seat=("i", 0), keeps_keys=False, retired=False, ended=False
        )
        here.relay.fabric._announce(connection, True, "")
        return connection

    for number in range(3):
        come(number)
    rig.until(lambda: there.relay.registry.connected("u2"))
    assert len(told) == 3
    come(3)
    gevent.sleep(0)
    last = come(4)
    assert len(told) == 3
    rig.until(lambda: there.relay.registry.connected("u4"))
    assert len(told) == 4
    come(5)
    gevent.sleep(0.001)
    come(6)
    rig.until(lambda: there.relay.registry.connected("u6"))
    assert len(told) == 5
    here.relay.fabric._announce(last, False, "lost")
    rig.until(lambda: not there.relay.registry.connected("u4"))
    last.retired = last.ended = True
    here.relay.fabric._announce(last, False, "lost")
    gevent.sleep(0.005)
    assert len(told) == 6


def test_silence_is_the_end(rig):
    worker = rig.worker(relay_ping_ms=20, relay_dead_ms=250)
    sock, _, _ = dial(
        rig,
        worker,
        rig.handshake(rig.unit_token()) + encode_frame(OP_BINARY, fr.encode(fr.Hello("mute", "one")), b"abcd"),
    )
    rig.until(lambda: worker.relay.registry.connected("hospital"))
    rig.until(lambda: not worker.relay.registry.connected("hospital"))
    assert worker.relay.registry.why("hospital") == "silent"


def test_a_unit_that_sends_and_never_reads_is_taken_out(rig, monkeypatch):
    monkeypatch.setattr("gateway.relay.service.LOOK_S", 0.005)
    worker = rig.worker(relay_ping_ms=10, relay_dead_ms=150)
    hello = encode_frame(OP_BINARY, fr.encode(fr.Hello("deaf", "one")), b"abcd")
    sock, _, _ = dial(rig, worker, rig.handshake(rig.unit_token()) + hello)
    rig.until(lambda: worker.relay.registry.connected("hospital"))
    began = time.monotonic()
    while worker.relay.registry.connected("hospital"):
        sock.sendall(encode_frame(OP_BINARY, fr.encode(fr.Ping(b"12345678")), b"abcd"))
        gevent.sleep(0.005)
    assert time.monotonic() - began > 0.1
    assert worker.relay.registry.why("hospital") == "deaf"


def test_a_connection_that_does_not_acknowledge_is_taken_out_although_it_answers_pings(rig, monkeypatch):
    monkeypatch.setattr("gateway.relay.service.LOOK_S", 0.01)
    worker = rig.worker()
    unit = rig.unit(worker, lambda unit, event: None)
    connection = worker.relay.registry.local("hospital")[0]
    waiting = [rig.send_request(worker.port, "GET", "/units/hospital/x") for _ in range(3)]
    rig.until(lambda: unit.goaway is not None)
    assert (unit.goaway.code, unit.goaway.why) == (fr.GoAwayCode.DRAIN, "slow-ack")
    assert connection.retired
    assert not connection.ended, "what is open may finish"
    assert len(waiting) == 3


def test_under_tls_a_second_connection_is_sent_off_to_meet_another_worker(rig):
    one, two = rig.worker(), rig.worker()
    rig.until(lambda: one.relay.fabric.siblings)
    unit, encrypted = rig.holder.current.units["hospital"], SimpleNamespace()
    one.relay.spread(unit, encrypted)  # the first stays
    rig.unit(one)
    for _ in range(SENT_OFF):
        with pytest.raises(Overloaded) as refused:
            one.relay.spread(unit, encrypted)
        assert refused.value.retry_after_s == 1
    one.relay.spread(unit, encrypted)  # it met no other: better here than nowhere
    one.relay.spread(unit, gevent.socket.socket())  # plain ones are passed on instead
    rig.unit(two, index=1)
    rig.until(lambda: one.relay.registry.remote("hospital"))
    one.relay.spread(unit, encrypted)  # all workers hold it


def test_a_unit_that_answers_pings_stays(rig):
    worker = rig.worker(relay_ping_ms=10, relay_dead_ms=500)
    unit = rig.unit(worker)
    started = time.monotonic()
    rig.until(lambda: time.monotonic() - started > 0.8)
    assert worker.relay.registry.connected("hospital")
    assert not unit.over.is_set()
    assert worker.relay.units()[0]["connections"][0]["rtt_ms"] is not None


def read_to_end(sock, data=b""):
    """(relay frames, other WebSocket messages) until the end of the stream."""
    decoder = Decoder(masked=False, max_bytes=200_000)
    events = decoder.feed(data)
    while piece := sock.recv(65_536):
        events += decoder.feed(piece)
    relayed = [decode(payload) for opcode, payload in events if opcode == OP_BINARY]
    return relayed, [(opcode, payload) for opcode, payload in events if opcode != OP_BINARY]


VIOLATIONS = [
    ("text", encode_frame(OP_TEXT, b"hello", b"abcd"), 1003),
    ("unmasked", encode_frame(OP_BINARY, b"hello"), 1002),
    ("not-a-frame", encode_frame(OP_BINARY, b"hello", b"abcd"), 1002),
    ("second-hello", encode_frame(OP_BINARY, fr.encode(fr.Hello("a", "b")), b"abcd"), 1002),
    (
        "request-by-a-unit",
        encode_frame(OP_BINARY, fr.encode(fr.RequestFrame(1, fr.Request("i", "GET", "/", []))), b"abcd"),
        1002,
    ),
    ("never-opened", encode_frame(OP_BINARY, fr.encode(fr.Ack(5)), b"abcd"), 1002),
    ("too-large", encode_frame(OP_BINARY, bytes(131_073), b"abcd"), 1009),
    ("reserved-bit", b"\xc2\x80abcd", 1002),
]


@pytest.mark.parametrize(("frame", "code"), [v[1:] for v in VIOLATIONS], ids=[v[0] for v in VIOLATIONS])
def test_violations_end_in_goaway_and_a_close_code(rig, frame, code):
    worker = rig.worker()
    hello = encode_frame(OP_BINARY, fr.encode(fr.Hello("bad", "one")), b"abcd")
    sock, _, head = dial(rig, worker, rig.handshake(rig.unit_token()) + hello + frame)
    relayed, others = read_to_end(sock, head.partition(b"\r\n\r\n")[2])
    assert isinstance(relayed[-1], fr.GoAway)
    assert relayed[-1].code == fr.GoAwayCode.PROTOCOL
    assert [decode_close(payload)[0] for opcode, payload in others if opcode == OP_CLOSE] == [code]
    rig.until(lambda: not worker.relay.registry.connected("hospital"))


def test_no_hello(rig):
    worker = rig.worker(relay_hello_timeout_ms=20)
    sock, _, head = dial(rig, worker, rig.handshake(rig.unit_token()))
    relayed, others = read_to_end(sock, head.partition(b"\r\n\r\n")[2])
    assert [type(frame) for frame in relayed] == [fr.GoAway]
    assert others


def test_websocket_pings_are_answered_and_close_is_echoed(rig):
    worker = rig.worker()
    hello = encode_frame(OP_BINARY, fr.encode(fr.Hello("ws", "one")), b"abcd")
    ping = encode_frame(OP_PING, b"are you there", b"wxyz")
    close = encode_frame(OP_CLOSE, b"\x03\xe8bye", b"wxyz")
    sock, _, head = dial(rig, worker, rig.handshake(rig.unit_token()) + hello + ping + close)
    _, others = read_to_end(sock, head.partition(b"\r\n\r\n")[2])
    assert (OP_PONG, b"are you there") in others
    assert [decode_close(payload)[0] for opcode, payload in others if opcode == OP_CLOSE] == [1000]


def test_token_renewal_on_the_live_connection(rig):
    worker = rig.worker()
    unit = rig.unit(worker, token=rig.unit_token(exp=int(time.time()) + 2))
    connection = worker.relay.registry.local("hospital")[0]
    unit.session.renew_token(rig.unit_token(exp=int(time.time()) + 200))
    unit.poke()
    rig.until(lambda: connection.session.token_expires_s - time.monotonic() > 100)
    unit.session.renew_token(rig.unit_token("clinic"))
    unit.poke()
    assert unit.over.wait(3)
    assert unit.goaway.code == fr.GoAwayCode.AUTH_EXPIRED


def test_an_expired_token_ends_the_link(rig):
    worker = rig.worker()
    unit = rig.unit(worker)
    connection = worker.relay.registry.local("hospital")[0]
    connection.session.token_expires_s = time.monotonic() + 0.01
    connection._schedule()
    assert unit.over.wait(3)
    assert unit.goaway.code == fr.GoAwayCode.AUTH_EXPIRED
    assert worker.relay.registry.why("hospital") == "token-expired"


def test_two_connections_live_on_two_workers(rig):
    """One crashed worker loses no unit: the second dial moves, with the HELLO that came in the same packet."""
    one, two = rig.worker(), rig.worker()
    rig.until(lambda: one.relay.fabric.siblings)
    first = rig.unit(one, index=0)
    hello = encode_frame(OP_BINARY, fr.encode(fr.Hello("early", "one", 1)), b"abcd")
    sock, status, _ = dial(rig, one, rig.handshake(rig.unit_token()) + hello)
    assert status == 101
    rig.until(lambda: two.relay.registry.local("hospital"))
    assert len(one.relay.registry.local("hospital")) == 1
    assert two.relay.registry.local("hospital")[0].seat == ("one", 1)
    first.cut()
    rig.until(lambda: not one.relay.registry.local("hospital"))
    assert one.relay.registry.connected("hospital")


def test_a_second_connection_that_moved_answers(rig):
    one, two = rig.worker(), rig.worker()
    rig.until(lambda: one.relay.fabric.siblings)
    first, second = rig.unit(one, index=0), rig.unit(one, index=1)
    rig.until(lambda: two.relay.registry.local("hospital"))
    first.cut()
    rig.until(lambda: not one.relay.registry.local("hospital"))
    for worker in (one, two):
        assert rig.fetch(worker.port, "POST", "/units/hospital/a", b"x" * 300_000).body == b"x" * 300_000
    assert not second.over.is_set()


def test_a_sibling_that_takes_no_connections_costs_nothing(rig):
    one, two = rig.worker(), rig.worker()
    rig.until(lambda: one.relay.fabric.siblings)
    two.relay.handover.stop()
    rig.unit(one, index=0)
    rig.unit(one, index=1)
    assert len(one.relay.registry.local("hospital")) == 2

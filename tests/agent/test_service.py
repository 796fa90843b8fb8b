"""Connections: dialling, refusals, reconnection, replacement, the end. Waits are recorded, not waited for."""

from __future__ import annotations

import os
import re
import time

import gevent
import jwt
import pytest
from gevent import socket

from fastpath.frames import OP_BINARY, OP_PING, OP_PONG, OP_TEXT, encode_frame
from gateway.agent.endpoint import Endpoint
from gateway.relay import events as ev
from gateway.relay.frames import GoAwayCode

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"


def answer(status, *fields):
    return "\r\n".join([f"HTTP/1.1 {status} X", "Content-Length: 0", *fields, "", ""]).encode()


def then_upgrade(refusal, times=1):
    return lambda attempt, head: refusal if attempt <= times else None


# --- the request to connect


def test_connect_request(rig):
    peer = rig.connect()
    head = rig.gateway.heads[0].decode()
    assert head.startswith("GET /relay/v1/connect HTTP/1.1\r\n")
    assert f"\r\nHost: 127.0.0.1:{rig.gateway.port}\r\n" in head
    assert "\r\nSec-WebSocket-Protocol: caregate.relay.v1\r\n" in head
    assert "origin" not in head.lower()
    token = re.search(r"Authorization: Bearer (\S+)", head)[1]
    assert token not in head.splitlines()[0]
    claims = jwt.decode(token, options={"verify_signature": False})
    assert (claims["iss"], claims["sub"], claims["aud"]) == ("linden-clinic", "linden-clinic", "unit-link")
    assert 0 < claims["exp"] - time.time() <= 300
    assert (peer.hello.index, peer.hello.last_close) == (0, None)


def test_each_connection_has_its_index_and_all_share_the_instance(rig):
    rig.start(connections=3)
    hellos = [rig.gateway.accept().hello for _ in range(3)]
    assert {hello.index for hello in hellos} == {0, 1, 2}
    assert len({hello.instance for hello in hellos}) == 1


def test_tokens_are_never_used_twice(rig):
    rig.gateway.script = then_upgrade(answer(502), 4)
    rig.connect()
    tokens = [re.search(rb"Bearer (\S+)", head)[1].decode() for head in rig.gateway.heads]
    assert len({jwt.decode(token, options={"verify_signature": False})["jti"] for token in tokens}) == 5


# --- refusals


@pytest.mark.parametrize(
    ("refusal", "low", "high"),
    [
        pytest.param(answer(401), 60, 75, id="401"),
        pytest.param(answer(403), 60, 75, id="403"),
        pytest.param(answer(404), 60, 75, id="404"),
        pytest.param(answer(426), 60, 75, id="426"),
        pytest.param(answer(403, "Retry-After: 100"), 100, 125, id="403 later"),
        pytest.param(answer(429, "Retry-After: 7"), 7, 8.75, id="429"),
        pytest.param(answer(503, "Retry-After: 1"), 1, 1.25, id="503"),
        pytest.param(answer(503, "Retry-After: 0"), 0, 0, id="503 at once"),
        pytest.param(answer(503), 0.5, 0.5, id="503 without a time"),
        pytest.param(answer(503, "Retry-After: soon"), 0.5, 0.5, id="503 with nonsense"),
        pytest.param(answer(503, "Retry-After: 999999"), 3600, 4500, id="503 for a day"),
        pytest.param(answer(409), 0.5, 0.5, id="409"),
        pytest.param(answer(409, "Retry-After: 3"), 3, 3.75, id="409 with a time"),
        pytest.param(answer(500), 0.5, 0.5, id="500"),
        pytest.param(answer(302, "Location: http://elsewhere/"), 0.5, 0.5, id="redirect is not followed"),
        pytest.param(answer(200), 0.5, 0.5, id="200 is no upgrade"),
    ],
)
def test_refusals(rig, refusal, low, high):
    rig.gateway.script = then_upgrade(refusal)
    rig.connect()
    assert low <= rig.pauses[0] <= high


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"Upgrade": "h2c"}, id="upgrade"),
        pytest.param({"Connection": "notupgradeable"}, id="connection"),
        pytest.param({"Sec_WebSocket_Accept": "x" * 28}, id="accept"),
        pytest.param({"Sec_WebSocket_Accept": ""}, id="no accept"),
        pytest.param({"Sec_WebSocket_Protocol": "caregate.relay.v10"}, id="subprotocol"),
        pytest.param({"Sec_WebSocket_Protocol": ""}, id="no subprotocol"),
        pytest.param({"Sec_WebSocket_Extensions": "permessage-deflate"}, id="extension"),
    ],
)
def test_upgrade_that_is_not_right_is_not_used(rig, change):
    rig.gateway.script = lambda attempt, head: rig.gateway.upgrade(head, **change) if attempt == 1 else None
    peer = rig.connect()
    assert rig.pauses == [0.5]
    assert peer.hello.last_close.startswith("HandshakeBroken: ")


@pytest.mark.parametrize(
    "garbage",
    [
        pytest.param(b"", id="closed"),
        pytest.param(b"SSH-2.0-OpenSSH_9.2\r\n\r\n", id="another protocol"),
        pytest.param(b"HTTP/1.1 101\r\nbad field\r\n\r\n", id="field"),
        pytest.param(b"HTTP/1.1 101 X\r\nA: " + b"a" * 20_000, id="endless head"),
        pytest.param(os.urandom(3000) + b"\r\n\r\n", id="random"),
    ],
)
def test_garbage_instead_of_a_handshake(rig, garbage):
    rig.gateway.script = then_upgrade(garbage)
    rig.connect()
    assert rig.pauses == [0.5]


def test_gateway_that_never_answers_the_handshake(rig):
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(5)
    rig.start(gateway=Endpoint(False, "127.0.0.1", listener.getsockname()[1], "/x"), dial_timeout_s=0.05)
    rig.wait_for(lambda: rig.pauses)
    assert rig.lines[-1]["why"] == "DialTimeout"
    listener.close()


# --- reconnection


def test_backoff_grows_and_stops_growing(rig):
    rig.gateway.stop()
    rig.start()
    rig.wait_for(lambda: len(rig.pauses) >= 8)
    assert rig.pauses[:8] == [0.5, 1, 2, 4, 8, 15, 15, 15]  # half of min(30, 2^n)


def test_connections_that_die_young_keep_the_backoff_growing(rig):
    peer = rig.connect()
    for _ in range(3):
        peer.close()
        peer = rig.gateway.accept()
    assert rig.pauses == [0.5, 1, 2]
    assert peer.hello.last_close == "closed by the gateway with 1000"


def test_stable_connection_starts_the_backoff_anew(rig):
    peer = rig.connect(stable_after_s=0.0)
    for _ in range(3):
        peer.close()
        peer = rig.gateway.accept()
    assert rig.pauses == [0.5, 0.5, 0.5]


@pytest.mark.parametrize(
    ("code", "retry_ms", "jitter_ms", "expected"),
    [
        pytest.param(GoAwayCode.DRAIN, 2000, 1000, 2.5, id="drain"),
        pytest.param(GoAwayCode.OVERLOAD, 8000, 4000, 10, id="overload"),
        pytest.param(GoAwayCode.IDLE, 1000, 0, 1, id="idle"),
        pytest.param(GoAwayCode.AUTH_EXPIRED, 0, 0, 0, id="auth expired"),
        pytest.param(GoAwayCode.UNIT_DISABLED, 0, 0, 67.5, id="unit disabled"),
        pytest.param(GoAwayCode.PROTOCOL, 0, 0, 0.5, id="protocol"),
        pytest.param(GoAwayCode.REPLACED, 0, 0, 0.5, id="replaced"),
        pytest.param(99, 3000, 0, 3, id="unknown"),
    ],
)
def test_goaway(rig, code, retry_ms, jitter_ms, expected):
    peer = rig.connect(stable_after_s=0.0)
    peer.session.go_away(code, "why", retry_ms, jitter_ms)
    peer.flush()
    rig.gateway.accept()
    assert rig.pauses == [expected]


def test_goaway_right_after_connecting_does_not_spin(rig):
    peer = rig.connect()
    for _ in range(3):
        peer.session.go_away(GoAwayCode.DRAIN, "", 0, 0)
        peer.flush()
        peer = rig.gateway.accept()
    assert rig.pauses == [0.5, 1, 2]


def test_drain_opens_the_new_connection_before_the_old_one_ends(rig, read):
    release, got = gevent.event.Event(), gevent.event.Event()

    def serve(number, sock):
        while read(sock):
            got.set()
            release.wait(5)
            sock.sendall(OK)

    rig.service.handler = serve
    old = rig.connect()
    stream = old.request()
    assert got.wait(5)
    old.session.go_away(GoAwayCode.DRAIN, "", 1, 0)
    old.flush()
    new = rig.gateway.accept()
    assert not old.closed.is_set()
    assert (new.hello.instance, new.hello.index) == (old.hello.instance, old.hello.index)
    release.set()
    assert old.answer(stream)[1] == b"hi"
    assert old.closed.wait(5)
    assert new.answer(new.request())[1] == b"hi"


# --- what a gateway may do to a link


@pytest.mark.parametrize(
    ("frame", "close_code"),
    [
        pytest.param(encode_frame(OP_TEXT, b"hello"), 1000, id="text"),
        pytest.param(encode_frame(OP_BINARY, b"x"), 1000, id="short relay frame"),
        pytest.param(encode_frame(OP_BINARY, os.urandom(64)), 1000, id="random relay frame"),
        pytest.param(encode_frame(OP_BINARY, b"\x01\x10\x00\x02\0\0\0\x01\0\0\0\x02{]"), 1000, id="broken json"),
        pytest.param(encode_frame(OP_BINARY, b"x", b"mask"), 1002, id="masked"),
        pytest.param(b"\xf2\x01x", 1002, id="reserved bits"),
        pytest.param(b"\x82\x7f\x00\x00\x00\x01\x00\x00\x00\x00", 1009, id="too long"),
    ],
)
def test_garbage_ends_the_link_and_the_agent_dials_again(rig, frame, close_code):
    peer = rig.connect()
    peer.raw(frame)
    assert peer.closed.wait(5)
    assert peer.close_code == close_code
    rig.gateway.accept()
    assert rig.pauses == [0.5]
    assert [line for line in rig.lines if line["level"] == "error"] == []


def test_websocket_ping_is_answered(rig):
    peer = rig.connect()
    pongs = []
    original = peer.decoder.feed
    peer.decoder = type("Spy", (), {"feed": lambda self, data: [pongs.append(m) or m for m in original(data)]})()
    peer.raw(encode_frame(OP_PING, b"abc"))
    rig.wait_for(lambda: (0xA, b"abc") in pongs)


def test_no_welcome(rig):
    rig.gateway.script = lambda attempt, head: rig.gateway.upgrade(head) if attempt == 1 else None
    rig.connect()
    assert rig.pauses == [0.5]


def test_token_is_renewed_on_the_live_link(rig):
    rig.gateway.welcome = {"token_exp": int(time.time()) + 2}
    peer = rig.connect()
    renewed = peer.expect(ev.TokenReceived)
    fresh = jwt.decode(renewed.token, options={"verify_signature": False})
    assert (fresh["sub"], fresh["aud"]) == ("linden-clinic", "unit-link")
    assert renewed.token.encode() not in rig.gateway.heads[0]
    assert len(rig.gateway.heads) == 1


def test_token_is_renewed_while_bytes_never_stop(rig):
    """A gateway that sends faster than the unit reads."""
    peer = rig.connect()
    link = next(iter(rig.agent._links))
    rig.wait_for(lambda: link in rig.agent._active)
    flood = gevent.spawn(lambda: [peer.raw(encode_frame(OP_PONG, bytes(100)) * 5_000) for _ in range(200)])
    gevent.sleep(0.01)
    link._renew_s = time.monotonic()
    peer.expect(ev.TokenReceived)
    assert not flood.ready()
    flood.kill()


# --- the end


def test_drain_finishes_what_is_open_and_ends(rig, read):
    release, got = gevent.event.Event(), gevent.event.Event()

    def serve(number, sock):
        while read(sock):
            got.set()
            release.wait(5)
            sock.sendall(OK)

    rig.service.handler = serve
    peer = rig.connect()
    stream = peer.request()
    assert got.wait(5)
    done = gevent.spawn(rig.agent.drain, 5)
    assert peer.expect(ev.GoAwayReceived).code == GoAwayCode.DRAIN
    assert not done.ready()
    release.set()
    assert peer.answer(stream)[1] == b"hi"
    assert done.get(timeout=5) is True
    assert peer.closed.wait(5)
    assert len(rig.gateway.heads) == 1


def test_drain_cuts_what_outlives_the_grace(rig, read):
    got = gevent.event.Event()

    def serve(number, sock):
        read(sock)
        got.set()
        gevent.sleep(10)

    rig.service.handler = serve
    peer = rig.connect()
    peer.request()
    assert got.wait(5)
    assert rig.agent.drain(0.01) is False
    assert peer.closed.wait(5)


def test_log_says_nothing_of_what_was_asked(rig, read):
    rig.service.handler = lambda number, sock: (read(sock), sock.sendall(OK))
    peer = rig.connect()
    peer.answer(
        peer.request("POST", "/secret-path?secret-query", b"secret-body", fields=[("x-secret", "secret-value")])
    )
    peer.request("GET", "/secret//path")
    peer.expect(ev.StreamAborted)
    assert [line for line in rig.lines if line["event"] == "exchange_relayed"]
    assert "secret" not in str(rig.lines)
    assert "Bearer" not in str(rig.lines)

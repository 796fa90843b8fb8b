"""The rules, each a function that raises Broken; docs/relay-protocol.md says the same in sentences."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from typing import Final

import jwt

from fastpath.frames import CRITICAL, OP_BINARY, OP_PING, OP_TEXT, encode_frame, pack_frame
from gateway.conformance.kit import UNIT, Kit
from gateway.conformance.peer import STREAM_WINDOW, Broken
from gateway.relay import frames as fr
from gateway.relay.frames import ResetCode

Rule = Callable[[Kit], None]
RULES: Final[dict[str, tuple[str, Rule]]] = {}
"""Rule's id -> what it says, how it is looked at."""


def rule(name: str, text: str) -> Callable[[Rule], Rule]:
    def add(function: Rule) -> Rule:
        RULES[name] = (text, function)
        return function

    return add


def need(condition: object, text: str) -> None:
    if not condition:
        raise Broken(text)


# --- the handshake and the greetings


@rule("handshake", "GET /relay/v1/connect, version 13, a key of 16 bytes, the exact subprotocol, no Origin")
def _handshake(kit: Kit) -> None:
    shake = kit.peer().handshake
    need(shake.line == "GET /relay/v1/connect HTTP/1.1", "another request line: the token may not be in it either")
    need(shake.one("upgrade").lower() == "websocket", "Upgrade is not websocket")
    need("upgrade" in [t.strip().lower() for t in shake.one("connection").split(",")], "Connection has no upgrade")
    need(shake.one("sec-websocket-version") == "13", "the version is not 13")
    need(len(shake.one("sec-websocket-key")) == 24, "the key is not 16 bytes in base64")
    offered = [token.strip() for token in shake.one("sec-websocket-protocol").split(",")]
    need("caregate.relay.v1" in offered, "the subprotocol caregate.relay.v1 is not offered")
    need("origin" not in shake.fields, "an Origin field, which only browsers send")
    need("permessage-deflate" not in str(shake.fields.get("sec-websocket-extensions")), "compression is off")


@rule("token", "a JWT by the unit's key: iss = sub = unit, aud unit-link, at most 5 min, a fresh jti each dial")
def _token(kit: Kit) -> None:
    seen = set()
    for peer in (kit.peer(), kit.fresh()):
        scheme, _, token = peer.handshake.one("authorization").partition(" ")
        need(scheme.lower() == "bearer", "Authorization is not Bearer")
        try:
            claims = jwt.decode(token, kit.private_key.public_key(), ["EdDSA"], audience="unit-link")
        except jwt.PyJWTError as error:
            raise Broken(f"the token is refused: {error}") from None
        need(claims.get("iss") == claims.get("sub") == UNIT, "iss and sub are not the unit")
        need(claims.get("exp", 1e12) - claims.get("iat", time.time()) <= 300, "it lives longer than five minutes")
        need(isinstance(claims.get("jti"), str) and claims["jti"] not in seen, "no fresh jti")
        seen.add(claims["jti"])


@rule("hello", "HELLO is the first message, within 5 s")
def _hello(kit: Kit) -> None:
    need(kit.peer().first_s <= 5.0, "HELLO came late")


@rule("token-renewal", "a fresh token is sent by TOKEN before the old one runs out")
def _token_renewal(kit: Kit) -> None:
    peer = kit.fresh(token_exp=int(time.time()) + 6)
    peer.expect(fr.Token, within_s=6.0)


# --- requests and answers


@rule("get", "a small GET: ACK, RES with status, fields without those of one hop, and the body; `up` in milliseconds")
def _get(kit: Kit) -> None:
    peer = kit.peer()
    response, body = peer.answer(peer.request("/echo?a=%20b"))
    seen = kit.service.seen[-1]
    need(response.status == 200 and body == hashlib.sha256(b"").hexdigest().encode(), "not the service's answer")
    need(seen.target == "/echo?a=%20b" and seen.method == "GET", "the target did not arrive as it was")
    need(seen.fields.get("x-plain") == "one", "a field of the request is missing")
    need([v for n, v in response.fields if n == "x-twice"] == ["a", "b"], "repeated fields did not survive in order")
    need(not {"keep-alive", "connection", "transfer-encoding"} & {n for n, _ in response.fields}, "a hop-by-hop field")


@rule("ack", "ACK comes before the local service may see the request, not with its answer")
def _ack(kit: Kit) -> None:
    peer = kit.peer()
    stream = peer.request("/slow/1500")
    peer.expect(fr.Ack, stream, within_s=1.0)
    peer.expect(fr.ResponseFrame, stream)


@rule("body-up", "a request body of many frames arrives whole, and credit is given back for it")
def _body_up(kit: Kit) -> None:
    peer = kit.peer()
    piece, total, sent, allowed = bytes(range(256)) * 32, 40, 0, STREAM_WINDOW
    stream = peer.request("/echo", end=False)
    peer.expect(fr.Ack, stream)
    while sent < total:
        while allowed < len(piece):
            allowed += peer.expect(fr.Window, stream).credit
        sent, allowed = sent + 1, allowed - len(piece)
        peer.send(fr.Data(stream, piece, sent == total))
    head = peer.expect(fr.ResponseFrame, stream)
    body = head.body if head.end else head.body + peer.expect(fr.Data, stream).body
    need(body == hashlib.sha256(piece * total).hexdigest().encode(), "the body arrived changed")
    peer.credit(stream, len(body))


@rule("window", "no body byte is sent past the stream's credit, and the answer goes on when credit comes")
def _window(kit: Kit) -> None:
    peer = kit.peer()
    stream = peer.request(f"/large/{STREAM_WINDOW * 2}")
    peer.expect(fr.Ack, stream)
    got = len(peer.expect(fr.ResponseFrame, stream).body)
    end = False
    while got < STREAM_WINDOW:
        got += len(peer.expect(fr.Data, stream).body)
    need(got == STREAM_WINDOW, "more than the credit was sent")
    peer.silent(0.4, stream)
    peer.credit(stream, STREAM_WINDOW)
    while not end:
        data = peer.expect(fr.Data, stream)
        got, end = got + len(data.body), data.end
    need(got == STREAM_WINDOW * 2, "the body is not whole")
    peer.send(fr.Window(0, STREAM_WINDOW))


@rule("at-once", "requests run beside each other: eight that take half a second take less than two seconds")
def _at_once(kit: Kit) -> None:
    peer = kit.peer()
    streams = {peer.request("/slow/500") for _ in range(8)}
    until_s = time.monotonic() + 2.0
    while streams:
        frame = peer.expect(fr.ResponseFrame, within_s=until_s - time.monotonic())
        streams.discard(frame.stream)


@rule("ping", "PING is answered by PONG with the same eight bytes; a WebSocket's ping likewise")
def _ping(kit: Kit) -> None:
    peer = kit.peer()
    peer.send(fr.Ping(b"kit-ping"))
    need(peer.expect(fr.Pong).opaque == b"kit-ping", "PONG has other bytes")
    peer.raw(encode_frame(OP_PING, b"ws"))
    until_s = time.monotonic() + 2.0
    while b"ws" not in peer.pongs:
        need(time.monotonic() < until_s, "a WebSocket's ping is not answered")
        time.sleep(0.01)


# --- certainty


@rule("hold", "a request with HOLD waits for GO: no ACK and no byte to the local service before")
def _hold(kit: Kit) -> None:
    peer = kit.peer()
    before = len(kit.service.seen)
    stream = peer.request("/echo", hold=True)
    peer.silent(0.4, stream)
    need(len(kit.service.seen) == before, "it ran before GO")
    peer.send(fr.Go(stream))
    peer.answer(stream)


@rule("cancel", "RESET ends the work at the local service, and RESET_ACK says whether that may have seen the request")
def _cancel(kit: Kit) -> None:
    peer = kit.peer()
    stream = peer.request("/hang")
    peer.expect(fr.Ack, stream)
    time.sleep(0.1)
    peer.send(fr.Reset(stream, ResetCode.CANCEL, "cancelled"))
    need(peer.expect(fr.ResetAck, stream).dispatched, "RESET_ACK says that it was not dispatched")
    need(kit.service.seen[-1].closed.wait(2), "the connection to the local service stays open")
    held = peer.request("/echo", hold=True)
    peer.send(fr.Reset(held, ResetCode.CANCEL, "cancelled"))
    need(not peer.expect(fr.ResetAck, held).dispatched, "RESET_ACK of a held request says that it was dispatched")


@rule("unreachable", "a local service that cannot be reached: RESET(UPSTREAM_CONNECT), dispatched false")
def _unreachable(kit: Kit) -> None:
    peer = kit.peer()
    kit.service.stop()
    try:
        stream = peer.request("/echo")
        frame = peer.first_of((fr.Reset, fr.ResponseFrame))
    finally:
        kit.service.resume()
    need(isinstance(frame, fr.Reset) and frame.stream == stream, "an answer without a service")
    need(frame.code == ResetCode.UPSTREAM_CONNECT, f"RESET says {frame.code}")
    need(frame.dispatched is False, "RESET does not say dispatched: false")


@rule("garbage", "a local service that does not speak HTTP: RESET(UPSTREAM_PROTOCOL), dispatched true")
def _garbage(kit: Kit) -> None:
    peer = kit.peer()
    stream = peer.request("/garbage")
    peer.expect(fr.Ack, stream)
    frame = peer.expect(fr.Reset, stream)
    need(frame.code == ResetCode.UPSTREAM_PROTOCOL, f"RESET says {frame.code}")
    need(frame.dispatched is not False, "RESET says dispatched: false")


@rule("deadline", "what the deadline allows is kept: a stream is over, by the unit itself, a second after it at most")
def _deadline(kit: Kit) -> None:
    peer = kit.peer()
    stream = peer.request("/hang", deadline_ms=600)
    peer.expect(fr.Ack, stream)
    frame = peer.expect(fr.Reset, stream, within_s=1.7)
    need(frame.code in (ResetCode.UPSTREAM_TIMEOUT, ResetCode.DEADLINE), f"RESET says {frame.code}")


# --- violations


@rule("unknown-type", "a frame of an unknown type is ignored")
def _unknown_type(kit: Kit) -> None:
    peer = kit.peer()
    peer.raw(encode_frame(OP_BINARY, pack_frame(0x7F, 0, 0, b"", b"?")))
    peer.answer(peer.request("/echo"))


def violation(name: str, text: str, data: Callable[[], list[bytes]]) -> None:
    """A rule that such WebSocket frames end the connection."""

    def look(kit: Kit) -> None:
        peer = kit.fresh()
        before = len(kit.service.seen)
        for piece in data():
            peer.raw(piece)
        peer.expect_end()
        need(len(kit.service.seen) == before, "the local service saw it")

    RULES[name] = (f"{text}: GOAWAY(PROTOCOL), then the end", look)


def _binary(*frames: object) -> list[bytes]:
    return [encode_frame(OP_BINARY, f if isinstance(f, bytes) else fr.encode(f)) for f in frames]  # type: ignore[arg-type]


def _request(stream: int, **options: object) -> fr.RequestFrame:
    return fr.RequestFrame(stream, fr.Request("kit", "GET", "/hang", [], **options), b"", True)  # type: ignore[arg-type]


_TWICE = json.dumps({"id": "k", "m": "GET", "t": "/echo", "h": [], "len": None, "dl": 1000, "tp": None, "idem": None})
_TWICE = _TWICE[:-1] + ', "m": "DELETE"}'

violation("critical-type", "a CRITICAL frame of an unknown type", lambda: _binary(pack_frame(0x7F, CRITICAL, 0)))
violation("version", "a frame of another version", lambda: _binary(b"\x02" + fr.encode(fr.Ping(bytes(8)))[1:]))
violation("text", "a text message", lambda: [encode_frame(OP_TEXT, b"hello")])
violation("short-frame", "a message shorter than a frame's prefix", lambda: _binary(b"\x01\x20"))
violation("stream-ids", "a stream id that does not ascend", lambda: _binary(_request(5), _request(3)))
violation("even-stream", "a stream id that is not odd", lambda: _binary(fr.encode(fr.Go(1))[:7] + b"\x02" + bytes(4)))
violation("never-opened", "a frame for a stream that was never opened", lambda: _binary(fr.Data(9, b"x")))
violation("wrong-way", "a frame that only units send", lambda: _binary(fr.Ack(1)))
violation("second-welcome", "a second WELCOME", lambda: _binary(fr.Welcome("again", 1)))
violation("credit", "more body than the credit", lambda: _binary(_post(1), *([fr.Data(1, bytes(16_000))] * 20)))
violation(
    "member-twice", "a header that names a member twice", lambda: _binary(pack_frame(0x10, 1, 1, _TWICE.encode()))
)


def _post(stream: int) -> fr.RequestFrame:
    return fr.RequestFrame(stream, fr.Request("kit", "POST", "/hang", [], None, hold=True), b"", False)


@rule("bad-field", "a line break in a field never reaches the local service: the stream, or all, is reset")
def _bad_field(kit: Kit) -> None:
    peer = kit.fresh()
    before = len(kit.service.seen)
    request = fr.Request("kit", "GET", "/echo", [("x-a", "b\r\nx-forged: c")])
    peer.send(fr.RequestFrame(1, request, b"", True))
    frame = peer.first_of((fr.Reset, fr.GoAway))
    need(getattr(frame, "code", None) in (ResetCode.PROTOCOL, fr.GoAwayCode.PROTOCOL), "not as a protocol violation")
    need(len(kit.service.seen) == before, "the local service saw it")


# --- life


@rule("sync", "a stream that two SYNCs running lack is reset by the unit, one that a single SYNC lacks is not")
def _sync(kit: Kit) -> None:
    peer = kit.peer()
    lost, kept = peer.request("/hang"), peer.request("/slow/1000")
    peer.expect(fr.Ack, lost)
    peer.send(fr.Sync([kept]))
    peer.silent(0.3, lost)
    peer.send(fr.Sync([]))
    frame = peer.first_of((fr.Reset, fr.ResponseFrame))
    need(isinstance(frame, fr.Reset) and frame.stream == lost, "the stream that both lists lack is not reset")
    peer.expect(fr.ResponseFrame, kept)


@rule("drain", "after GOAWAY(DRAIN) a new connection comes before the old one ends, and open requests finish")
def _drain(kit: Kit) -> None:
    peer = kit.fresh()
    stream = peer.request("/slow/1500")
    peer.expect(fr.Ack, stream)
    peer.send(fr.GoAway(fr.GoAwayCode.DRAIN, 0, 100, "draining"))
    kit.listener.next(8.0)
    need(not peer.over.is_set(), "the old connection ended first")
    peer.expect(fr.ResponseFrame, stream)


@rule("again", "after a lost connection the agent dials again")
def _again(kit: Kit) -> None:
    peer = kit.fresh()
    peer.cut()
    kit.listener.next(10.0)

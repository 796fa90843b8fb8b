"""The client's handshake as bytes: whole, byte by byte, and with bytes after it."""

from __future__ import annotations

import pytest

from gateway.agent.endpoint import Endpoint
from gateway.agent.handshake import Handshake, HandshakeBroken, HandshakeRefused

NONCE = b"the sample nonce"  # RFC 6455 1.3
FIELDS = [
    "Upgrade: websocket",
    "Connection: Upgrade",
    "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=",
    "Sec-WebSocket-Protocol: caregate.relay.v1",
]


def answer(fields=FIELDS, status="101 Switching Protocols"):
    return "\r\n".join([f"HTTP/1.1 {status}", *fields, "", ""]).encode("latin-1")


def handshake():
    return Handshake(Endpoint(True, "gw.example", 443, "/relay/v1/connect"), "a.b.c", NONCE)


def test_request():
    assert handshake().request.split(b"\r\n") == [
        b"GET /relay/v1/connect HTTP/1.1",
        b"Host: gw.example",
        b"Connection: Upgrade",
        b"Upgrade: websocket",
        b"Sec-WebSocket-Version: 13",
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        b"Sec-WebSocket-Protocol: caregate.relay.v1",
        b"Authorization: Bearer a.b.c",
        b"",
        b"",
    ]


@pytest.mark.parametrize("rest", [b"", b"\x82\x00", b"HTTP/1.1 200 OK\r\n\r\n"])
@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_upgrade(size, rest):
    shake, data, unread = handshake(), answer() + rest, None
    position = 0
    while unread is None:
        unread = shake.receive(data[position : position + size])
        position += size
    assert unread + data[position:] == rest


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param([*FIELDS[:1], "connection: keep-alive, UPGRADE", *FIELDS[2:]], id="one of several tokens"),
        pytest.param(["upgrade: WebSocket", *FIELDS[1:]], id="case of upgrade"),
        pytest.param([*FIELDS, "Server: x", "X-Request-Id: 1"], id="other fields"),
    ],
)
def test_spellings_that_are_fine(fields):
    assert handshake().receive(answer(fields)) == b""


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(answer(FIELDS[1:]), id="no upgrade"),
        pytest.param(answer(["Upgrade: websocket, h2c", *FIELDS[1:]]), id="two upgrades"),
        pytest.param(answer([FIELDS[0], *FIELDS[2:]]), id="no connection"),
        pytest.param(answer([*FIELDS[:2], *FIELDS[3:]]), id="no accept"),
        pytest.param(answer([*FIELDS, FIELDS[2]]), id="accept twice"),
        pytest.param(answer([*FIELDS[:2], FIELDS[2].upper(), *FIELDS[3:]]), id="accept in another case"),
        pytest.param(answer(FIELDS[:3]), id="no subprotocol"),
        pytest.param(answer([*FIELDS, FIELDS[3]]), id="subprotocol twice"),
        pytest.param(answer([*FIELDS[:3], "Sec-WebSocket-Protocol: caregate.relay.v1, x"]), id="two subprotocols"),
        pytest.param(answer([*FIELDS, "Sec-WebSocket-Extensions: permessage-deflate"]), id="extension"),
        pytest.param(answer([*FIELDS, " folded"]), id="folded"),
        pytest.param(answer([*FIELDS, "A : b"]), id="space before the colon"),
        pytest.param(answer([*FIELDS, "A: \x01"]), id="control character"),
        pytest.param(answer().replace(b"HTTP/1.1", b"HTTP/1.0"), id="version"),
        pytest.param(answer(status="99"), id="status"),
        pytest.param(b"x" * 20_000, id="endless"),
        pytest.param(b"\r\n\r\n", id="empty"),
    ],
)
def test_broken(data):
    with pytest.raises(HandshakeBroken):
        handshake().receive(data)


@pytest.mark.parametrize(
    ("field", "seconds"),
    [
        ("Retry-After: 5", 5),
        ("X: y", None),
        ("Retry-After: -1", None),
        ("Retry-After: 1.5", None),
        ("Retry-After: 99999", 3600),
    ],
)
def test_refused(field, seconds):
    with pytest.raises(HandshakeRefused) as caught:
        handshake().receive(answer([field], "503 Service Unavailable"))
    assert (caught.value.status, caught.value.retry_after_s) == (503, seconds)

"""Bad input at the relay: the stated answer and code, nothing left open, no worker harmed (the rig checks that)."""

from __future__ import annotations

import array
import contextlib
import http.client
import json
import os
import socket
import struct
import threading
import time

import pytest

from fastpath.frames import OP_BINARY, OP_CLOSE, OP_PING, OP_TEXT, encode_close, encode_frame
from gateway.relay.frames import (
    Ack,
    Data,
    GoAwayCode,
    Hello,
    Lease,
    Ping,
    Pong,
    RequestFrame,
    Reset,
    ResetAck,
    Response,
    ResponseFrame,
    Sync,
    Token,
    Welcome,
    Window,
    encode,
)

pytestmark = pytest.mark.integration

PROTOCOL = (int(GoAwayCode.PROTOCOL), 1002)
MASK = b"\1\2\3\4"


# --- dialling


def expired(rig):
    now = int(time.time())
    return rig.unit_token(iat=now - 400, exp=now - 100)


def early(rig):
    now = int(time.time())
    return rig.unit_token(iat=now - 290, exp=now + 100)


TOKENS = [
    ("none", lambda rig: None, 401),
    ("not a token", lambda rig: "a.b.c", 401),
    ("empty", lambda rig: "", 401),
    ("expired", expired, 401),
    ("not yet valid", lambda rig: rig.unit_token(nbf=int(time.time()) + 100), 401),
    ("issued in the future", lambda rig: rig.unit_token(iat=int(time.time()) + 100), 401),
    ("lives too long", lambda rig: rig.unit_token(exp=int(time.time()) + 400), 401),
    ("long life by an early iat", early, 401),
    ("without jti", lambda rig: rig.unit_token(jti=None), 401),
    ("without exp", lambda rig: rig.unit_token(exp=None), 401),
    ("signed by another unit", lambda rig: rig.unit_token(rig.UNIT, signer=rig.OTHER), 401),
    ("own key, another sub", lambda rig: rig.unit_token(sub=rig.OTHER), 401),
    ("own key, another iss", lambda rig: rig.unit_token(iss=rig.OTHER), 401),
    ("another audience", lambda rig: rig.unit_token(aud="staff-portal"), 401),
    ("two audiences of ours", lambda rig: rig.unit_token(aud=["unit-link", "staff-portal"]), 401),
    ("a caller's token", lambda rig: rig.platform.tokens["PRACTITIONER"], 401),
    ("disabled unit", lambda rig: rig.unit_token(rig.CLOSED), 403),
]  # fmt: skip


@pytest.mark.parametrize(("token", "status"), [row[1:] for row in TOKENS], ids=[row[0] for row in TOKENS])
def test_tokens(rig, token, status):
    _, answered, head, body = rig.dial(rig.handshake(token(rig)))
    assert answered == status
    assert b"application/problem+json" in head
    assert b"Traceback" not in body
    if status == 401:
        assert b"www-authenticate: bearer" in head.lower()


def test_a_units_token_opens_no_route(rig):
    answer = rig.caller(rig.pids()[0])
    answer.send("GET", f"/probe/v1/{rig.UNIT}/x", Authorization=f"Bearer {rig.unit_token()}")
    assert answer.connection.getresponse().status == 401


def test_a_token_is_for_one_dial_at_whichever_worker(rig):
    token = rig.unit_token()
    first, *others = rig.pids()
    sock, status, _, _ = rig.dial(rig.handshake(token), first)
    assert status == 101
    assert [rig.dial(rig.handshake(token), pid)[1] for pid in (first, *others)] == [401] * 4
    sock.close()


FIELDS = [
    ("origin", {"Origin": "https://evil.test"}, 403),
    ("null origin", {"Origin": "null"}, 403),
    ("no subprotocol", {"Sec_WebSocket_Protocol": None}, 426),
    ("longer subprotocol", {"Sec_WebSocket_Protocol": "caregate.relay.v10"}, 426),
    ("prefix of it", {"Sec_WebSocket_Protocol": "caregate.relay.v"}, 426),
    ("another case", {"Sec_WebSocket_Protocol": "Caregate.Relay.V1"}, 426),
    ("separated by blanks", {"Sec_WebSocket_Protocol": "a caregate.relay.v1 b"}, 426),
    ("quoted", {"Sec_WebSocket_Protocol": '"caregate.relay.v1"'}, 426),
    ("another version", {"Sec_WebSocket_Version": "8"}, 426),
    ("no upgrade", {"Upgrade": None, "Connection": "keep-alive"}, 426),
    ("another upgrade", {"Upgrade": "h2c"}, 426),
    ("not connection upgrade", {"Connection": "notupgradeable"}, 400),
    ("no key", {"Sec_WebSocket_Key": None}, 400),
    ("short key", {"Sec_WebSocket_Key": "AAAA"}, 400),
    ("bad key", {"Sec_WebSocket_Key": "!" * 24}, 400),
    ("key of 17 bytes", {"Sec_WebSocket_Key": "A" * 23 + "="}, 400),
    ("body", {"Content_Length": "5"}, 400),
    ("basic", {"Authorization": "Basic eDp5"}, 401),
]


@pytest.mark.parametrize(("changes", "status"), [row[1:] for row in FIELDS], ids=[row[0] for row in FIELDS])
def test_handshakes(rig, changes, status):
    request = rig.handshake(rig.unit_token(), **changes)
    _, answered, head, _ = rig.dial(request + (b"12345" if "Content_Length" in changes else b""))
    assert answered == status
    assert b"application/problem+json" in head


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "HEAD"])
def test_other_methods_of_the_connect_path(rig, method):
    request = rig.handshake(rig.unit_token()).replace(b"GET", method.encode(), 1)
    assert rig.dial(request)[1] in (405, 501)


def test_a_token_in_the_query_is_no_token(rig):
    request = rig.handshake(None).replace(b"/connect ", f"/connect?access_token={rig.unit_token()} ".encode(), 1)
    assert rig.dial(request)[1] in (400, 401)


def test_two_authorizations(rig):
    request = rig.handshake(rig.unit_token())
    extra = f"Authorization: Bearer {rig.unit_token()}\r\n\r\n".encode()
    assert rig.dial(request[:-2] + extra)[1] == 400


def test_too_many_connections_of_one_unit(rig, wait):
    units = [rig.unit(lambda unit, request: None) for _ in range(4)]
    wait(lambda: all(u["siblings"] + len(u["connections"]) == 4 for s in rig.states().values() for u in s["units"]))
    _, status, head, _ = rig.dial(rig.handshake(rig.unit_token()))
    assert status == 409
    assert b"retry-after" in head.lower()
    assert not any(unit.over.is_set() for unit in units)


# --- frames, each against a fresh connection that said HELLO


def relay(kind, flags=0, stream=0, aux=0, rest=b"", version=1):
    return struct.pack("!BBHII", version, kind, flags, stream, aux) + rest


def header(kind, value, flags=2, stream=0, body=b""):
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return relay(kind, flags, stream, len(data), data + body)


OK = Response(200, [], 0)

VIOLATIONS = [
    ("empty message", b""),
    ("short prefix", b"\1\1\0"),
    ("another version", relay(0x20, version=2, rest=b"12345678")),
    ("header longer than the message", relay(0x12, 2, 1, 1 << 30, b"{}")),
    ("header of 33 KiB", header(0x10, b'{"a":"' + b"x" * 33_000 + b'"}', stream=1)),
    ("header not JSON", header(0x24, b"{nope")),
    ("header not an object", header(0x23, [])),
    ("header deep", header(0x26, b"[" * 20_000)),
    ("flag without header", relay(0x13, 2, 1, 0)),
    ("strange flag", relay(0x20, 1, rest=b"12345678")),
    ("critical unknown type", relay(0x7F, 4)),
    ("second HELLO", encode(Hello("raw", "again", 0))),
    ("WELCOME", encode(Welcome("c", 1))),
    ("REQ from a unit", header(0x10, {"id": "a", "m": "GET", "t": "/", "h": [], "len": 0, "dl": 9}, stream=1)),
    ("RES without REQ", encode(ResponseFrame(1, OK, b"", True))),
    ("ACK without REQ", encode(Ack(1))),
    ("DATA without REQ", encode(Data(7, b"x", False))),
    ("RESET without REQ", encode(Reset(1, 1, "", False))),
    ("RESET_ACK without REQ", encode(ResetAck(1, False))),
    ("WINDOW without REQ", encode(Window(1, 10))),
    ("GO from a unit", relay(0x17, 0, 1)),
    ("TOKEN_OK from a unit", header(0x24, {"exp": 1})),
    ("even stream", encode(ResponseFrame(2, OK, b"", True))),
    ("stream 0", relay(0x11)),
    ("WINDOW of nothing", relay(0x14)),
    ("WINDOW over 2^31", relay(0x14, aux=0xFFFFFFFF)),
    ("PING of seven bytes", relay(0x20, rest=b"1234567")),
    ("SYNC of five bytes", relay(0x25, rest=b"12345")),
    ("LEASE below zero", header(0x26, {"max_streams": -1})),
    ("GOAWAY without a code", header(0x22, {})),
    ("TOKEN of a number", header(0x23, {"token": 1})),
    ("ping with a stream", relay(0x20, stream=1, rest=b"12345678")),
]


@pytest.mark.parametrize("message", [row[1] for row in VIOLATIONS], ids=[row[0] for row in VIOLATIONS])
def test_violations(rig, message):
    unit = rig.raw_unit()
    unit.message(message)
    assert unit.verdict() == PROTOCOL


def test_window_overflow_by_sum(rig):
    unit = rig.raw_unit()
    unit.message(encode(Window(0, 2**31 - 1)))
    assert unit.verdict() == PROTOCOL


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(relay(0x7F, rest=b"whatever"), id="unknown type"),
        pytest.param(encode(Sync([])), id="SYNC"),
        pytest.param(encode(Lease(3)), id="LEASE"),
        pytest.param(encode(Pong(b"unasked!")), id="PONG"),
        pytest.param(encode(Window(0, 1)), id="WINDOW"),
    ],
)
def test_harmless_messages(rig, message):
    unit = rig.raw_unit()
    unit.message(message)
    unit.message(encode(Ping(b"12345678")))
    assert unit.next() == Pong(b"12345678")
    unit.sock.close()


FIRST = [
    ("ping", encode(Ping(b"12345678")), None),
    ("response", encode(ResponseFrame(1, OK, b"", True)), PROTOCOL),
    ("token", encode(Token("x")), PROTOCOL),
    ("window", encode(Window(0, 1)), PROTOCOL),
    ("WELCOME", encode(Welcome("c", 1)), PROTOCOL),
    ("HELLO without fields", header(0x01, {}), PROTOCOL),
    ("HELLO, index -1", header(0x01, {"agent": "a", "instance": "i", "index": -1}), PROTOCOL),
]


@pytest.mark.parametrize(("message", "verdict"), [row[1:] for row in FIRST], ids=[row[0] for row in FIRST])
def test_before_hello(rig, message, verdict):
    unit = rig.raw_unit(hello=False)
    unit.message(message)
    if verdict is None:
        assert unit.next() == Pong(b"12345678")
        unit.sock.close()
    else:
        assert unit.verdict() == verdict


def test_connections_that_never_say_hello(rig):
    units = [rig.raw_unit(hello=False, unit=name) for name in (rig.UNIT, rig.OTHER) * 3]
    started_s = time.monotonic()
    assert {unit.verdict()[0] for unit in units} == {int(GoAwayCode.PROTOCOL)}
    assert 0.5 < time.monotonic() - started_s < 5
    assert all(not state["units"] for state in rig.states().values())


# --- WebSocket frames


def frame(first, length, payload=b"", masked=True):
    head = bytes([first])
    bit = 0x80 if masked else 0
    if length < 126:
        head += bytes([bit | length])
    elif length < 65_536:
        head += bytes([bit | 126]) + struct.pack("!H", length)
    else:
        head += bytes([bit | 127]) + struct.pack("!Q", length)
    return head + (MASK if masked else b"") + payload


WEBSOCKET = [
    ("unmasked", encode_frame(OP_BINARY, encode(Ping(b"12345678"))), 1002),
    ("1 GiB announced", frame(0x82, 1 << 30), 1009),
    ("2^63 announced", frame(0x82, 1 << 63), (1002, 1009)),
    ("129 KiB", frame(0x82, 132_096), 1009),
    ("text", encode_frame(OP_TEXT, b"hello", MASK), 1003),
    ("empty text", encode_frame(OP_TEXT, b"", MASK), 1003),
    ("text that is not UTF-8", encode_frame(OP_TEXT, b"\xff\xfe", MASK), (1003, 1007)),
    ("compressed bit", frame(0xC2, 3, b"abc"), 1002),
    ("unknown opcode", frame(0x83, 3, b"abc"), 1002),
    ("unknown control", frame(0x8B, 3, b"abc"), 1002),
    ("ping of 126 bytes", frame(0x89, 126, b"x" * 126), 1002),
    ("fragmented ping", frame(0x09, 3, b"abc"), 1002),
    ("continuation of nothing", frame(0x80, 3, b"abc"), 1002),
    ("new message inside one", frame(0x02, 3, b"abc") + frame(0x82, 3, b"abc"), 1002),
    ("fragments over the limit", (frame(0x02, 65_000, b"x" * 65_000)) + frame(0x00, 65_000, b"x" * 65_000) * 2, 1009),
    ("long form of a short length", b"\x82\xfe\x00\x03" + MASK + b"abc", 1002),
    ("close of one byte", frame(0x88, 1, b"x"), 1002),
    ("close with code 1005", encode_frame(OP_CLOSE, struct.pack("!H", 1005), MASK), 1002),
]


@pytest.mark.parametrize(("data", "code"), [row[1:] for row in WEBSOCKET], ids=[row[0] for row in WEBSOCKET])
def test_websocket_violations(rig, data, code):
    unit = rig.raw_unit()
    unit.raw(data)
    goaway, close = unit.verdict()
    assert goaway == int(GoAwayCode.PROTOCOL)
    assert close in (code if isinstance(code, tuple) else (code,))


def test_a_message_in_fragments_with_a_ping_between(rig):
    unit = rig.raw_unit()
    message = encode(Ping(b"12345678"))
    masked = (
        bytes(b ^ MASK[i % 4] for i, b in enumerate(message[:7])),
        bytes(b ^ MASK[i % 4] for i, b in enumerate(message[7:])),
    )
    unit.raw(frame(0x02, 7, masked[0]))
    unit.raw(encode_frame(OP_PING, b"between", MASK))
    unit.raw(frame(0x80, len(message) - 7, masked[1]))
    assert unit.next() == Pong(b"12345678")
    unit.sock.close()


def test_bytes_one_by_one(rig):
    unit = rig.raw_unit()
    for byte in encode_frame(OP_BINARY, encode(Ping(b"12345678")), MASK):
        unit.raw(bytes([byte]))
    assert unit.next() == Pong(b"12345678")
    unit.sock.close()


@pytest.mark.parametrize(
    ("data", "code"),
    [
        pytest.param(encode_close(1000, "", MASK), 1000, id="with a code"),
        pytest.param(encode_frame(OP_CLOSE, b"", MASK), (1000, 1001, 1005), id="without"),
        pytest.param(encode_close(1012, "restart", MASK), (1000, 1012), id="service restart"),
    ],
)
def test_a_units_close_is_answered(rig, data, code):
    unit = rig.raw_unit()
    unit.raw(data)
    assert unit.verdict()[1] in (code if isinstance(code, tuple) else (code,))


def test_random_bytes(rig):
    for _ in range(10):
        unit = rig.raw_unit()
        with contextlib.suppress(OSError):
            unit.raw(os.urandom(5000))
            unit.sock.shutdown(socket.SHUT_WR)
        assert unit.verdict()[1] in (1002, 1003, 1007, 1009)


# --- a unit that misuses an open stream


def misuse(*messages):
    """Answer the request at stream 1 with these."""

    def run(unit):
        request = unit.next()
        assert isinstance(request, RequestFrame)
        for message in messages:
            unit.message(message)

    return run


RES = encode(ResponseFrame(1, Response(200, [], None), b"abc", False))
WHOLE = encode(ResponseFrame(1, Response(200, [], 2), b"ok", True))
ACK = encode(Ack(1))

STREAMS = [
    ("RES without ACK", misuse(WHOLE), 502, PROTOCOL),
    ("two ACKs", misuse(ACK, ACK), 502, PROTOCOL),
    ("two RES", misuse(ACK, RES, RES), 502, PROTOCOL),
    ("DATA before RES", misuse(ACK, encode(Data(1, b"x", False))), 502, PROTOCOL),
    ("over the stream's window", misuse(ACK, RES, *[encode(Data(1, b"x" * 60_000, False))] * 80), None, PROTOCOL),
    ("WINDOW overflow", misuse(ACK, encode(Window(0, 2**31 - 1))), 502, PROTOCOL),
    ("a text message", lambda unit: (unit.next(), unit.raw(encode_frame(OP_TEXT, b"hi", MASK))), 502, (4, 1003)),
    ("whole, then DATA", misuse(ACK, WHOLE, encode(Data(1, b"x", True))), 200, None),
    ("whole, twice", misuse(ACK, WHOLE, WHOLE), 200, None),
    ("whole, then RESET", misuse(ACK, WHOLE, encode(Reset(1, 1, "", True))), 200, None),
    ("whole, then WINDOW", misuse(ACK, WHOLE, encode(Window(1, 5))), 200, None),
]  # fmt: skip


@pytest.mark.parametrize("hops", ["held", "mesh"])
@pytest.mark.parametrize(("run", "status", "verdict"), [row[1:] for row in STREAMS], ids=[row[0] for row in STREAMS])
def test_streams(rig, run, status, verdict, hops):
    unit = rig.raw_unit()
    rig.settle(rig.UNIT)
    states = rig.states()
    holder = next(pid for pid, s in states.items() for u in s["units"] if u["connections"])
    caller = rig.caller(holder if hops == "held" else next(pid for pid in states if pid != holder))
    if status is None:
        # A caller that does not read: no credit comes back, and the unit sends on.
        caller.connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
    caller.send("GET", f"/bulk/v1/{rig.UNIT}/x")
    with contextlib.suppress(OSError):
        run(unit)
    if verdict is not None:
        assert unit.verdict() == verdict
    response = caller.connection.getresponse()
    if status is None:
        # How much of it was in hand by then decides.
        assert response.status == 502 or not is_whole(response)
    else:
        assert response.status == status
    if verdict is None:
        assert response.read() == b"ok"
        unit.message(encode(Ping(b"12345678")))
        assert unit.next() == Pong(b"12345678")
        unit.sock.close()


def is_whole(response):
    try:
        response.read()
    except (http.client.IncompleteRead, OSError):
        return False
    return True


def test_a_flood_of_pings_that_nobody_reads_the_answers_of(rig):
    unit = rig.raw_unit()
    unit.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    ping = encode_frame(OP_BINARY, encode(Ping(b"12345678")), MASK) * 2000
    unit.sock.settimeout(5)
    with contextlib.suppress(OSError):
        for _ in range(200):
            unit.raw(ping)
    unit.sock.close()
    answer = rig.caller(rig.pids()[0])("GET", f"/probe/v1/{rig.GHOST}/x")
    assert answer.status == 503
    rig.settle(rig.UNIT, present=False)


def test_two_hundred_connects_in_a_second(rig, wait):
    """More than one unit may have: each is welcomed or refused in words, and afterwards the unit is as well as ever."""
    requests = [rig.handshake(rig.unit_token()) for _ in range(200)]
    found = []

    def dial(own):
        for request in own:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", rig.port), timeout=10) as sock:
                sock.sendall(request)
                found.append(int(sock.recv(65_536)[9:12] or 0))

    threads = [threading.Thread(target=dial, args=(requests[n::10],)) for n in range(10)]
    started_s = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(found) == 200
    assert set(found) <= {101, 409, 429, 503}
    assert time.monotonic() - started_s < 15

    def script(unit, request):
        unit.ack(request.stream)
        unit.answer(request.stream, 200, b"fine")

    unit = rig.unit(script)
    assert rig.caller(unit.worker)("GET", f"/probe/v1/{rig.UNIT}/x").body == b"fine"


# --- the sockets of the machine itself

GARBAGE = [
    ("nothing", b""),
    ("random", os.urandom(500)),
    ("HTTP", b"GET / HTTP/1.1\r\n\r\n"),
    ("1 GiB", b"\x40\x00\x00\x00\x00" + b"x" * 100),
    ("zero length", b"\0\0\0\0\0"),
    ("membership not JSON", struct.pack("!IB", 6, 1) + b"{nope"),
    ("membership not an object", struct.pack("!IB", 3, 1) + b"[]"),
    ("membership of wrong types", struct.pack("!IB", 11, 1) + b'{"up":[1]}'),
    ("name of a number", struct.pack("!IB", 11, 1) + b'{"name":17}'),
    ("relay frame of garbage", struct.pack("!IB", 21, 0) + b"x" * 20),
    ("JSON", b'{"verb":"reload"'),
    ("deep JSON", b"[" * 100_000 + b"\n"),
    ("lines", b"\n\n\n\n"),
]


@pytest.mark.parametrize("data", [row[1] for row in GARBAGE], ids=[row[0] for row in GARBAGE])
def test_garbage_to_the_sockets_between_processes(rig, data):
    paths = [p for p in (rig.platform.directory / "run").iterdir() if p.is_socket()]
    assert len(paths) >= 12
    for path in paths:
        assert path.stat().st_mode & 0o077 == 0
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(1)
            sock.connect(str(path))
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(65_536):
                pass

    def script(unit, request):
        unit.ack(request.stream)
        unit.answer(request.stream, 200, b"fine")

    rig.unit(script)
    for pid in rig.pids():
        assert rig.caller(pid)("GET", f"/probe/v1/{rig.UNIT}/x").body == b"fine"


@pytest.mark.parametrize("descriptors", [0, 1, 3])
def test_garbage_with_descriptors_to_the_handover_sockets(rig, descriptors):
    before = {pid: len(os.listdir(f"/proc/{pid}/fd")) for pid in rig.pids()}
    pair = socket.socketpair()
    for path in (rig.platform.directory / "run").glob("handover-*"):
        for payload in (b"{}", b"nope", b'{"unit":"nobody","exp":1,"unread":""}', b'{"unit":[],"exp":{},"unread":1}'):
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
                sock.settimeout(2)
                sock.connect(str(path))
                rights = array.array("i", [pair[0].fileno()] * descriptors)
                ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if descriptors else []
                sock.sendmsg([payload], ancillary)
                with contextlib.suppress(OSError):
                    sock.recv(1)
    for sock in pair:
        sock.close()
    time.sleep(0.3)
    after = {pid: len(os.listdir(f"/proc/{pid}/fd")) for pid in rig.pids()}
    assert all(after[pid] <= before[pid] + 3 for pid in before), (before, after)


# --- the real agent against a gateway that is none


GATEWAYS = [
    ("closes", b""),
    ("garbage", os.urandom(3000)),
    ("refuses", b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n"),
    ("wrong accept", b"HTTP/1.1 101 X\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: x\r\n\r\n"),
    ("endless head", b"HTTP/1.1 101 X\r\n" + b"A: b\r\n" * 10_000),
]


@pytest.mark.parametrize("data", [row[1] for row in GATEWAYS], ids=[row[0] for row in GATEWAYS])
def test_the_agent_survives_a_strange_gateway(rig, wait, data):
    """It dials on, at its own pace, and prints no traceback."""
    strange = rig.service(lambda sock, head, body: sock.sendall(data))
    log = rig.platform.logs / f"agent-{rig.OTHER}.log"
    mark = log.stat().st_size if log.exists() else 0
    agent = rig.agent(1, rig.OTHER, strange.port, "--connections", "1")
    wait(lambda: strange.seen)
    time.sleep(0.5)
    assert agent.poll() is None
    assert len(strange.seen) < 5
    written = log.read_bytes()[mark:]
    assert b"Traceback" not in written
    assert b"Bearer" not in written

"""A small agent with threads, all of the protocol and one fault: the environment's BREAK says which rule it breaks."""

from __future__ import annotations

import base64
import http.client
import os
import random
import re
import socket
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import jwt
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from fastpath.frames import (
    OP_BINARY,
    OP_CLOSE,
    OP_PING,
    OP_PONG,
    OP_TEXT,
    Decoder,
    decode_close,
    encode_close,
    encode_frame,
)
from gateway.relay import events as ev
from gateway.relay import frames as fr
from gateway.relay.session import Limits, State, UnitSession

BREAK = os.environ.get("BREAK", "")
SYNC_S = STALL_S = 1.0
GATEWAY = urlsplit(os.environ["CAREGATE_GATEWAY"])
TARGET = urlsplit(os.environ["CAREGATE_TARGET"])
UNIT = os.environ["CAREGATE_UNIT"]
KEY = load_pem_private_key(Path(os.environ["CAREGATE_KEY"]).read_bytes(), None)

# What WELCOME says and the broken agent does not heed.
UNHEEDED = {
    "window": (rb'"stream_window":\d+', b'"stream_window":999999'),
    "conn-window": (rb'"conn_window":\d+', b'"conn_window":999999'),
    "max-streams": (rb'"max_streams":\d+', b'"max_streams":64'),
    "max-frame": (rb'"max_frame":\d+', b'"max_frame":65536'),
    "own-ping": (rb'"ping_ms":\d+', b'"ping_ms":60000'),
    "silence": (rb'"dead_ms":\d+', b'"dead_ms":60000'),
}
FIRST_OF_SEVERAL = b"\x02\x05\x01\x10"
"""Binary, not the last, five bytes of a REQ."""
IGNORED = {"ping": fr.FrameType.PING, "sync": fr.FrameType.SYNC, "drain": fr.FrameType.GOAWAY}


def relengthened(message: bytes) -> bytes:
    return message[:8] + (len(message) - fr.PREFIX_BYTES).to_bytes(4, "big") + message[fr.PREFIX_BYTES :]


def withheld(message: bytes) -> bool:
    """Is it a frame that the broken agent never sends?"""
    kind, stream = message[1], int.from_bytes(message[4:8], "big")
    return (BREAK, kind) in {
        ("violations", fr.FrameType.GOAWAY),
        ("bad-field", fr.FrameType.RESET),
        ("deadline", fr.FrameType.RESET),
    } or (BREAK == "conn-credit" and kind == fr.FrameType.WINDOW and stream == 0)


def token() -> str:
    now = int(time.time())
    jti = "always-this" if BREAK == "token" else os.urandom(8).hex()
    claims = {"iss": UNIT, "sub": UNIT, "aud": "unit-link", "iat": now, "exp": now + 200, "jti": jti}
    return jwt.encode(claims, KEY, "EdDSA", {"kid": UNIT})


class Refused(Exception):
    """The gateway said no to the dial; `wait_s` is for how long."""

    def __init__(self, head: bytes) -> None:
        named = re.search(rb"Retry-After: (\d+)", head)
        self.wait_s = 60.0 if named is None else float(named[1])


class Agent:
    """One connection. `over` is set at its end, and at GOAWAY; `retry_s` is how long to wait then."""

    def __init__(self, previous: Agent | None) -> None:
        self.previous = previous
        limits = Limits(stream_window=1 << 20 if BREAK == "window" else 262_144, sync_s=SYNC_S, stall_s=STALL_S)
        hello = fr.Hello("small", "one", stream_window=limits.stream_window)
        self.session = UnitSession(limits, time.monotonic(), hello)
        self.lock = threading.RLock()
        self.over = threading.Event()
        self.ended = False
        self.retry_s = 0.1
        self.leaving = False
        self.renew_s = float("inf")
        self.acked: set[int] = set()
        self.bodies: dict[int, bytearray] = {}
        self.held: dict[int, fr.Request] = {}
        self.connections: dict[int, http.client.HTTPConnection] = {}
        self.goodbye = encode_close(1002, "", b"mask")
        self.sock, self.unread = dial()

    def run(self) -> None:
        threading.Thread(target=self.keep_time, daemon=True).start()
        try:
            self.read()
        except OSError:
            pass
        self.ended = True
        self.sock.close()
        self.over.set()

    def read(self) -> None:
        decoder, data = Decoder(masked=False, max_bytes=131_072), self.unread
        if BREAK == "hello":
            self.sock.sendall(encode_frame(OP_BINARY, fr.encode(fr.Ping(bytes(8))), b"mask"))
        self.flush()
        while True:
            if BREAK == "fragments" and FIRST_OF_SEVERAL in data:
                self.session.violate("fragment", "the first of several")
            for opcode, payload in decoder.feed(data) if data else []:
                self.take(opcode, payload)
            self.flush()
            if self.session.state is State.CLOSED and BREAK != "violations":
                self.sock.sendall(self.goodbye)
                return
            data = self.sock.recv(65_536)
            if not data:
                return

    def keep_time(self) -> None:
        while not self.ended:
            time.sleep(0.05)
            try:
                self.tick()
            except OSError:
                return

    def tick(self) -> None:
        with self.lock:
            was = self.session.state
            self.session.tick(time.monotonic())
            if time.time() >= self.renew_s and BREAK != "token-renewal":
                self.renew_s = float("inf")
                self.session.renew_token(token())
            if self.leaving and self.session.idle:
                self.session.close(fr.GoAwayCode.DRAIN, "left")
            self.flush()
            if self.session.state is State.CLOSED is not was:
                self.sock.shutdown(socket.SHUT_RD)

    def take(self, opcode, payload) -> None:
        with self.lock:
            if opcode == OP_PING:
                self.sock.sendall(encode_frame(OP_PONG, payload, b"mask"))
            elif opcode == OP_CLOSE:
                self.session.close(fr.GoAwayCode.DRAIN, "closed")
                self.goodbye = encode_close(1000 if BREAK == "close" else decode_close(payload)[0], "", b"mask")
            elif opcode == OP_TEXT:
                self.session.violate("text", "a text message")
            elif opcode == OP_BINARY and payload[1] != IGNORED.get(BREAK):
                self.take_frame(payload)

    def take_frame(self, payload: bytes) -> None:
        if BREAK == "unknown-type" and payload[1] == 0x7F:
            self.session.violate("type", "an unknown type")
        if BREAK in UNHEEDED and payload[1] == fr.FrameType.WELCOME:
            payload = relengthened(re.sub(*UNHEEDED[BREAK], payload))
        for event in self.session.receive(payload, time.monotonic()):
            self.on(event)

    def on(self, event) -> None:
        match event:
            case ev.WelcomeReceived(welcome):
                self.renew_s = welcome.token_exp - 3
                if self.previous is not None:
                    self.previous.leave()
            case ev.TokenAccepted(exp):
                self.renew_s = exp - 3
            case ev.GoAwayReceived():
                spread_s = random.random() * event.jitter_ms / 1000
                self.retry_s = 0.0 if BREAK == "retry" else event.retry_ms / 1000 + spread_s
                self.over.set()
            case ev.RequestReceived(stream, request, body, end):
                self.bodies[stream] = bytearray(body)
                self.take_in(stream, request, body)
                if (end and not request.hold) or (BREAK == "hold" and request.hold):
                    self.serve(stream, request)
                else:
                    self.held[stream] = request
                    if not request.hold:
                        self.session.send_ack(stream)
                        self.acked.add(stream)
            case ev.DataReceived(stream, body, end):
                self.bodies[stream] += body
                self.take_in(stream, self.held[stream], body)
                if end and not self.held[stream].hold:
                    self.serve(stream, self.held[stream])
            case ev.GoReceived(stream):
                self.serve(stream, self.held[stream])
            case ev.StreamAborted(stream) if BREAK != "cancel":
                if stream in self.connections and self.connections[stream].sock:
                    self.connections[stream].sock.shutdown(2)

    def take_in(self, stream: int, request: fr.Request, body: bytes) -> None:
        """Of a held request nothing leaves our memory before GO."""
        if BREAK != "body-up" and not request.hold:
            self.session.consumed(stream, len(body))

    def leave(self) -> None:
        with self.lock:
            self.session.go_away(fr.GoAwayCode.DRAIN, "replaced")
            self.leaving = True

    def serve(self, stream: int, request: fr.Request) -> None:
        if BREAK == "at-once":
            self.work(stream, request)
        else:
            threading.Thread(target=self.work, args=(stream, request), daemon=True).start()

    def work(self, stream: int, request: fr.Request) -> None:
        try:
            self.relay(stream, request)
        except ConnectionRefusedError:
            code = fr.ResetCode.INTERNAL if BREAK == "unreachable" else fr.ResetCode.UPSTREAM_CONNECT
            self.say(lambda s: s.reset(stream, code, "", False))
        except TimeoutError:
            self.say(lambda s: s.reset(stream, fr.ResetCode.UPSTREAM_TIMEOUT, "", True))
        except (http.client.HTTPException, OSError):
            self.say(lambda s: s.reset(stream, fr.ResetCode.UPSTREAM_PROTOCOL, "", BREAK != "garbage"))

    def relay(self, stream: int, request: fr.Request) -> None:
        timeout_s = 60 if BREAK == "deadline" else request.deadline_ms / 1000
        local = self.connections[stream] = http.client.HTTPConnection(TARGET.hostname, TARGET.port, timeout=timeout_s)
        local.connect()
        if BREAK not in ("ack", "hold") and stream not in self.acked:
            self.say(lambda s: s.send_ack(stream))
        fields = [] if BREAK == "get" else request.fields
        local.request(request.method, request.target, bytes(self.bodies[stream]) or None, dict(fields))
        answer = local.getresponse()
        body = answer.read()
        if BREAK == "bodiless" and not body:
            body = b"surprise"
        if BREAK in ("ack", "hold"):
            self.say(lambda s: s.streams[stream].held or s.send_ack(stream))
        dropped = ("connection", "keep-alive", "content-length")
        head = [(name.lower(), value) for name, value in answer.getheaders() if name.lower() not in dropped]
        self.say(lambda s: s.send_response(stream, fr.Response(answer.status, head, len(body)), body, True))

    def say(self, what) -> None:
        with self.lock:
            what(self.session)
            self.flush()

    def flush(self) -> None:
        with self.lock:
            for message in iter(lambda: self.session.data_to_send(time.monotonic()), []):
                for part in message:
                    if BREAK == "own-sync" and part[1] == fr.FrameType.SYNC:
                        part = fr.encode(fr.Sync([]))
                    if BREAK == "stall" and part[1] == fr.FrameType.RESET:
                        part = fr.encode(fr.Reset(1, fr.ResetCode.INTERNAL, "", True))
                    if not withheld(part):
                        self.sock.sendall(encode_frame(OP_BINARY, part, os.urandom(4)))


def dial() -> tuple[socket.socket, bytes]:
    """A connection that was upgraded, and what came after the answer's head. Raises: Refused, OSError."""
    sock = socket.create_connection((GATEWAY.hostname, GATEWAY.port))
    path = "/connect" if BREAK == "handshake" else "/relay/v1/connect"
    sock.sendall(
        f"GET {path} HTTP/1.1\r\nHost: kit\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: caregate.relay.v1\r\n"
        f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}\r\n"
        f"Authorization: Bearer {token()}\r\n\r\n".encode()
    )
    data = b""
    while b"\r\n\r\n" not in data:
        piece = sock.recv(4096)
        if not piece:
            raise ConnectionResetError
        data += piece
    if not data.startswith(b"HTTP/1.1 101 "):
        sock.close()
        raise Refused(data)
    return sock, data.partition(b"\r\n\r\n")[2]


def keep_dialling() -> None:
    agent = None
    while True:
        try:
            agent = Agent(agent)
        except Refused as refused:
            time.sleep(0.1 if BREAK in ("refused", "retry-after") else refused.wait_s)
        except OSError:
            time.sleep(0.1)
        else:
            threading.Thread(target=agent.run, daemon=True).start()
            agent.over.wait()
            time.sleep(60 if BREAK == "again" else agent.retry_s)


keep_dialling()

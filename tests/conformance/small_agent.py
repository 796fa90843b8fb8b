"""A small agent with threads, all of the protocol and one fault: the environment's BREAK says which rule it breaks."""

from __future__ import annotations

import base64
import http.client
import os
import socket
import sys
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import jwt
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from fastpath.frames import OP_BINARY, OP_PING, OP_PONG, OP_TEXT, Decoder, encode_close, encode_frame
from gateway.relay import events as ev
from gateway.relay import frames as fr
from gateway.relay.session import Limits, State, UnitSession

BREAK = os.environ.get("BREAK", "")
GATEWAY = urlsplit(os.environ["CAREGATE_GATEWAY"])
TARGET = urlsplit(os.environ["CAREGATE_TARGET"])
UNIT = os.environ["CAREGATE_UNIT"]
KEY = load_pem_private_key(Path(os.environ["CAREGATE_KEY"]).read_bytes(), None)


def token() -> str:
    now = int(time.time())
    jti = "always-this" if BREAK == "token" else os.urandom(8).hex()
    claims = {"iss": UNIT, "sub": UNIT, "aud": "unit-link", "iat": now, "exp": now + 200, "jti": jti}
    return jwt.encode(claims, KEY, "EdDSA", {"kid": UNIT})


class Agent:
    def __init__(self) -> None:
        limits = Limits(stream_window=1 << 20) if BREAK == "window" else Limits()
        hello = fr.Hello("small", "one", stream_window=limits.stream_window)
        self.session = UnitSession(limits, time.monotonic(), hello)
        self.lock = threading.RLock()
        self.acked: set[int] = set()
        self.bodies: dict[int, bytearray] = {}
        self.connections: dict[int, http.client.HTTPConnection] = {}
        self.sock = socket.create_connection((GATEWAY.hostname, GATEWAY.port))
        path = "/connect" if BREAK == "handshake" else "/relay/v1/connect"
        self.sock.sendall(
            f"GET {path} HTTP/1.1\r\nHost: kit\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: caregate.relay.v1\r\n"
            f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}\r\n"
            f"Authorization: Bearer {token()}\r\n\r\n".encode()
        )

    def run(self) -> None:
        data = b""
        while b"\r\n\r\n" not in data:
            data += self.sock.recv(4096) or sys.exit(1)
        data = data.partition(b"\r\n\r\n")[2]
        decoder = Decoder(masked=False, max_bytes=131_072)
        self.flush()
        while self.session.state is not State.CLOSED:
            for opcode, payload in decoder.feed(data) if data else []:
                self.take(opcode, payload)
            self.flush()
            if self.session.state is State.CLOSED:
                break
            data = self.sock.recv(65_536)
            if not data:
                return
        if BREAK != "version":
            self.sock.sendall(encode_close(1002, "", b"mask"))
            self.sock.close()
        else:
            time.sleep(60)

    def take(self, opcode, payload) -> None:
        with self.lock:
            if opcode == OP_PING:
                self.sock.sendall(encode_frame(OP_PONG, payload, b"mask"))
            elif opcode == OP_TEXT and BREAK != "text":
                self.session.violate("text", "a text message")
            elif opcode == OP_BINARY and not (
                (BREAK == "ping" and payload[1] == fr.FrameType.PING)
                or (BREAK == "sync" and payload[1] == fr.FrameType.SYNC)
            ):
                if BREAK == "window" and payload[1] == fr.FrameType.WELCOME:
                    payload = payload.replace(b'"stream_window":65536', b'"stream_window":99999')
                for event in self.session.receive(payload, time.monotonic()):
                    self.on(event)

    def on(self, event) -> None:
        match event:
            case ev.RequestReceived(stream, request, body, end):
                self.bodies[stream] = bytearray(body)
                self.session.consumed(stream, len(body))
                if (end and not request.hold) or (BREAK == "hold" and request.hold):
                    self.serve(stream, request)
                else:
                    self.bodies[-stream] = request
                    if not request.hold:
                        self.session.send_ack(stream)
                        self.acked.add(stream)
            case ev.DataReceived(stream, body, end):
                self.bodies[stream] += body
                if BREAK != "body-up":
                    self.session.consumed(stream, len(body))
                if end:
                    self.serve(stream, self.bodies[-stream])
            case ev.GoReceived(stream):
                self.serve(stream, self.bodies[-stream])
            case ev.StreamAborted(stream) if BREAK != "cancel":
                if stream in self.connections and self.connections[stream].sock:
                    self.connections[stream].sock.shutdown(2)

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
                    self.sock.sendall(encode_frame(OP_BINARY, part, os.urandom(4)))


while True:
    try:
        Agent().run()
    except OSError:
        pass
    if BREAK == "again":
        time.sleep(60)
    time.sleep(0.1)

"""A gateway's side of the relay in a few lines: real sockets and the real session, told what to do by each test."""

from __future__ import annotations

import base64
import hashlib
import socket as plain_socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent.server import StreamServer

from fastpath import frames as ws
from gateway.agent.identity import UnitIdentity
from gateway.agent.settings import AgentSettings, parse_gateway
from gateway.relay import events as ev
from gateway.relay.frames import MAX_FRAME_BYTES, Request, Welcome
from gateway.relay.session import GatewaySession, Limits
from loadtests.credentials import write_unit_key

UNIT = "load-unit-0001"


class RelayPeer:
    """Accepts units. `refuse` answers the handshake instead; `requests` are asked of each unit that is welcomed."""

    def __init__(self) -> None:
        self.refuse: bytes | None = None
        self.requests: list[tuple[Request, bytes]] = []
        self.token_lifetime_s = 300
        self.then: Callable[[GatewaySession], None] | None = None
        self.hang_up = False
        self.unasked = b""
        """Bytes sent after everything else."""
        self.heads: list[bytes] = []
        self.events: list[Any] = []
        self.server = StreamServer(("127.0.0.1", 0), self._serve)
        self.server.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def _serve(self, sock: Any, _address: object) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            head += sock.recv(4096)
        self.heads.append(head)
        if self.refuse is not None:
            sock.sendall(self.refuse)
            return
        sock.sendall(_switch(head))
        try:
            self._relay(sock)
        except OSError:
            pass

    def _relay(self, sock: Any) -> None:
        session, decoder = (
            GatewaySession(Limits(), time.monotonic()),
            ws.Decoder(masked=True, max_bytes=MAX_FRAME_BYTES),
        )
        while data := sock.recv(65536):
            for opcode, payload in decoder.feed(data):
                if opcode == ws.OP_CLOSE:
                    return
                for event in session.receive(payload, time.monotonic()):
                    self.events.append(event)
                    if isinstance(event, ev.HelloReceived):
                        self._welcome(session, event.hello)
                    elif isinstance(event, ev.TokenReceived):
                        session.accept_token(int(time.time()) + 300, time.monotonic() + 300)
            while messages := session.data_to_send(time.monotonic()):
                sock.sendall(b"".join(ws.encode_frame(ws.OP_BINARY, message) for message in messages))
            sock.sendall(self.unasked)
            if self.hang_up:
                sock.shutdown(plain_socket.SHUT_RDWR)
                return

    def _welcome(self, session: GatewaySession, hello: Any) -> None:
        session.welcome(Welcome("c1", 1, token_exp=int(time.time()) + self.token_lifetime_s), time.monotonic(), hello)
        for request, body in self.requests:
            session.send_request(request, time.monotonic() + 10, body)
        if self.then is not None:
            self.then(session)


def _switch(head: bytes) -> bytes:
    key = next(line.split(b": ")[1] for line in head.split(b"\r\n") if line.startswith(b"Sec-WebSocket-Key"))
    accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Protocol: caregate.relay.v1\r\nSec-WebSocket-Accept: " + accept + b"\r\n\r\n"
    )


@pytest.fixture
def relay_peer() -> Iterator[RelayPeer]:
    peer = RelayPeer()
    yield peer
    peer.server.stop(timeout=1)


@pytest.fixture
def unit_key(tmp_path: Path) -> Path:
    return write_unit_key(UNIT, tmp_path)


@pytest.fixture
def settings(relay_peer: RelayPeer, unit_key: Path) -> AgentSettings:
    endpoint = parse_gateway(relay_peer.url)
    identity = UnitIdentity(UNIT, UNIT, unit_key.read_bytes())
    return AgentSettings(gateway=endpoint, identity=identity)


@pytest.fixture
def until() -> Callable[[Callable[[], Any]], Any]:
    """Wait on the hub until something is true."""

    def wait(check: Callable[[], Any]) -> Any:
        with gevent.Timeout(5):
            while not (found := check()):
                gevent.sleep(0.002)
        return found

    return wait

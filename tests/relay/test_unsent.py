"""What a link has given the kernel cannot be overtaken: over a real connection whose reader rests, it is little."""

from __future__ import annotations

import select
import socket as plain
import time
from types import SimpleNamespace

import gevent
import pytest
from gevent import socket, ssl

from fastpath.frames import OP_BINARY, Decoder, encode_frame
from gateway.agent.link import Link as AgentLink
from gateway.relay import events as ev
from gateway.relay import frames as fr
from gateway.relay.core import Limits
from gateway.relay.link import Link
from gateway.relay.session import GatewaySession, UnitSession
from gateway.relay.unsent import UNSENT_BYTES, limit_unsent
from gateway.relay.websocket import UnitSocket

LARGE = 8 * 1_048_576
WIDE = Limits(stream_window=LARGE, conn_window=2 * LARGE, queue_bytes=2 * LARGE)
HELLO = fr.Hello("a", "b", stream_window=LARGE, conn_window=2 * LARGE)
WELCOME = fr.Welcome("c", 1, stream_window=LARGE, conn_window=2 * LARGE)

MOST_AHEAD = 196_608
"""A turn that is being written, one that is unsent, a segment of 64 KiB that filled up, the receiver's buffer, and some
more for kernels that cut otherwise. A whole send buffer is megabytes."""


@pytest.fixture
def ends():
    """(writer's socket, reader's socket) over TCP; the reader's kernel takes little."""
    with plain.socket() as listener:
        listener.setsockopt(plain.SOL_SOCKET, plain.SO_RCVBUF, 4096)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        ours = socket.create_connection(listener.getsockname())
        accepted, _ = listener.accept()
    theirs = socket.socket(fileno=accepted.detach())
    yield ours, theirs
    ours.close()
    theirs.close()


class Nobody:
    """A sink that is told nothing of interest."""

    def on_ack(self): ...
    def on_flushed(self, size): ...
    def on_failed(self, failure): ...


class Reader:
    """The peer's session, which reads when it is asked to."""

    def __init__(self, sock, session, masked):
        self.sock, self.session = sock, session
        self.decoder = Decoder(masked=masked, max_bytes=131_072)

    def events(self):
        with gevent.Timeout(5):
            data = self.sock.recv(4096)
        assert data
        return [
            event
            for opcode, message in self.decoder.feed(data)
            if opcode == OP_BINARY
            for event in self.session.receive(message, time.monotonic())
        ]

    def until(self, kind, stream=0):
        """The body bytes that come before an event of this kind and stream."""
        size = 0
        while True:
            for event in self.events():
                if isinstance(event, kind) and getattr(event, "stream", 0) == stream:
                    return size
                size += len(getattr(event, "body", b""))

    def send(self, mask=None):
        for message in self.session.data_to_send(time.monotonic()):
            self.sock.sendall(encode_frame(OP_BINARY, message, mask))


def until(ready):
    with gevent.Timeout(5):
        while not ready():
            gevent.sleep(0.001)


def until_full(sock, session):
    """The kernel takes no more of what the session has."""
    until(lambda: session.outbox.queued_bytes < LARGE and not select.select([], [sock.fileno()], [], 0)[1])
    assert session.outbox.queued_bytes > LARGE // 8


def test_a_small_request_does_not_wait_behind_an_upload(ends):
    ours, theirs = ends
    link = Link(GatewaySession(WIDE, time.monotonic()), UnitSocket(ours, b"", 131_072))
    link._on_hello = lambda event: link.session.welcome(WELCOME, link.clock(), event.hello)
    running = gevent.spawn(link.run)
    unit = Reader(theirs, UnitSession(WIDE, time.monotonic(), HELLO), masked=False)
    unit.send(b"mask")
    unit.until(ev.WelcomeReceived)
    due_s = time.monotonic() + 60
    link.start(fr.Request("i", "PUT", "/", [], LARGE, 60_000), due_s, Nobody(), bytes(LARGE), True)
    until_full(ours, link.session)
    small = link.start(fr.Request("i", "GET", "/", [], 0, 60_000), due_s, Nobody(), b"", True)
    ahead = unit.until(ev.RequestReceived, small)
    theirs.close()
    running.join(5)
    assert 0 < ahead <= MOST_AHEAD


def test_a_small_answer_does_not_wait_behind_a_download(ends):
    ours, theirs = ends
    log = SimpleNamespace(info=lambda *_, **__: None, warning=lambda *_, **__: None)
    link = AgentLink(SimpleNamespace(max_streams=64), None, log, HELLO, lambda: None)
    link._session, asked = UnitSession(WIDE, time.monotonic(), HELLO), []
    link._start = lambda event: asked.append(event.stream)
    running = gevent.spawn(link.run, ours, b"")
    gateway = Reader(theirs, GatewaySession(WIDE, time.monotonic()), masked=True)
    gateway.until(ev.HelloReceived)
    gateway.session.welcome(WELCOME, time.monotonic(), HELLO)
    for _ in range(2):
        gateway.session.send_request(fr.Request("i", "GET", "/", [], 0, 60_000), time.monotonic() + 60)
    gateway.send()
    until(lambda: len(asked) == 2)
    for stream, body in zip(asked, (bytes(LARGE), b"small"), strict=True):
        link.send_ack(stream)
        link.send_response(stream, fr.Response(200, []), body, True)
        if stream == asked[0]:
            until_full(ours, link._session)
    ahead = gateway.until(ev.ResponseReceived, asked[1])
    theirs.close()
    running.join(5)
    assert 0 < ahead <= MOST_AHEAD


def test_it_holds_under_tls_and_spares_what_is_not_tcp(ends):
    wrapped = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).wrap_socket(
        ends[0], server_side=True, do_handshake_on_connect=False
    )
    limit_unsent(wrapped)
    assert wrapped.getsockopt(plain.IPPROTO_TCP, plain.TCP_NOTSENT_LOWAT) == UNSENT_BYTES
    wrapped.close()
    for end in socket.socketpair():
        limit_unsent(end)
        end.close()

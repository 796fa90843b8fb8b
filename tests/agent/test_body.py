"""Request bodies of unknown length on their way to the local service."""

from __future__ import annotations

import socket as plain_socket

import gevent

from gateway.agent.dial import connect
from gateway.agent.exchange import Exchange
from gateway.agent.services import Services
from gateway.relay import events as ev
from gateway.relay.frames import Request

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"


def test_body_of_unknown_length_is_chunked_and_streams(rig, read):
    received, first = [], gevent.event.Event()

    def serve(number, sock):
        data = b""
        while not data.endswith(b"0\r\n\r\n"):
            data += sock.recv(65536)
            if b"one" in data:
                first.set()
        received.append(data)
        sock.sendall(OK)

    rig.service.handler = serve
    peer = rig.connect()
    stream = peer.request("POST", end=False, length=None)
    peer.data(stream, b"one")
    assert first.wait(5)
    peer.data(stream, b"twotwo")
    peer.data(stream, b"", end=True)
    assert peer.answer(stream)[1] == b"hi"
    head, _, body = received[0].partition(b"\r\n\r\n")
    assert b"transfer-encoding: chunked" in head
    assert body == b"3\r\none\r\n6\r\ntwotwo\r\n0\r\n\r\n"


def test_end_of_a_body_that_comes_while_the_service_does_not_read_is_told(rig, read, monkeypatch):
    """The end alone, without a byte, after all bytes were given to a socket that is full."""
    received, may_read = [], gevent.event.Event()
    size = 200_000

    def narrow(*where):
        sock = connect(*where)
        sock.setsockopt(plain_socket.SOL_SOCKET, plain_socket.SO_SNDBUF, 4096)
        return sock

    monkeypatch.setattr("gateway.agent.local_service.connect", narrow)

    def serve(number, sock):
        sock.setsockopt(plain_socket.SOL_SOCKET, plain_socket.SO_RCVBUF, 4096)
        may_read.wait(5)
        data = b""
        while not data.endswith(b"\r\n0\r\n\r\n") and (piece := sock.recv(65536)):
            data += piece
        received.append(data)
        sock.sendall(OK)

    rig.service.handler = serve
    peer = rig.connect()
    stream = peer.request("POST", end=False, length=None)
    peer.data(stream, b"x" * size)
    peer.expect(ev.Acked)
    gevent.sleep(0.1)
    peer.data(stream, b"", end=True)
    gevent.sleep(0.05)
    may_read.set()
    assert peer.answer(stream)[1] == b"hi"
    assert received[0].count(b"x") >= size


def test_empty_body_of_unknown_length_is_no_body(rig, read):
    seen = []

    def serve(number, sock):
        seen.append(read(sock))
        sock.sendall(OK)

    rig.service.handler = serve
    peer = rig.connect()
    peer.answer(peer.request("POST", length=None))
    assert b"\r\ncontent-length: 0\r\n" in seen[0]


class Counting:
    """A carrier that counts the credit given back."""

    def __init__(self):
        self.given_back = 0

    def send_ack(self, stream):
        return True

    def send_response(self, stream, response, body, end):
        return True

    def consumed(self, stream, size):
        self.given_back += size


def test_credit_of_what_was_being_written_comes_back_with_an_early_answer(rig):
    """A service that answers without reading: what the agent still had in hand is nobody's now."""
    size = 8_000_000

    def serve(number, sock):
        sock.recv(1024)
        sock.sendall(OK)
        gevent.sleep(5)

    rig.service.handler = serve
    carrier = Counting()
    exchange = Exchange(carrier, Services(rig.settings), rig.log, 1, Request("r", "POST", "/x", [], size + 3, 5000))
    exchange.feed(bytes(size), False)
    exchange.run()
    assert carrier.given_back == size

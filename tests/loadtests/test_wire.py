"""A connection of the fleet over real sockets: whole writes, waits that end, and what a closed one says."""

from __future__ import annotations

import socket

import gevent
import pytest
from gevent.socket import socket as gevent_socket

from loadtests.wire import Wire


def _say_hello(wire: Wire, address: tuple[str, int]) -> None:
    wire.connect(*address)
    wire.send(b"hello", 5.0)


@pytest.fixture
def listener():
    listening = gevent_socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen(8)
    yield listening
    listening.close()


@pytest.fixture
def wire():
    made = Wire()
    yield made
    made.close()


def test_a_write_that_the_socket_does_not_take_at_once_is_whole(listener, wire) -> None:
    wire.connect(*listener.getsockname())
    peer, _ = listener.accept()
    data = bytes(range(256)) * 40_000
    sending = gevent.spawn(wire.send, data, 5.0)
    got = b""
    while len(got) < len(data):
        got += peer.recv(1 << 20)
    sending.get(timeout=5)
    assert got == data


def test_what_comes_nothing_in_time_and_the_end(listener, wire) -> None:
    wire.connect(*listener.getsockname())
    peer, _ = listener.accept()
    assert wire.receive(100, 0.001) is None
    peer.sendall(b"word")
    assert wire.receive(100, 5.0) == b"word"
    peer.close()
    assert wire.receive(100, 5.0) == b""


def test_a_port_that_nobody_listens_at_is_an_error(listener, wire) -> None:
    address = listener.getsockname()
    listener.close()
    with pytest.raises(OSError, match="refused"):
        _say_hello(wire, address)


def test_a_closed_one_neither_sends_nor_receives(listener, wire) -> None:
    wire.connect(*listener.getsockname())
    wire.close()
    wire.close()
    with pytest.raises(OSError, match="closed"):
        wire.send(b"x", 1.0)
    with pytest.raises(OSError, match="closed"):
        wire.receive(1, 1.0)


def test_whoever_waits_can_be_thrown_at(listener, wire) -> None:
    wire.connect(*listener.getsockname())
    waiting = gevent.spawn(wire.receive, 10, 60.0)
    gevent.sleep(0.001)
    waiting.kill(socket.timeout, timeout=5)
    assert waiting.dead

"""What runs in the hub itself: writes that a socket does not take whole, and waking whoever waits."""

from __future__ import annotations

import time

import gevent
import greenlet
import pytest
from gevent import socket

from fastpath.frames import OP_BINARY, Decoder
from gateway.relay import frames as fr
from gateway.relay.core import Limits
from gateway.relay.exchange import Bell, Exchange
from gateway.relay.frames import ResetCode
from gateway.relay.readable import Readable
from gateway.relay.session import GatewaySession
from gateway.relay.websocket import UnitSocket


@pytest.fixture
def pair():
    one, other = socket.socketpair()
    yield one, other
    one.close()
    other.close()


def live_session() -> GatewaySession:
    session = GatewaySession(Limits(), 0.0)
    (hello,) = session.receive(fr.encode(fr.Hello("agent", "one")), 0.0)
    session.welcome(fr.Welcome("c", 1), 0.0, hello.hello)
    session.data_to_send(0.0)
    return session


def test_what_the_socket_did_not_take_leaves_before_anything_else(pair):
    one, other = pair
    carrier = UnitSocket(one, b"", 131_072)
    messages = [bytes([n]) * 60_000 for n in range(40)]
    assert carrier.write_now([b"first"])
    assert not carrier.write_now(messages)
    assert carrier.has_replies()
    received: list[bytes] = []

    def read() -> None:
        decoder = Decoder(masked=False, max_bytes=131_072)
        while len(received) < 42:
            received.extend(payload for opcode, payload in decoder.feed(other.recv(65_536)) if opcode == OP_BINARY)

    reader = gevent.spawn(read)
    carrier.write([b"last"])
    reader.join(5)
    assert received == [b"first", *messages, b"last"]
    assert not carrier.has_replies()


def test_a_request_that_is_reset_before_it_left_never_leaves():
    session = live_session()
    stream = session.send_request(fr.Request("i", "GET", "/", []), 9.0)
    kept = session.send_request(fr.Request("j", "GET", "/", []), 9.0)
    session.reset(stream, ResetCode.CANCEL)
    (message,) = session.data_to_send(0.0)
    assert int.from_bytes(message[4:8], "big") == kept
    assert session.fail_all()[0][0] == kept
    assert not session.outbox.wholes


def test_a_waiter_that_was_thrown_out_is_not_switched_to():
    exchange = Exchange()
    seen: list[str] = []

    def wait() -> None:
        with gevent.Timeout(0.001, False):
            exchange.wait_for_head()
        seen.append("out")
        gevent.sleep(0.005)
        seen.append("slept")

    waiter = gevent.spawn(wait)
    while not seen:
        gevent.sleep(0)
    exchange.on_data(b"x", False)
    exchange.resume()
    assert seen == ["out"]
    waiter.join()
    assert seen == ["out", "slept"]


def test_a_waiter_is_woken_once_for_all_that_came():
    exchange = Exchange()
    waiter = gevent.spawn(exchange.wait_for_bytes, 3)
    gevent.sleep(0)
    for piece in (b"a", b"b", b"c"):
        exchange.on_data(piece, False)
    waiter.join(1)
    assert waiter.value == 3


def test_a_caller_that_fails_takes_nobodys_wake_up_with_it():
    """Also one that the hub runs itself, so that its error comes out where it was woken."""
    bell = Bell()
    first, broken, last = (Exchange(bell=bell) for _ in range(3))
    order: list[str] = []

    def wait(exchange: Exchange, name: str) -> None:
        exchange.wait_for_head()
        order.append(name)

    def fail() -> None:
        broken.wait_for_head()
        raise KeyError

    waiters = [gevent.spawn(wait, first, "first"), gevent.spawn(wait, last, "last")]
    raw = greenlet.greenlet(fail, parent=gevent.get_hub())
    gevent.get_hub().loop.run_callback(raw.switch)
    gevent.sleep(0.005)
    for exchange in (first, broken, last):
        exchange.on_response(fr.Response(200, [], None, 0), b"", True)
    gevent.joinall(waiters, timeout=2)
    assert order == ["first", "last"]


def test_receiving_goes_on_after_nobody_did(pair):
    one, other = pair
    readable = Readable(one)
    other.sendall(b"a")
    assert readable.receive(10) == b"a"
    other.sendall(b"b")
    until_s = time.monotonic() + 1
    while readable._armed and time.monotonic() < until_s:
        gevent.sleep(0.001)
    assert not readable._armed
    assert readable.receive(10) == b"b"
    other.close()
    assert readable.receive(10) == b""
    readable.close()

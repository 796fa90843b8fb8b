"""The wheel with an injected clock, and slow clients against a worker with short deadlines."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest

from gateway.http1.deadlines import NEVER, TICK_NS, Deadlines

SECOND = 1_000_000_000


class Waiter:
    def __init__(self) -> None:
        self.deadline_ns = 0
        self.slot = NEVER
        self.expired = 0

    def expire(self) -> None:
        self.expired += 1


def test_expires_once_and_not_early() -> None:
    wheel, waiter = Deadlines(0), Waiter()
    wheel.arm(waiter, SECOND)
    wheel.advance(SECOND - 1)
    assert waiter.expired == 0
    wheel.advance(SECOND + TICK_NS)
    wheel.advance(5 * SECOND)
    assert waiter.expired == 1


def test_a_later_deadline_moves_on() -> None:
    wheel, waiter = Deadlines(0), Waiter()
    wheel.arm(waiter, SECOND)
    wheel.arm(waiter, 3 * SECOND)
    wheel.advance(2 * SECOND)
    assert waiter.expired == 0
    wheel.advance(3 * SECOND + TICK_NS)
    assert waiter.expired == 1


def test_an_earlier_deadline_is_kept() -> None:
    wheel, waiter = Deadlines(0), Waiter()
    wheel.arm(waiter, 75 * SECOND)
    wheel.arm(waiter, SECOND)
    wheel.advance(SECOND + TICK_NS)
    assert waiter.expired == 1


def test_forgotten_waiters_are_let_go() -> None:
    wheel, waiters = Deadlines(0), [Waiter() for _ in range(100)]
    for number, waiter in enumerate(waiters):
        wheel.arm(waiter, (number + 1) * SECOND)
        wheel.arm(waiter, number * SECOND // 2)
        wheel.forget(waiter)
    assert wheel._slots == {}
    wheel.advance(1000 * SECOND)
    assert sum(waiter.expired for waiter in waiters) == 0


def test_a_deadline_in_the_past_fires_at_the_next_tick() -> None:
    wheel, waiter = Deadlines(100 * SECOND), Waiter()
    wheel.arm(waiter, SECOND)
    wheel.advance(100 * SECOND + 2 * TICK_NS)
    assert waiter.expired == 1


def test_a_stalled_hub_expires_all_that_is_due() -> None:
    wheel, waiters = Deadlines(0), [Waiter() for _ in range(50)]
    for number, waiter in enumerate(waiters):
        wheel.arm(waiter, (number + 1) * SECOND)
    wheel.advance(26 * SECOND - 1)
    assert [waiter.expired for waiter in waiters] == [1] * 25 + [0] * 25


@pytest.fixture(scope="module")
def hasty(tmp_path_factory: pytest.TempPathFactory, server: Any) -> Iterator[Any]:
    """A worker whose every deadline is a second."""
    limits = {f"CAREGATE_{name}_S": "1" for name in ("HEAD_TIMEOUT", "BODY_TIMEOUT", "KEEPALIVE", "WRITE_TIMEOUT")}
    running = type(server)(tmp_path_factory.mktemp("hasty") / "notes", **limits)
    yield running
    running.stop()


def drip(sock: socket.socket, raw: bytes, pause_s: float, give_up_s: float) -> tuple[bytes, float]:
    """Send a byte every `pause_s` until the server ends the connection; what it said, and after how long."""
    started = time.monotonic()
    sock.settimeout(pause_s)
    data = b""
    for byte in [*raw, *[None] * 1000]:
        with contextlib.suppress(ConnectionError):
            sock.send(bytes([byte]) if byte is not None else b"")
        try:
            piece = sock.recv(65536)
        except TimeoutError:
            if time.monotonic() - started > give_up_s:
                break
            continue
        except ConnectionError:
            break
        if not piece:
            break
        data += piece
    return data, time.monotonic() - started


HEAD = b"GET / HTTP/1.1\r\nHost: gw.example\r\nX-Slow: " + b"a" * 1000
POST = b"POST /echo HTTP/1.1\r\nHost: gw.example\r\nContent-Length: 1000\r\n\r\n"
CHUNKED = b"POST /echo HTTP/1.1\r\nHost: gw.example\r\nTransfer-Encoding: chunked\r\n\r\n"
CASES: list[tuple[str, bytes, bytes, int | None]] = [
    ("idle", b"", b"", None),
    ("head", b"", HEAD, 408),
    ("head-stops", b"GET / HTTP/1.1\r\nHost: g", b"", 408),
    ("body", POST, b"a" * 1000, 408),
    ("body-stops", POST, b"", 408),
    ("chunk-size", CHUNKED, b"0" * 15, 408),
    ("chunk-extension", CHUNKED + b"5;", b"a" * 1000, 408),
    ("chunk-data", CHUNKED + b"3e8\r\n", b"a" * 1000, 408),
    ("chunk-trailer", CHUNKED + b"0\r\n", b"A:" + b"b" * 1000, 408),
    ("unread-body", POST.replace(b"/echo", b"/ignore"), b"a" * 1000, 200),
]


@pytest.mark.parametrize(("name", "first", "slow", "status"), CASES, ids=[case[0] for case in CASES])
def test_slow_clients(hasty: Any, answers: Any, name: str, first: bytes, slow: bytes, status: int | None) -> None:
    with hasty.connect() as sock:
        if first:
            sock.sendall(first)
        if slow:
            data, took_s = drip(sock, slow, 0.02, 4)
        else:
            started = time.monotonic()
            data = read_to_end(sock)
            took_s = time.monotonic() - started
    assert answers(data).statuses == ([status] if status else [])
    assert 0.9 < took_s < 3.5 or name == "unread-body"


def read_to_end(sock: socket.socket) -> bytes:
    data = b""
    while piece := sock.recv(65536):
        data += piece
    return data


def sockets_of(server: Any) -> int:
    """Sockets that the server's worker holds."""
    (worker,) = psutil.Process(server.process.pid).children()
    return len(worker.net_connections())


def test_a_client_that_does_not_read_is_cut_off(hasty: Any) -> None:
    eventually_idle = sockets_of(hasty)
    with hasty.connect() as sock:
        for _ in range(8):
            sock.sendall(b"GET /large HTTP/1.1\r\nHost: gw.example\r\n\r\n")
        deadline = time.monotonic() + 1.5
        while sockets_of(hasty) == eventually_idle and time.monotonic() < deadline:
            time.sleep(0.01)
        assert sockets_of(hasty) == eventually_idle + 1
        deadline = time.monotonic() + 5
        while sockets_of(hasty) > eventually_idle:
            assert time.monotonic() < deadline, "the connection is still held"
            time.sleep(0.01)


def test_other_connections_do_not_wait(hasty: Any, exchange: Callable[..., Any]) -> None:
    with hasty.connect() as sock:
        sock.sendall(b"GET / HT")
        started = time.monotonic()
        assert exchange(b"GET / HTTP/1.1\r\nHost: g\r\n\r\n", to=hasty).statuses == [200]
        assert time.monotonic() - started < 0.9

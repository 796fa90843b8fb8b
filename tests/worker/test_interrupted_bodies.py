"""A read of a request's body that ends before the body does, whatever carries it."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import pytest

NO_ERROR = 0
LIMIT_S = 10


class Exchange(Protocol):
    """A request of which `hello` has been sent and five bytes are missing."""

    def finish(self) -> None:
        """Send the rest."""

    def answer(self) -> tuple[int, bytes]: ...

    def is_over(self) -> bool:
        """After an answer: does the connection, or at least the stream, take nothing more?"""

    def again(self) -> tuple[int, bytes]:
        """Ask something else on the same connection."""


class Http1:
    def __init__(self, sock: Any, path: str, answers: Callable[[bytes], Any]) -> None:
        self._sock, self._answers = sock, answers
        self._sock.sendall(f"POST {path} HTTP/1.1\r\nHost: gw.example\r\nContent-Length: 10\r\n\r\nhello".encode())

    def finish(self) -> None:
        self._sock.sendall(b"world")

    def answer(self) -> tuple[int, bytes]:
        data = b""
        while not (got := self._answers(data)).bodies:
            piece = self._sock.recv(65_536)
            assert piece, data
            data += piece
        self._head = got.heads[0]
        return got.statuses[0], got.bodies[0]

    def is_over(self) -> bool:
        return self._head.get("connection") == "close" and self._sock.recv(1) == b""

    def again(self) -> tuple[int, bytes]:
        self._sock.sendall(b"GET /again HTTP/1.1\r\nHost: gw.example\r\n\r\n")
        return self.answer()


class Http2:
    def __init__(self, client: Any, http2: Any, path: str) -> None:
        self._client, self._http2 = client, http2
        self._stream = client.ask(
            http2.request(path.encode(), b"POST", (b"content-length", b"10")), b"hello", end=False
        )

    def finish(self) -> None:
        self._client.send(self._http2.frame(self._http2.DATA, self._http2.END_STREAM, self._stream, b"world"))

    def answer(self) -> tuple[int, bytes]:
        got = self._client.wait(self._stream)
        return got.status, got.body

    def is_over(self) -> bool:
        got = self._client.of(self._stream)
        while got.reset is None and self._client.read():
            pass
        return bool(got.reset == NO_ERROR)

    def again(self) -> tuple[int, bytes]:
        got = self._client.get(self._http2.request(b"/again"))
        return got.status, got.body


Begin = Callable[[str], Exchange]


@pytest.fixture(params=["plain", "tls", "http2"])
def carried(request: Any, certificate: tuple[str, str], answers: Any, http2: Any) -> Iterator[tuple[Any, Begin]]:
    """The server, and how to begin a request to it."""
    server = request.getfixturevalue("server" if request.param == "plain" else "front")
    sock = server.connect()
    sock.settimeout(LIMIT_S)
    if request.param != "plain":
        context = ssl.create_default_context(cafile=certificate[1])
        context.set_alpn_protocols(["h2" if request.param == "http2" else "http/1.1"])
        sock = context.wrap_socket(sock, server_hostname="gw.example")

    def begin(path: str) -> Exchange:
        if request.param == "http2":
            return Http2(http2.Client(sock), http2, path)
        return Http1(sock, path, answers)

    server.notes.write_text("")
    yield server, begin
    sock.close()


def test_who_is_interrupted_answers_at_once(carried: tuple[Any, Begin]) -> None:
    exchange = carried[1]("/interrupted")
    assert exchange.answer() == (200, b"hello...")
    exchange.finish()
    assert exchange.is_over()


def test_the_body_can_be_read_on(carried: tuple[Any, Begin]) -> None:
    server, begin = carried
    exchange = begin("/interrupted?on")
    until_s = time.monotonic() + LIMIT_S
    while "interrupted" not in server.notes.read_text():
        assert time.monotonic() < until_s
        time.sleep(0.005)
    exchange.finish()
    assert exchange.answer() == (200, b"helloworld")
    assert exchange.again() == (200, b"/again")


def test_a_read_has_the_deadline_it_is_given(carried: tuple[Any, Begin]) -> None:
    exchange = carried[1]("/hurried")
    assert exchange.answer() == (408, b"request-timeout")
    assert exchange.is_over()

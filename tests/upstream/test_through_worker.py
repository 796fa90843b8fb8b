"""The way out behind a real worker: streaming both ways, cut transfers, callers that go away."""

from __future__ import annotations

import importlib.util
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

HERE = Path(__file__).parent
OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("worker_conftest", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["worker_conftest"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


WORKER = load(HERE.parent / "worker" / "conftest.py")


class Scripts:
    """The upstream's behaviour by path; `events` are set as it goes."""

    def __init__(self) -> None:
        self.gone = threading.Event()
        self.first_piece_read = threading.Event()

    def __call__(self, peer: Any) -> None:
        while True:
            try:
                line, fields, body = peer.request()
            except EOFError:
                self.gone.set()
                return
            getattr(self, line.split()[1].strip("/"))(peer, body)

    def echo(self, peer: Any, body: bytes) -> None:
        peer.say(OK + b"Content-Length: %d\r\n\r\n" % len(body) + body)

    def stream(self, peer: Any, body: bytes) -> None:
        peer.say(OK + b"Transfer-Encoding: chunked\r\n\r\n" + b"186a0\r\n" + b"a" * 100_000 + b"\r\n")
        self.first_piece_read.wait(5)
        peer.say(b"5\r\nhello\r\n0\r\n\r\n")

    def cut(self, peer: Any, body: bytes) -> None:
        peer.say(OK + b"Transfer-Encoding: chunked\r\n\r\n" + b"186a0\r\n" + b"a" * 100_000 + b"\r\n")
        peer.reset()

    def wait(self, peer: Any, body: bytes) -> None:
        if peer.wait_for_end() == b"":
            self.gone.set()


@pytest.fixture
def scripts() -> Scripts:
    return Scripts()


@pytest.fixture
def front(fake: Callable[..., Any], scripts: Scripts, tmp_path: Path) -> Iterator[Any]:
    upstream = fake(scripts)
    paths = {"TEST_UPSTREAM": upstream.url, "PYTHONPATH": f"{WORKER.ROOT}:{HERE}"}
    server = WORKER.Server(tmp_path / "notes", "--chdir", str(HERE), application="front:app", **paths)
    yield server
    server.stop()


def receive(sock: socket.socket, enough: Callable[[bytes], bool]) -> bytes:
    data = b""
    while not enough(data):
        piece = sock.recv(1 << 20)
        if not piece:
            break
        data += piece
    return data


def test_bodies_both_ways(front: Any) -> None:
    body = bytes(range(256)) * 20_000
    with front.connect() as sock:
        sock.sendall(b"POST /echo HTTP/1.1\r\nHost: g\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body))
        sock.sendall(body)
        (got,) = WORKER.Answers(receive(sock, lambda data: False)).bodies
    assert got == body


def test_chunks_both_ways(front: Any) -> None:
    with front.connect() as sock:
        sock.sendall(b"POST /echo HTTP/1.1\r\nHost: g\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(50):
            sock.sendall(b"3e8\r\n" + b"b" * 1000 + b"\r\n")
        sock.sendall(b"0\r\n\r\n")
        (got,) = WORKER.Answers(receive(sock, lambda data: False)).bodies
    assert got == b"b" * 50_000


def test_an_answer_is_streamed_as_it_comes(front: Any, scripts: Scripts) -> None:
    with front.connect() as sock:
        sock.sendall(b"GET /stream HTTP/1.1\r\nHost: g\r\nConnection: close\r\n\r\n")
        data = receive(sock, lambda data: data.count(b"a") >= 65_536)
        scripts.first_piece_read.set()
        data += receive(sock, lambda data: False)
    (got,) = WORKER.Answers(data).bodies
    assert got == b"a" * 100_000 + b"hello"


def test_a_cut_answer_is_cut_for_the_caller_too(front: Any) -> None:
    with front.connect() as sock:
        sock.sendall(b"GET /cut HTTP/1.1\r\nHost: g\r\n\r\n")
        data = receive(sock, lambda data: False)
    answers = WORKER.Answers(data)
    if answers.statuses:  # the reset overtook the bytes before 64 KiB were in hand
        assert answers.statuses == [502]
    else:
        assert not data.endswith(b"0\r\n\r\n")


def test_a_caller_that_goes_away_ends_the_upstreams_work(front: Any, scripts: Scripts) -> None:
    with front.connect() as sock:
        sock.sendall(b"POST /wait HTTP/1.1\r\nHost: g\r\nContent-Length: 1\r\n\r\na")
        assert not scripts.gone.wait(0.2)
    assert scripts.gone.wait(5)


@pytest.mark.parametrize("length", [pytest.param(1_000, id="read first"), pytest.param(500_000, id="streamed")])
def test_a_stalled_upload_ends_at_the_routes_deadline(front: Any, scripts: Scripts, length: int) -> None:
    with front.connect() as sock:
        sock.sendall(b"POST /hurried HTTP/1.1\r\nHost: g\r\nContent-Length: %d\r\n\r\nabc" % length)
        got = WORKER.Answers(receive(sock, lambda data: False))
    assert got.statuses == [408]
    assert got.heads[0]["connection"] == "close"
    if length == 500_000:
        assert scripts.gone.wait(5)

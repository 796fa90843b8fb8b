"""What the relay's rows need no gateway for: load at a fixed rate, the service of large bodies, the bars."""

from __future__ import annotations

import os
import socket
import threading

import pytest

from loadtests.bench import large, openloop
from loadtests.bench.report import OVERHEADS, Figure, judge, remarks


@pytest.fixture
def service():
    """The port of a service that runs in this process."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=_accept, args=(listener,), daemon=True).start()
        yield listener.getsockname()[1]


def _accept(listener: socket.socket) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=large.serve, args=(connection,), daemon=True).start()


@pytest.mark.parametrize(
    ("data", "whole"),
    [
        pytest.param(b"", False, id="nothing"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n", False, id="half a head"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nx", False, id="half a body"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nxy", True, id="whole"),
        pytest.param(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", True, id="empty"),
    ],
)
def test_when_an_answer_is_whole(data, whole):
    assert openloop.is_whole(data) is whole


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"HTTP/1.1 503 Unavailable\r\nContent-Length: 0\r\n\r\n", id="not 200"),
        pytest.param(b"HTTP/1.1 200 OK\r\n\r\n", id="no length"),
    ],
)
def test_a_wrong_answer_ends_the_run(data):
    with pytest.raises(openloop.OpenLoopFailed):
        openloop.is_whole(data)


def test_every_request_that_is_due_is_counted(service):
    socks = [openloop.connect(service) for _ in range(3)]
    latencies = openloop.open_loop(socks, openloop.request_bytes("/up/11", "token"), 500, 0.2)
    for sock in socks:
        sock.close()
    assert len(latencies) == 100
    assert min(latencies) > 0


def test_a_request_waits_for_a_connection_on_the_clock():
    """A service that stalls is not asked less often: what was due meanwhile has waited."""
    ours, theirs = socket.socketpair()
    release = threading.Event()

    def answer() -> None:
        for _ in range(10):
            theirs.recv(65_536)
            release.wait(0.05)
            theirs.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
            release.set()

    threading.Thread(target=answer, daemon=True).start()
    latencies = openloop.open_loop([ours], b"request", 1000, 0.01)
    assert len(latencies) == 10
    assert sorted(latencies)[5] > 30


def test_who_accepted_a_connection_and_who_dialled_it(service):
    sock = openloop.connect(service)
    openloop.exchange(sock, openloop.request_bytes("/up/1", ""))
    own = os.getpid()
    assert openloop.acceptor_of(service, sock.getsockname()[1], [1, own]) == own
    assert openloop.holder_of(service, [own], [own]) == own
    assert openloop.acceptor_of(service, 1, [own]) is None
    found = openloop.connections_of(service, [own], openloop.request_bytes("/up/1", ""), 2)
    assert len(found[own]) == 2
    for used in (sock, *found[own]):
        used.close()


def test_large_bodies_are_read_to_their_end_before_the_answer(service):
    sock = openloop.connect(service)
    sock.sendall(b"POST /up/0 HTTP/1.1\r\nContent-Length: 3000000\r\n\r\n" + bytes(2_999_999))
    sock.settimeout(0.01)
    with pytest.raises(TimeoutError):
        sock.recv(1)
    sock.settimeout(5)
    sock.sendall(b"x")
    assert sock.recv(65_536).startswith(b"HTTP/1.1 200 ")
    sock.close()


@pytest.mark.parametrize(
    ("row", "ours", "other", "name", "limit"), OVERHEADS, ids=[f"{o[1]} {o[3]}" for o in OVERHEADS]
)
@pytest.mark.parametrize(("more", "met"), [(0.0, True), (0.01, False)], ids=["at the limit", "above"])
def test_an_overhead_is_a_difference(row, ours, other, name, limit, more, met):
    def figure(server: str, value: float) -> Figure:
        return Figure(row, server, value, 500.0, value, value)

    bar = next(b for b in judge([figure(ours, 3.0 + limit + more), figure(other, 3.0)]) if name in b.bar)
    assert (bar.ratio, bar.limit, bar.met) == (round(limit + more, 3), limit, met)


def test_large_bodies_are_said_in_mib():
    figure = Figure("relay_64m_up", "caregate", 16_000.0, 10.0, 1.0, 1.0, beside_us=1600.0)
    assert remarks([figure]) == [
        "relay_64m_up: caregate moved 160 MiB/s at 1000 us of CPU a MiB (helpers 100)"
    ]  # fmt: skip

"""The worker's life in a real arbiter: drain, replacement, TLS, the PROXY protocol, listeners, hooks."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

Start = Callable[..., Any]
REQUEST = b"GET / HTTP/1.1\r\nHost: gw.example\r\n\r\n"


def read_until(sock: socket.socket, end: bytes) -> bytes:
    data = b""
    while not data.endswith(end) or not end:
        piece = sock.recv(65536)
        if not piece:
            break
        data += piece
    return data


def eventually(check: Callable[[], object], within_s: float = 10) -> None:
    deadline = time.monotonic() + within_s
    while not check():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


class TestDrain:
    def test_connections_that_are_there_get_their_answers_and_are_told_to_close(
        self, start_server: Start, answers: Any
    ) -> None:
        server = start_server()
        with server.connect() as busy, server.connect() as kept:
            kept.sendall(REQUEST)
            read_until(kept, b"\r\n\r\n/")
            busy.sendall(b"GET /slow HTTP/1.1\r\nHost: g\r\n\r\n")
            time.sleep(0.01)
            os.kill(server.process.pid, signal.SIGTERM)
            eventually(lambda: "drain" in server.notes.read_text())
            kept.sendall(REQUEST)
            late = answers(read_until(kept, b""))
            finished = answers(read_until(busy, b""), ended=True)
        assert finished.bodies == [b"slow"]
        assert late.statuses == [200]
        assert late.heads[0]["connection"] == "close"
        assert server.process.wait(10) == 0
        assert server.notes.read_text().split() == ["ready", "drain", "stop"]

    def test_after_the_linger_a_new_request_is_refused(self, start_server: Start, answers: Any) -> None:
        server = start_server(CAREGATE_DRAIN_LINGER_S="0")
        with server.connect() as busy:
            busy.sendall(b"GET /streams HTTP/1.1\r\nHost: g\r\n\r\n")
            begun = read_until(busy, b"4\r\nsome\r\n")
            os.kill(server.process.pid, signal.SIGTERM)
            eventually(lambda: "drain" in server.notes.read_text())
            busy.sendall(REQUEST)
            got = answers(begun + read_until(busy, b""))
        assert got.statuses == [200, 503]
        assert got.heads[1]["retry-after"] == "1"
        assert got.heads[1]["connection"] == "close"

    def test_idle_connections_do_not_hold_the_worker(self, start_server: Start) -> None:
        server = start_server("--graceful-timeout", "30", CAREGATE_DRAIN_LINGER_S="0")
        with server.connect() as idle:
            idle.sendall(REQUEST)
            read_until(idle, b"\r\n\r\n/")
            started = time.monotonic()
            os.kill(server.process.pid, signal.SIGTERM)
            assert read_until(idle, b"") == b""
            server.process.wait(10)
        assert time.monotonic() - started < 6

    def test_an_upgraded_connection_is_waited_for_until_the_grace_ends(self, start_server: Start) -> None:
        server = start_server("--graceful-timeout", "1")
        with server.connect() as unit:
            unit.sendall(b"GET /upgrade HTTP/1.1\r\nHost: g\r\n\r\nx")
            read_until(unit, b"X")
            os.kill(server.process.pid, signal.SIGTERM)
            eventually(lambda: "drain" in server.notes.read_text())
            unit.sendall(b"still")
            assert read_until(unit, b"STILL") == b"STILL"
            assert read_until(unit, b"") == b""
        assert server.process.wait(10) == 0

    def test_what_runs_at_the_end_of_the_grace_is_answered_and_accounted_for(
        self, start_server: Start, answers: Any
    ) -> None:
        server = start_server("--graceful-timeout", "2")
        with server.connect() as before, server.connect() as inside, server.connect() as slow:
            before.sendall(b"GET /hangs HTTP/1.1\r\nHost: g\r\n\r\n")
            inside.sendall(b"GET /hangs-inside HTTP/1.1\r\nHost: g\r\n\r\n")
            slow.sendall(b"GET / HT")
            read_until(inside, b"4\r\nsome\r\n")
            eventually(lambda: "hangs" in server.notes.read_text())
            os.kill(server.process.pid, signal.SIGTERM)
            refused, cut, unread = (answers(read_until(sock, b"")) for sock in (before, inside, slow))
        assert (refused.statuses, cut.statuses, unread.statuses) == ([503], [], [503])
        assert refused.heads[0]["connection"] == "close"
        assert b"grace-ended" in refused.bodies[0]
        assert cut.rest == b"", "no last chunk"
        assert server.process.wait(10) == 0
        assert server.notes.read_text().split() == ["ready", "hangs", "drain", *["grace-ended"] * 3, "stop"]

    def test_an_upgraded_connection_is_not_interrupted_by_it(self, start_server: Start) -> None:
        server = start_server("--graceful-timeout", "1")
        with server.connect() as unit:
            unit.sendall(b"GET /upgrade HTTP/1.1\r\nHost: g\r\n\r\nx")
            read_until(unit, b"X")
            os.kill(server.process.pid, signal.SIGTERM)
            assert read_until(unit, b"") == b""
        assert "grace-ended" not in server.notes.read_text()


def test_a_worker_told_to_stop_while_it_boots_stops(start_server: Start) -> None:
    server = start_server("--graceful-timeout", "30")
    (worker,) = psutil.Process(server.process.pid).children()
    os.kill(worker.pid, signal.SIGKILL)
    eventually(lambda: server.log.read_text().count("Booting worker") == 2)
    os.kill(server.process.pid, signal.SIGTERM)
    assert server.process.wait(10) == 0


def test_max_requests_replaces_the_worker_without_a_failed_request(start_server: Start, exchange: Any) -> None:
    server = start_server("--max-requests", "20", "--max-requests-jitter", "5")
    statuses = [status for _ in range(60) for status in exchange(REQUEST, to=server).statuses]
    assert statuses == [200] * 60
    eventually(lambda: server.log.read_text().count("Booting worker") >= 2)


def test_the_last_of_max_requests_says_that_it_closes(start_server: Start, exchange: Any) -> None:
    server = start_server("--max-requests", "3")
    got = exchange(REQUEST * 5, to=server)
    assert got.statuses == [200] * 3
    assert [head.get("connection") for head in got.heads] == [None, None, "close"]


def test_a_kept_connection_outlives_max_requests_by_one_request(start_server: Start, answers: Any) -> None:
    server = start_server("--max-requests", "2")
    with server.connect() as kept, server.connect() as other:
        kept.sendall(REQUEST)
        read_until(kept, b"\r\n\r\n/")
        other.sendall(REQUEST)
        assert answers(read_until(other, b"")).heads[0]["connection"] == "close"
        time.sleep(0.3)  # the worker has noticed by now
        kept.sendall(REQUEST)
        got = answers(read_until(kept, b""))
    assert (got.statuses, got.heads[0]["connection"]) == ([200], "close")


def test_access_log_and_hooks(start_server: Start, exchange: Any, tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    config = tmp_path / "hooks.conf.py"
    seen = tmp_path / "seen"
    config.write_text(
        f"def note(text):\n    open({str(seen)!r}, 'a').write(text + '\\n')\n"
        "def pre_request(worker, req):\n    note(f'pre {req.method} {req.path}')\n"
        "def post_request(worker, req, environ, resp):\n    note(f'post {resp.status}')\n"
    )
    server = start_server(
        "-c", str(config), "--access-logfile", str(log), "--access-logformat", "%(m)s %(U)s %(s)s %(B)s %({x-a}i)s"
    )
    exchange(b"GET /a HTTP/1.1\r\nHost: g\r\nX-A: b\r\n\r\nGET /raises HTTP/1.1\r\nHost: g\r\n\r\n", to=server)
    eventually(lambda: log.exists() and log.read_text().count("\n") == 2)
    first, second = log.read_text().splitlines()
    assert first == "GET /a 200 2 b"
    assert second.startswith("GET /raises 500 "), "what the caller got, though the application gave nothing"
    assert seen.read_text().splitlines()[:3] == ["pre GET /a", "post 200 OK", "pre GET /raises"]


def test_statsd_counts_requests(start_server: Start, exchange: Any) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as statsd:
        statsd.bind(("127.0.0.1", 0))
        statsd.settimeout(5)
        server = start_server("--statsd-host", f"127.0.0.1:{statsd.getsockname()[1]}", "--statsd-prefix", "gw")
        exchange(REQUEST + b"GET /raises HTTP/1.1\r\nHost: g\r\n\r\n", to=server)
        told: list[str] = []
        while not any("status.500" in line for line in told):
            told.append(statsd.recv(1000).decode())
    counted = [line.split("|")[0] for line in told if "|c" in line]
    assert counted.count("gw.gunicorn.requests:1") == 2
    assert {"gw.gunicorn.request.status.200:1", "gw.gunicorn.request.status.500:1"} <= set(counted)
    assert sum(line.startswith("gw.gunicorn.request.duration:") for line in told) == 2


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def test_the_operations_listener_is_told_apart(start_server: Start) -> None:
    port = free_port()
    server = start_server("-b", f"127.0.0.1:{port}", CAREGATE_OPS_BIND=f"127.0.0.1:{port}")
    found = {}
    for address in (server.address, ("127.0.0.1", port)):
        with socket.create_connection(address, 5) as sock:
            sock.sendall(b"GET /environ HTTP/1.1\r\nHost: g\r\nConnection: close\r\n\r\n")
            environ = json.loads(read_until(sock, b"").partition(b"\r\n\r\n")[2])
            found[environ["SERVER_PORT"]] = environ["caregate.listener"]
    assert found == {str(server.address[1]): "public", str(port): "ops"}


@pytest.fixture(scope="module")
def balanced(tmp_path_factory: pytest.TempPathFactory, server: Any) -> Iterator[Any]:
    """A server behind a balancer that speaks the PROXY protocol."""
    running = type(server)(tmp_path_factory.mktemp("balanced") / "notes", "--proxy-protocol", "auto")
    yield running
    running.stop()


class TestProxyProtocol:
    V2 = b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c" + bytes([192, 0, 2, 7, 198, 51, 100, 1]) + b"\x30\x39\x01\xbb"
    ENVIRON = b"GET /environ HTTP/1.1\r\nHost: g\r\n\r\n"

    @pytest.mark.parametrize(
        ("line", "peer"),
        [
            pytest.param(b"PROXY TCP4 192.0.2.7 198.51.100.1 12345 443\r\n", "192.0.2.7", id="v1"),
            pytest.param(b"PROXY TCP6 2001:db8::7 2001:db8::1 12345 443\r\n", "2001:db8::7", id="v1 over IPv6"),
            pytest.param(b"PROXY UNKNOWN\r\n", "127.0.0.1", id="v1 health check"),
            pytest.param(V2, "192.0.2.7", id="v2"),
        ],
    )
    def test_the_peer_is_who_the_balancer_says(self, balanced: Any, exchange: Any, line: bytes, peer: str) -> None:
        got = exchange(line + self.ENVIRON + self.ENVIRON, to=balanced)
        assert [json.loads(body)["caregate.peer"] for body in got.bodies] == [peer, peer]

    def test_it_is_required_of_a_balancer(self, balanced: Any, exchange: Any) -> None:
        for raw in (self.ENVIRON, b"PROXY TCP4 1.2.3.4\r\n" + self.ENVIRON, self.V2[:10]):
            assert exchange_or_reset(exchange, raw, balanced) == []

    def test_nobody_else_is_believed(self, start_server: Start, exchange: Any) -> None:
        server = start_server("--proxy-protocol", "auto", "--proxy-allow-from", "192.0.2.1")
        assert exchange(b"PROXY TCP4 192.0.2.7 198.51.100.1 1 2\r\n" + self.ENVIRON, to=server).statuses == [400]
        assert json.loads(exchange(self.ENVIRON, to=server).bodies[0])["caregate.peer"] == "127.0.0.1"

    def test_off_by_default(self, exchange: Any) -> None:
        assert exchange(b"PROXY TCP4 192.0.2.7 198.51.100.1 1 2\r\n" + self.ENVIRON).statuses == [400]


def exchange_or_reset(exchange: Any, raw: bytes, server: Any) -> list[int]:
    try:
        statuses: list[int] = exchange(raw, to=server).statuses
    except ConnectionResetError:
        return []
    return statuses

"""TLS through a real worker: versions, ends that say so, slow handshakes, the PROXY protocol before it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

REQUEST = b"GET / HTTP/1.1\r\nHost: gw.example\r\n\r\n"
ENVIRON = b"GET /environ HTTP/1.1\r\nHost: gw.example\r\n\r\n"
SHORT = {f"CAREGATE_{name}_S": "1" for name in ("HEAD_TIMEOUT", "BODY_TIMEOUT", "KEEPALIVE", "WRITE_TIMEOUT")}


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory, server: Any, certificate: tuple[str, str]) -> Iterator[Any]:
    """A worker over TLS whose every deadline is a second."""
    notes = tmp_path_factory.mktemp("tls-worker") / "notes"
    running = type(server)(notes, "--keyfile", certificate[0], "--certfile", certificate[1], **SHORT)
    yield running
    running.stop()


@pytest.fixture(scope="module")
def balanced(tmp_path_factory: pytest.TempPathFactory, server: Any, certificate: tuple[str, str]) -> Iterator[Any]:
    """The same behind a balancer that speaks the PROXY protocol."""
    notes = tmp_path_factory.mktemp("tls-balanced") / "notes"
    options = ("--proxy-protocol", "auto", "--keyfile", certificate[0], "--certfile", certificate[1])
    running = type(server)(notes, *options, **SHORT)
    yield running
    running.stop()


@pytest.fixture
def wrap(certificate: tuple[str, str]) -> Callable[..., ssl.SSLSocket]:
    """A TLS client for which an end without close_notify is an error."""

    def shake(server: Any, version: ssl.TLSVersion | None = None, before: bytes = b"") -> ssl.SSLSocket:
        context = ssl.create_default_context(cafile=certificate[1])
        context.set_alpn_protocols(["h2", "http/1.1"])
        context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF  # NOTE: older Pythons (Debian's 3.11.2) set it
        if version is not None:
            context.minimum_version = context.maximum_version = version
        sock = server.connect()
        sock.sendall(before)
        return context.wrap_socket(sock, server_hostname="gw.example", suppress_ragged_eofs=False)

    return shake


def read_until(sock: socket.socket, end: bytes) -> bytes:
    data = b""
    while not data.endswith(end) or not end:
        piece = sock.recv(65536)
        if not piece:
            break
        data += piece
    return data


def client_hello(version: bytes) -> bytes:
    """The record of a client that speaks no newer version."""
    hello = version + b"r" * 32 + b"\x00" + b"\x00\x06\xc0\x13\xc0\x09\x00\x2f" + b"\x01\x00"
    message = b"\x01" + len(hello).to_bytes(3, "big") + hello
    return b"\x16\x03\x01" + len(message).to_bytes(2, "big") + message


class TestVersions:
    @pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
    def test_new_ones_carry_requests_and_bodies(
        self, tls: Any, wrap: Any, answers: Any, version: ssl.TLSVersion
    ) -> None:
        with wrap(tls, version) as sock:
            assert sock.selected_alpn_protocol() == "http/1.1"
            sock.sendall(REQUEST + b"POST /echo HTTP/1.1\r\nHost: g\r\nContent-Length: 200000\r\n\r\n")
            sock.sendall(b"a" * 200_000 + b"POST /echo HTTP/1.1\r\nHost: g\r\nTransfer-Encoding: chunked\r\n\r\n")
            sock.sendall(b"c350\r\n" + b"b" * 50_000 + b"\r\n0\r\n\r\n")
            sock.sendall(b"GET /environ HTTP/1.1\r\nHost: g\r\nConnection: close\r\n\r\n")
            got = answers(read_until(sock, b""))
        assert got.statuses == [200] * 4
        assert got.bodies[1] == b"a" * 200_000
        assert got.bodies[2] == b"b" * 50_000
        assert json.loads(got.bodies[3])["wsgi.url_scheme"] == "https"

    @pytest.mark.parametrize("version", [b"\x03\x01", b"\x03\x02"], ids=["1.0", "1.1"])
    def test_old_ones_are_refused(self, tls: Any, version: bytes) -> None:
        with tls.connect() as sock:
            sock.sendall(client_hello(version))
            alert = read_until(sock, b"")
        assert (alert[:1], alert[-1]) == (b"\x15", 70), "protocol_version"

    def test_whatever_the_operators_hook_allows(
        self, start_server: Any, certificate: tuple[str, str], tmp_path: Path
    ) -> None:
        config = tmp_path / "lax.conf.py"
        config.write_text(
            "import ssl\ndef ssl_context(config, default):\n    context = default()\n"
            "    context.set_ciphers('ALL:@SECLEVEL=0')\n    context.minimum_version = ssl.TLSVersion.TLSv1\n"
            "    return context\n"
        )
        server = start_server("-c", str(config), "--keyfile", certificate[0], "--certfile", certificate[1])
        self.test_old_ones_are_refused(server, b"\x03\x02")

    def test_a_hello_of_1_2_is_not_refused_for_its_version(self, tls: Any) -> None:
        """The hello above has no extensions and old ciphers; what it lacks is another alert's business."""
        with tls.connect() as sock:
            sock.sendall(client_hello(b"\x03\x03"))
            assert sock.recv(100)[-1] != 70


def test_http_2_is_not_offered(tls: Any, certificate: tuple[str, str]) -> None:
    context = ssl.create_default_context(cafile=certificate[1])
    context.set_alpn_protocols(["h2"])
    with context.wrap_socket(tls.connect(), server_hostname="gw.example") as sock:
        assert sock.selected_alpn_protocol() is None
        sock.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        assert sock.recv(100).startswith(b"HTTP/1.1 505 ")


class TestAnswers:
    def test_large_and_generated(self, tls: Any, wrap: Any, answers: Any) -> None:
        with wrap(tls) as sock:
            for path in (b"/large", b"/generator", b"/two"):
                sock.sendall(b"GET " + path + b" HTTP/1.1\r\nHost: g\r\n\r\n")
            sock.sendall(b"GET / HTTP/1.1\r\nHost: g\r\nConnection: close\r\n\r\n")
            got = answers(read_until(sock, b""))
        assert [len(body) for body in got.bodies] == [4_194_304, 50_006, 6, 1]

    def test_kept_alive_one_by_one(self, tls: Any, wrap: Any) -> None:
        with wrap(tls) as sock:
            for _ in range(20):
                sock.sendall(REQUEST)
                assert read_until(sock, b"\r\n\r\n/").startswith(b"HTTP/1.1 200 ")

    def test_upgrade(self, tls: Any, wrap: Any) -> None:
        with wrap(tls) as sock:
            sock.sendall(b"GET /upgrade HTTP/1.1\r\nHost: g\r\n\r\nearly")
            assert read_until(sock, b"EARLY").startswith(b"HTTP/1.1 101 ")


class TestEnds:
    """`wrap` makes an end without close_notify an SSLEOFError."""

    @pytest.mark.parametrize(
        ("raw", "status"),
        [
            pytest.param(REQUEST.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"), [200], id="close asked for"),
            pytest.param(b"GET /close HTTP/1.1\r\nHost: g\r\n\r\n", [200], id="close decided"),
            pytest.param(b"GET / HTTP/1.0\r\nHost: g\r\n\r\n", [200], id="http 1.0"),
            pytest.param(b"GET / HTTP/1.1\r\n\r\n", [400], id="refused"),
            pytest.param(REQUEST, [200], id="idle too long"),
            pytest.param(b"GET / HT", [408], id="head too slow"),
            pytest.param(b"POST /echo HTTP/1.1\r\nHost: g\r\nContent-Length: 9\r\n\r\n", [408], id="body too slow"),
            pytest.param(b"", [], id="silent"),
        ],
    )
    def test_are_announced(self, tls: Any, wrap: Any, answers: Any, raw: bytes, status: list[int]) -> None:
        with wrap(tls) as sock:
            sock.sendall(raw)
            assert answers(read_until(sock, b""), ended=True).statuses == status

    @pytest.mark.parametrize("path", [b"/breaks", b"/short"])
    @pytest.mark.parametrize("version", [b"1.0", b"1.1"])
    def test_a_cut_is_not(self, tls: Any, wrap: Any, path: bytes, version: bytes) -> None:
        with wrap(tls) as sock:
            sock.sendall(b"GET " + path + b" HTTP/" + version + b"\r\nHost: g\r\n\r\n")
            with pytest.raises((ssl.SSLError, ConnectionResetError)):
                read_until(sock, b"")

    def test_the_clients_own_is_answered(self, tls: Any, wrap: Any) -> None:
        sock = wrap(tls)
        sock.sendall(REQUEST)
        read_until(sock, b"\r\n\r\n/")
        with sock.unwrap() as plain:
            assert plain.recv(100) == b""

    def test_a_refused_body_that_still_comes_does_not_break_the_answer(self, tls: Any, wrap: Any, answers: Any) -> None:
        with wrap(tls) as sock:
            sock.sendall(b"POST /limited HTTP/1.1\r\nHost: g\r\nContent-Length: 2000000\r\n\r\n")
            with contextlib.suppress(OSError):
                sock.sendall(b"a" * 2_000_000)
            assert answers(read_until(sock, b"")).statuses == [413]

    def test_leaving_is_announced_to_idle_clients(
        self, start_server: Any, certificate: tuple[str, str], wrap: Any
    ) -> None:
        server = start_server("--keyfile", certificate[0], "--certfile", certificate[1])
        with wrap(server) as sock:
            sock.sendall(REQUEST)
            read_until(sock, b"\r\n\r\n/")
            os.kill(server.process.pid, signal.SIGTERM)
            assert read_until(sock, b"") == b""


class TestSlowClients:
    def test_one_that_never_shakes_hands_is_dropped(self, tls: Any) -> None:
        started = time.monotonic()
        with tls.connect() as sock:
            assert read_until(sock, b"") == b""
        assert 0.9 < time.monotonic() - started < 4

    def test_one_that_shakes_a_byte_at_a_time_is_dropped(self, tls: Any) -> None:
        started = time.monotonic()
        with tls.connect() as sock, contextlib.suppress(ConnectionError):
            for byte in client_hello(b"\x03\x03"):
                sock.sendall(bytes([byte]))
                if time.monotonic() - started > 4:
                    break
                time.sleep(0.04)
        assert 0.9 < time.monotonic() - started < 4

    def test_one_that_does_not_read_is_cut_off(self, tls: Any, wrap: Any) -> None:
        before = sockets_of(tls)
        with wrap(tls) as sock:
            for _ in range(8):
                sock.sendall(b"GET /large HTTP/1.1\r\nHost: gw.example\r\n\r\n")
            deadline = time.monotonic() + 6
            while sockets_of(tls) > before:
                assert time.monotonic() < deadline, "the connection is still held"
                time.sleep(0.01)

    def test_no_descriptor_is_left(self, tls: Any) -> None:
        (worker,) = psutil.Process(tls.process.pid).children()
        before = worker.num_fds()
        for _ in range(30):
            with tls.connect() as sock:
                sock.sendall(client_hello(b"\x03\x01"))
                read_until(sock, b"")
        deadline = time.monotonic() + 5
        while worker.num_fds() > before:
            assert time.monotonic() < deadline, worker.num_fds() - before
            time.sleep(0.01)


def sockets_of(server: Any) -> int:
    """Sockets that the server's worker holds."""
    (worker,) = psutil.Process(server.process.pid).children()
    return len(worker.net_connections())


def test_plain_text_is_not_answered(tls: Any) -> None:
    with tls.connect() as sock:
        sock.sendall(REQUEST)
        try:
            data = read_until(sock, b"")
        except ConnectionResetError:
            data = b""
    assert b"HTTP" not in data


def version_2(family: int, source: bytes, target: bytes) -> bytes:
    addresses = source + target + struct.pack("!HH", 12345, 443)
    return b"\r\n\r\n\x00\r\nQUIT\n\x21" + bytes([family]) + len(addresses).to_bytes(2, "big") + addresses


class TestProxyProtocol:
    @pytest.mark.parametrize(
        ("line", "peer"),
        [
            pytest.param(b"PROXY TCP4 192.0.2.7 198.51.100.1 12345 443\r\n", "192.0.2.7", id="v1"),
            pytest.param(b"PROXY TCP6 2001:db8::7 2001:db8::1 12345 443\r\n", "2001:db8::7", id="v1 over IPv6"),
            pytest.param(version_2(0x11, bytes([192, 0, 2, 7]), bytes(4)), "192.0.2.7", id="v2"),
            pytest.param(
                version_2(0x21, socket.inet_pton(socket.AF_INET6, "2001:db8::7"), bytes(16)),
                "2001:db8::7",
                id="v2 over IPv6",
            ),
            pytest.param(b"\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00", "127.0.0.1", id="v2 health check"),
        ],
    )
    def test_the_line_comes_before_the_handshake(
        self, balanced: Any, wrap: Any, answers: Any, line: bytes, peer: str
    ) -> None:
        with wrap(balanced, before=line) as sock:
            sock.sendall(ENVIRON + ENVIRON.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
            got = answers(read_until(sock, b""))
        assert [json.loads(body)["caregate.peer"] for body in got.bodies] == [peer, peer]

    def test_it_is_required(self, balanced: Any, wrap: Any) -> None:
        with pytest.raises(OSError):  # noqa: PT011 - reset or refused, as it comes
            wrap(balanced)

    def test_it_is_not_believed_inside(self, balanced: Any, wrap: Any, answers: Any) -> None:
        with wrap(balanced, before=b"PROXY UNKNOWN\r\n") as sock:
            sock.sendall(b"PROXY TCP4 192.0.2.7 198.51.100.1 1 2\r\n" + ENVIRON)
            assert answers(read_until(sock, b"")).statuses == [400]

    def test_a_line_a_byte_at_a_time_has_the_heads_deadline(self, balanced: Any) -> None:
        started = time.monotonic()
        with balanced.connect() as sock, contextlib.suppress(ConnectionError):
            for byte in b"PROXY TCP4 192.0.2.7 198.51.100.1 12345 443" + b"4" * 50:
                sock.sendall(bytes([byte]))
                time.sleep(0.04)
        assert 0.9 < time.monotonic() - started < 3.5

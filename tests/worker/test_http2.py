"""HTTP/2 through a real worker: the rules of HTTP/1.1 in streams, and what only HTTP/2 can get wrong."""

from __future__ import annotations

import json
import os
import shutil
import signal
import ssl
import struct
import subprocess
import time
from collections.abc import Callable
from typing import Any

import pytest

STREAMS = 20  # of the fixture `front`
NO_ERROR, REFUSED, INADEQUATE = 0, 7, 12


@pytest.fixture
def client(front: Any, speak_http2: Callable[..., Any]) -> Any:
    return speak_http2(front)


def eventually(check: Callable[[], object], within_s: float = 10) -> None:
    deadline = time.monotonic() + within_s
    while not check():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def refusals(client: Any, http2: Any) -> list[list[Any]]:
    found: list[list[Any]] = json.loads(client.get(http2.request(b"/refusals")).body)
    return found


class TestRequests:
    def test_the_environ_is_that_of_http1(self, client: Any, http2: Any) -> None:
        got = client.get(http2.request(b"/environ?a=%20b", b"GET", (b"x-a", b"1"), (b"x-a", b"2")))
        environ = json.loads(got.body)
        expected = {
            "REQUEST_METHOD": "GET", "SERVER_PROTOCOL": "HTTP/2.0", "wsgi.url_scheme": "https",
            "RAW_URI": "/environ?a=%20b",
            "caregate.path": "/environ", "QUERY_STRING": "a=%20b", "HTTP_HOST": "gw.example", "HTTP_X_A": "1, 2",
            "duplicate": ["x-a"], "caregate.content_length": 0, "caregate.listener": "public",
            "caregate.peer": "127.0.0.1", "SERVER_SOFTWARE": "caregate",
        }  # fmt: skip
        assert {key: environ.get(key) for key in expected} == expected
        assert environ["caregate.started_ns"] > 0
        assert len(environ["caregate.request_id"]) == 36
        assert (got.status, got.reset) == (200, None)
        assert int(got.fields[b"content-length"]) == len(got.body)
        assert b"date" in got.fields

    @pytest.mark.parametrize("size", [0, 1, 16_384, 65_535, 300_000, 2_000_000])
    def test_bodies_both_ways(self, client: Any, http2: Any, size: int) -> None:
        body = os.urandom(size)
        stream = client.ask(http2.request(b"/echo", b"POST"), b"", end=False)
        at = 0
        window = 65_535
        while at < size:
            while not (
                room := min(window + client.windows.get(stream, 0) - at, 65_535 + client.windows.get(0, 0) - at)
            ):
                assert client.read()
            piece = body[at : at + min(room, 16_384)]
            client.send(http2.frame(http2.DATA, 0, stream, piece))
            at += len(piece)
        client.send(http2.frame(http2.DATA, http2.END_STREAM, stream))
        got = client.wait(stream)
        assert (got.status, got.body == body, got.ended, got.reset) == (200, True, True, None)

    @pytest.mark.parametrize(
        ("path", "status", "body"),
        [
            ("generator", 200, b"onetwo" + b"three" * 10_000), ("empty-generator", 200, b""), ("two", 200, b"onetwo"),
            ("write", 200, b"written returned"), ("no-content", 204, b""), ("not-modified", 304, b""),
            ("hop-by-hop", 200, b"x"), ("close", 200, b"x"), ("large", 200, b"0123456789abcdef" * 262_144),
            ("long", 200, b"some"),
        ],
    )  # fmt: skip
    def test_answers(self, client: Any, http2: Any, path: str, status: int, body: bytes) -> None:
        got = client.get(http2.request(b"/" + path.encode()))
        assert (got.status, got.body == body, got.ended, got.reset) == (status, True, True, None)
        assert not {b"connection", b"keep-alive", b"transfer-encoding", b"upgrade"} & set(got.fields)

    def test_a_file_and_a_head(self, client: Any, http2: Any) -> None:
        assert b"path_file" in client.get(http2.request(b"/file")).body
        got = client.get(http2.request(b"/large", b"HEAD"))
        assert (got.status, got.body, got.ended) == (200, b"", True)
        assert got.fields[b"content-length"] == b"4194304"

    @pytest.mark.parametrize("path", ["raises", "raises-after-start", "injects", "upgrade"])
    def test_a_failing_application_is_an_error_without_detail(self, client: Any, http2: Any, path: str) -> None:
        got = client.get(http2.request(b"/" + path.encode()))
        assert got.status == (501 if path == "upgrade" else 500)
        assert b"secret" not in got.body
        assert json.loads(got.body)["request_id"] == got.fields[b"x-request-id"].decode()
        assert client.get(http2.request()).status == 200, "the connection lives on"

    @pytest.mark.parametrize("path", ["breaks", "short"])
    def test_a_broken_answer_is_never_whole(self, client: Any, http2: Any, path: str) -> None:
        got = client.get(http2.request(b"/" + path.encode()))
        assert (got.status, got.body, got.ended) == (200, b"some", False)
        assert got.reset == 2, "INTERNAL_ERROR"
        assert client.get(http2.request()).status == 200

    def test_cookies_come_in_crumbs(self, client: Any, http2: Any) -> None:
        got = client.get(http2.request(b"/environ", b"GET", (b"cookie", b"a=1"), (b"x-b", b"c"), (b"cookie", b"b=2")))
        assert json.loads(got.body)["HTTP_COOKIE"] == "a=1; b=2"

    def test_continue_is_said_when_the_body_is_read(self, client: Any, http2: Any) -> None:
        fields = http2.request(b"/echo", b"POST", (b"expect", b"100-continue"), (b"content-length", b"5"))
        stream = client.ask(fields, end=False)
        while not client.of(stream).informational:
            assert client.read()
        client.send(http2.frame(http2.DATA, http2.END_STREAM, stream, b"hello"))
        assert (client.wait(stream).body, client.of(stream).informational) == (b"hello", [100])
        stream = client.ask(http2.request(b"/ignore", b"POST", *fields[4:]), end=False)
        assert (client.wait(stream).body, client.of(stream).informational) == (b"ignored", [])

    def test_padding_and_trailers(self, client: Any, http2: Any) -> None:
        stream = client.ask(http2.request(b"/echo", b"POST"), end=False)
        client.send(http2.frame(http2.DATA, http2.PADDED, stream, b"\x05hello" + b"\0" * 5))
        client.send(client.block(stream, [(b"x-sum", b"1")]))
        got = client.wait(stream)
        assert (got.status, got.body) == (200, b"hello")

    @pytest.mark.parametrize("trailer", [(b":path", b"/x"), (b"x", b"a\r\nb"), (b"X-A", b"b")])
    def test_malformed_trailers_break_the_body(self, client: Any, http2: Any, trailer: tuple[bytes, bytes]) -> None:
        stream = client.ask(http2.request(b"/echo", b"POST"), b"hello", end=False)
        client.send(client.block(stream, [trailer]))
        got = client.wait(stream)
        assert (got.status, got.body) == (400, b"bad-framing")

    @pytest.mark.parametrize(("length", "body"), [(b"10", b"hello"), (b"4", b"hello"), (b"0", b"hello")])
    def test_a_body_of_another_length_is_not_handed_on(
        self, client: Any, http2: Any, length: bytes, body: bytes
    ) -> None:
        got = client.get(http2.request(b"/echo", b"POST", (b"content-length", length)), body)
        assert (got.status, got.body) == (400, b"bad-framing")
        assert client.get(http2.request()).status == 200

    def test_limits_on_bodies(self, client: Any, http2: Any) -> None:
        announced = client.get(http2.request(b"/limited", b"POST", (b"content-length", b"9")), b"123456789")
        unannounced = client.get(http2.request(b"/limited", b"POST"), b"123456789")
        assert (announced.status, announced.body) == (413, b"announced")
        assert (unannounced.status, unannounced.body) == (413, b"body-too-large")

    def test_an_unread_body_is_stopped(self, client: Any, http2: Any) -> None:
        stream = client.ask(http2.request(b"/ignore", b"POST"), b"a" * 1000, end=False)
        got = client.wait(stream)
        while got.reset is None:
            assert client.read()
        assert (got.status, got.body, got.ended, got.reset) == (200, b"ignored", True, NO_ERROR)

    def test_streams_do_not_wait_for_each_other(self, client: Any, http2: Any) -> None:
        slow = client.ask(http2.request(b"/slow"))
        assert client.get(http2.request()).status == 200
        assert not client.of(slow).over
        assert client.wait(slow).body == b"slow"

    def test_a_body_nobody_reads_holds_up_no_other_stream(self, client: Any, http2: Any) -> None:
        stuck = [client.ask(http2.request(b"/slow", b"POST"), b"a" * 60_000, end=False) for _ in range(4)]
        assert client.get(http2.request(b"/echo", b"POST"), b"b" * 60_000).body == b"b" * 60_000
        assert [client.wait(stream).body for stream in stuck] == [b"slow"] * 4

    @pytest.mark.parametrize("leaves", ["resets", "closes"])
    def test_a_caller_that_leaves_is_noticed(
        self, front: Any, speak_http2: Callable[..., Any], client: Any, http2: Any, leaves: str
    ) -> None:
        before = json.loads(client.get(http2.request(b"/gone")).body)
        other = speak_http2(front)
        other.ask(http2.request(b"/watched"))
        other.get(http2.request())
        if leaves == "resets":
            other.send(http2.frame(http2.RST, 0, 1, struct.pack(">I", 8)))
        else:
            other.sock.close()
        eventually(lambda: len(json.loads(client.get(http2.request(b"/gone")).body)) > len(before))
        assert json.loads(client.get(http2.request(b"/gone")).body)[len(before) :] == ["gone"]
        assert client.get(http2.request(b"/watched")).body == b"stayed"


def heads(http2: Any) -> dict[str, tuple[list[tuple[bytes, bytes]], int]]:
    """Header blocks that only HTTP/2 can have, with their answers."""
    method, scheme, authority, path = http2.request()
    plain = http2.request
    return {
        "no-method": ([scheme, authority, path], 400),
        "no-scheme": ([method, authority, path], 400),
        "no-path": ([method, scheme, authority], 400),
        "no-authority": ([method, scheme, path], 400),
        "host-alone": ([method, scheme, path, (b"host", b"gw.example")], 200),
        "host-equal": (plain(b"/", b"GET", (b"host", b"GW.example")), 200),
        "host-other": (plain(b"/", b"GET", (b"host", b"other")), 400),
        "host-other-port": (plain(b"/", b"GET", (b"host", b"gw.example:443")), 400),
        "host-twice": (plain(b"/", b"GET", (b"host", b"gw.example"), (b"host", b"gw.example")), 400),
        "host-twice-alone": ([method, scheme, path, (b"host", b"a"), (b"host", b"a")], 400),
        "authority-empty": ([method, scheme, (b":authority", b""), path], 400),
        "authority-user": ([method, scheme, (b":authority", b"a@gw.example"), path], 400),
        "authority-breaks": ([method, scheme, (b":authority", b"a\r\nx-b: c"), path], 400),
        "method-twice": ([method, method, scheme, authority, path], 400),
        "path-twice": ([method, scheme, authority, path, path], 400),
        "authority-twice": ([method, scheme, authority, authority, path], 400),
        "unknown-pseudo": ([method, scheme, authority, path, (b":status", b"200")], 400),
        "protocol-pseudo": ([(b":protocol", b"websocket"), *plain(b"/", b"CONNECT")], 400),
        "pseudo-after-field": ([method, scheme, authority, (b"x-a", b"b"), path], 400),
        "pseudo-after-cookie": ([method, scheme, authority, (b"cookie", b"b"), path], 400),
        "pseudo-after-host": ([method, scheme, (b"host", b"gw.example"), authority, path], 400),
        "scheme-http": ([method, (b":scheme", b"http"), authority, path], 400),
        "scheme-other": ([method, (b":scheme", b"ftp"), authority, path], 400),
        "connect": ([(b":method", b"CONNECT"), authority], 501),
        "trace": (plain(b"/", b"TRACE"), 501),
        "path-empty": (plain(b""), 400),
        "path-star": (plain(b"*", b"OPTIONS"), 400),
        "path-absolute": (plain(b"https://gw.example/"), 400),
        "path-relative": (plain(b"a"), 400),
        "path-request-line": (plain(b"/ HTTP/1.1\r\nx-injected: 1\r\n\r\nGET /x"), 400),
        "path-space": (plain(b"/a HTTP/1.1"), 400),
        "method-request-line": (plain(b"/", b"GET / HTTP/1.1\r\nx-injected: 1\r\n\r\nGET"), 400),
        "method-space": (plain(b"/", b"GET /a"), 400),
        "connection": (plain(b"/", b"GET", (b"connection", b"close")), 400),
        "keep-alive": (plain(b"/", b"GET", (b"keep-alive", b"1")), 400),
        "proxy-connection": (plain(b"/", b"GET", (b"proxy-connection", b"close")), 400),
        "transfer-encoding": (plain(b"/", b"GET", (b"transfer-encoding", b"chunked")), 400),
        "upgrade": (plain(b"/", b"GET", (b"upgrade", b"websocket")), 400),
        "te-trailers": (plain(b"/", b"GET", (b"te", b"trailers")), 200),
        "te-gzip": (plain(b"/", b"GET", (b"te", b"gzip")), 400),
        "upper-case": (plain(b"/", b"GET", (b"X-A", b"b")), 400),
        "name-empty": (plain(b"/", b"GET", (b"", b"b")), 400),
        "name-colon": (plain(b"/", b"GET", (b"x:a", b"b")), 400),
        "name-breaks": (plain(b"/", b"GET", (b"x-a\r\nx-b", b"c")), 400),
        "value-lf": (plain(b"/", b"GET", (b"x-a", b"b\nx-b: c")), 400),
        "value-cr": (plain(b"/", b"GET", (b"x-a", b"b\rc")), 400),
        "value-crlf": (plain(b"/", b"GET", (b"x-a", b"b\r\nx-b: c")), 400),
        "value-nul": (plain(b"/", b"GET", (b"x-a", b"b\0c")), 400),
        "value-ends": (plain(b"/", b"GET", (b"x-a", b"b\r\n\r\n")), 400),
        "value-blank-first": (plain(b"/", b"GET", (b"x-a", b" b")), 400),
        "value-blank-last": (plain(b"/", b"GET", (b"x-a", b"b\t")), 400),
        "cookie-breaks": (plain(b"/", b"GET", (b"cookie", b"a=1\r\nx: y")), 400),
        "length-with-end": (plain(b"/", b"POST", (b"content-length", b"5")), 400),
    }


def test_header_blocks(front: Any, speak_http2: Callable[..., Any], http2: Any) -> None:
    client = speak_http2(front)
    wrong = []
    table = heads(http2)
    for name, (fields, status) in table.items():
        got = client.get(fields)
        if got.status != status or got.reset is not None:
            wrong.append((name, got))
        if got.status >= 400 and json.loads(got.body)["request_id"] != got.fields[b"x-request-id"].decode():
            wrong.append((name, got))
    assert wrong == []
    told = refusals(client, http2)
    assert len(told) >= sum(status >= 400 for _, status in table.values()), "each is accounted for"


class TestConnection:
    def test_without_the_setting_only_http1_is_offered(self, start_server: Any, certificate: tuple[str, str]) -> None:
        server = start_server("--keyfile", certificate[0], "--certfile", certificate[1])
        context = ssl.create_default_context(cafile=certificate[1])
        context.set_alpn_protocols(["h2", "http/1.1"])
        with context.wrap_socket(server.connect(), server_hostname="gw.example") as sock:
            assert sock.selected_alpn_protocol() == "http/1.1"

    def test_http1_is_spoken_beside_it(self, front: Any, certificate: tuple[str, str]) -> None:
        context = ssl.create_default_context(cafile=certificate[1])
        with context.wrap_socket(front.connect(), server_hostname="gw.example") as sock:
            sock.sendall(b"GET / HTTP/1.1\r\nHost: gw.example\r\n\r\n")
            assert sock.recv(1000).startswith(b"HTTP/1.1 200 ")

    @pytest.mark.parametrize(("cipher", "spoken"), [("ECDHE-ECDSA-AES128-SHA256", False), ("ECDHE+AESGCM", True)])
    def test_ciphers_of_tls_1_2(
        self, front: Any, certificate: tuple[str, str], http2: Any, cipher: str, spoken: bool
    ) -> None:
        context = ssl.create_default_context(cafile=certificate[1])
        context.set_alpn_protocols(["h2"])
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers(cipher)
        with context.wrap_socket(front.connect(), server_hostname="gw.example") as sock:
            client = http2.Client(sock)
            assert client.get(http2.request()).status == (200 if spoken else 0)
            assert client.goaway == (None if spoken else (0, INADEQUATE))

    def test_what_is_announced(self, client: Any, http2: Any) -> None:
        client.get(http2.request())
        assert (client.settings[3], client.settings[4], client.settings[5]) == (STREAMS, 65_535, 16_384)
        assert client.settings.get(8, 0) == 0, "no extended CONNECT"

    def test_pings_are_answered(self, client: Any, http2: Any) -> None:
        client.send(http2.frame(http2.PING, 0, 0, b"12345678"))
        while not client.pongs:
            assert client.read()
        assert client.pongs == [b"12345678"]

    def test_no_more_streams_than_announced(self, client: Any, http2: Any) -> None:
        streams = [client.ask(http2.request(b"/slow")) for _ in range(STREAMS)]
        client.send(http2.frame(http2.RST, 0, streams[0], struct.pack(">I", 8)))
        over = client.ask(http2.request())
        assert client.wait(over).reset == REFUSED, "what was reset still runs"
        assert [client.wait(stream).body for stream in streams[1:]] == [b"slow"] * (STREAMS - 1)
        eventually(lambda: client.get(http2.request()).status == 200)

    def test_a_first_flight_over_the_limit_is_refused_by_the_stream(self, client: Any, http2: Any) -> None:
        fields = http2.request(b"/slow")
        client.send(b"".join(client.block(2 * n + 1, fields) for n in range(STREAMS + 5)))
        got = [client.wait(2 * n + 1) for n in range(STREAMS + 5)]
        assert [one.status for one in got[:STREAMS]] == [200] * STREAMS
        assert [one.reset for one in got[STREAMS:]] == [REFUSED] * 5

    def test_byte_by_byte(self, front: Any, speak_http2: Callable[..., Any], http2: Any) -> None:
        client = speak_http2(front)
        raw = client.block(1, http2.request(b"/echo", b"POST"), 0) + http2.frame(http2.DATA, 1, 1, b"hello")
        for i in range(len(raw)):
            client.send(raw[i : i + 1])
        assert client.wait(1).body == b"hello"

    def test_a_long_header_block_comes_in_continuations(self, client: Any, http2: Any) -> None:
        got = client.get(http2.request(b"/", b"GET", (b"x-a", b"b" * 30_000)))
        assert got.status == 200
        assert client.get(http2.request(b"/", b"GET", (b"x-a", b"b" * 33_000))).status == 431


BROKEN: dict[str, Callable[[Any, Any], bytes]] = {
    "data-on-idle": lambda h, c: h.frame(h.DATA, 0, 5, b"x"),
    "headers-on-zero": lambda h, c: h.frame(h.HEADERS, 5, 0, c.encoder.encode(h.request())),
    "headers-even-stream": lambda h, c: h.frame(h.HEADERS, 5, 2, c.encoder.encode(h.request())),
    "settings-ack-with-payload": lambda h, c: h.frame(h.SETTINGS, 1, 0, b"123456"),
    "settings-odd-size": lambda h, c: h.frame(h.SETTINGS, 0, 0, b"12345"),
    "settings-on-stream": lambda h, c: h.frame(h.SETTINGS, 0, 1),
    "settings-window-too-large": lambda h, c: h.frame(h.SETTINGS, 0, 0, struct.pack(">HI", 4, 1 << 31)),
    "settings-frame-too-small": lambda h, c: h.frame(h.SETTINGS, 0, 0, struct.pack(">HI", 5, 1)),
    "ping-of-seven": lambda h, c: h.frame(h.PING, 0, 0, b"1234567"),
    "ping-on-stream": lambda h, c: h.frame(h.PING, 0, 1, b"12345678"),
    "window-zero": lambda h, c: h.frame(h.WINDOW, 0, 0, b"\0\0\0\0"),
    "window-overflow": lambda h, c: h.frame(h.WINDOW, 0, 0, b"\x7f\xff\xff\xff"),
    "rst-on-idle": lambda h, c: h.frame(h.RST, 0, 7, b"\0\0\0\0"),
    "rst-on-zero": lambda h, c: h.frame(h.RST, 0, 0, b"\0\0\0\0"),
    "push-promise": lambda h, c: h.frame(h.PUSH, 4, 1, b"\0\0\0\2"),
    "frame-too-large": lambda h, c: h.frame(h.PING, 0, 0, b"a" * 20_000),
    "continuation-alone": lambda h, c: h.frame(h.CONTINUATION, 4, 1, b""),
    "block-interrupted": lambda h, c: h.frame(h.HEADERS, 1, 1, b"\x82") + h.frame(h.PING, 0, 0, b"12345678"),
    "block-of-another-stream": lambda h, c: h.frame(h.HEADERS, 1, 1, b"\x82") + h.frame(h.CONTINUATION, 4, 3, b"\x84"),
    "padding-too-long": lambda h, c: h.frame(h.HEADERS, 0xD, 1, b"\xff\x82"),
    "hpack-bad-index": lambda h, c: h.frame(h.HEADERS, 5, 1, b"\xff\xff\xff\x7f"),
    "hpack-cut": lambda h, c: h.frame(h.HEADERS, 5, 1, b"\x40\x0a"),
    "hpack-table-too-large": lambda h, c: h.frame(h.HEADERS, 5, 1, b"\x3f\xff\xff\x7f\x82"),
    "stream-depends-on-itself": lambda h, c: h.frame(h.PRIORITY, 0, 1, b"\0\0\0\1\0"),
    "id-goes-back": lambda h, c: c.block(5, h.request()) + c.block(3, h.request()),
    "two-heads": lambda h, c: c.block(1, h.request(), 0) + c.block(1, h.request(), 0),
    "window-of-stream-overflows": lambda h, c: c.block(1, h.request(b"/echo"), 0)
    + h.frame(h.DATA, 0, 1, b"a" * 16_384) * 5,
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_broken_frames_end_the_connection(front: Any, speak_http2: Callable[..., Any], http2: Any, name: str) -> None:
    client = speak_http2(front)
    client.send(BROKEN[name](http2, client))
    client.sock.settimeout(5)
    client.wait_end()
    assert client.goaway is not None
    assert client.goaway[1] != NO_ERROR
    good = speak_http2(front)
    assert good.get(http2.request()).status == 200
    assert refusals(good, http2)[-1][1:3] == ["bad-framing", 400]


class TestLeaving:
    def test_open_streams_finish_and_new_ones_are_refused(
        self, start_server: Any, http2_options: tuple[str, ...], speak_http2: Callable[..., Any], http2: Any
    ) -> None:
        server = start_server(*http2_options)
        client, idle = speak_http2(server), speak_http2(server)
        idle.get(http2.request())
        slow = client.ask(http2.request(b"/slow"))
        client.get(http2.request())
        os.kill(server.process.pid, signal.SIGTERM)
        while client.goaway is None:
            assert client.read()
        late = client.ask(http2.request())
        client.wait_end()
        idle.wait_end()
        assert client.of(slow).body == b"slow"
        assert client.of(late).reset == REFUSED, "it may be repeated elsewhere"
        assert (client.goaway, idle.goaway) == ((3, NO_ERROR), (1, NO_ERROR))
        assert server.process.wait(10) == 0

    def test_what_runs_at_the_end_of_the_grace_is_answered(
        self, start_server: Any, http2_options: tuple[str, ...], speak_http2: Callable[..., Any], http2: Any
    ) -> None:
        server = start_server(*http2_options, "--graceful-timeout", "2")
        client = speak_http2(server)
        before, inside = client.ask(http2.request(b"/hangs")), client.ask(http2.request(b"/hangs-inside"))
        while client.of(inside).body != b"some":
            assert client.read()
        os.kill(server.process.pid, signal.SIGTERM)
        client.wait_end()
        assert client.of(before).status == 503
        assert b"grace-ended" in client.of(before).body
        assert (client.of(inside).ended, client.of(inside).reset) == (False, 2)
        assert server.process.wait(10) == 0
        assert server.notes.read_text().split() == ["ready", "hangs", "drain", *["grace-ended"] * 2, "stop"]

    def test_max_requests(
        self, start_server: Any, http2_options: tuple[str, ...], speak_http2: Callable[..., Any], http2: Any
    ) -> None:
        server = start_server(*http2_options, "--max-requests", "3")
        client = speak_http2(server)
        assert [client.get(http2.request()).status for _ in range(3)] == [200] * 3
        client.wait_end()
        assert client.goaway is not None
        assert client.goaway[1] == NO_ERROR
        eventually(lambda: server.log.read_text().count("Booting worker") >= 2)


def test_curl(front: Any, certificate: tuple[str, str]) -> None:
    if shutil.which("curl") is None or b"HTTP2" not in subprocess.run(["curl", "-V"], capture_output=True).stdout:
        pytest.skip("no curl with HTTP/2")
    port = front.address[1]
    got = subprocess.run(
        ["curl", "-s", "--http2", "--cacert", certificate[1], "--resolve", f"gw.example:{port}:127.0.0.1",
         "-w", "%{http_version} %{http_code}", "--data-binary", "x" * 100_000, f"https://gw.example:{port}/echo"],
        capture_output=True, check=True,
    )  # fmt: skip
    assert got.stdout == b"x" * 100_000 + b"2 200"

"""What a connection does beyond the corpus: bodies, responses, upgrades, the caller going away."""

from __future__ import annotations

import base64
import json
import socket
import struct
import time
import uuid
from collections.abc import Callable
from typing import Any

import pytest

Exchange = Callable[..., Any]


def get(path: str, *fields: str, version: str = "1.1", method: str = "GET") -> bytes:
    lines = (f"{method} {path} HTTP/{version}", "Host: gw.example", *fields, "", "")
    return "\r\n".join(lines).encode()


def post(path: str, body: bytes, *fields: str) -> bytes:
    return get(path, f"Content-Length: {len(body)}", *fields, method="POST") + body


def read_some(sock: socket.socket, until: Callable[[bytes], bool]) -> bytes:
    data = b""
    while not until(data):
        piece = sock.recv(65536)
        if not piece:
            break
        data += piece
    return data


class TestEnviron:
    def test_keys_of_the_contract(self, exchange: Exchange) -> None:
        raw = get("/environ/?a=%20b", "X-A: 1", "X-B: 2", "X-A: 3", "Cookie: a=1", "Cookie: b=2")
        environ = json.loads(exchange(raw.replace(b"/environ/", b"/environ")).bodies[0])
        expected = {
            "REQUEST_METHOD": "GET", "PATH_INFO": "/environ", "QUERY_STRING": "a=%20b", "RAW_URI": "/environ?a=%20b",
            "SERVER_PROTOCOL": "HTTP/1.1", "HTTP_HOST": "gw.example", "HTTP_X_A": "1, 3", "HTTP_X_B": "2",
            "HTTP_COOKIE": "a=1; b=2", "REMOTE_ADDR": "127.0.0.1", "caregate.peer": "127.0.0.1", "SCRIPT_NAME": "",
            "caregate.path": "/environ", "caregate.content_length": 0, "caregate.listener": "public",
            "wsgi.url_scheme": "http",
            "duplicate": ["cookie", "x-a"],
        }  # fmt: skip
        assert {key: environ.get(key) for key in expected} == expected
        assert uuid.UUID(environ["caregate.request_id"]).version == 4
        assert 0 <= time.monotonic_ns() - environ["caregate.started_ns"] < 60e9

    def test_path_info_is_decoded_and_the_raw_path_is_not(self, exchange: Exchange) -> None:
        got = exchange(get("/caf%c3%a9/%7ex"))
        assert got.bodies == [b"/caf%C3%A9/~x"]

    def test_ids_differ_on_one_connection(self, exchange: Exchange) -> None:
        got = exchange(get("/environ") * 300)
        assert len({json.loads(body)["caregate.request_id"] for body in got.bodies}) == 300

    def test_nothing_leaks_into_the_next_request(self, exchange: Exchange) -> None:
        got = exchange(post("/environ", b"abc", "X-A: 1") + get("/environ"))
        second = json.loads(got.bodies[1])
        assert "HTTP_X_A" not in second
        assert "CONTENT_LENGTH" not in second
        assert second["caregate.content_length"] == 0


class TestBodies:
    @pytest.mark.parametrize("expect", ["100-continue", "100-Continue"])
    def test_continue_is_sent_when_the_body_is_read(self, server: Any, answers: Any, expect: str) -> None:
        with server.connect() as sock:
            sock.sendall(get("/echo", "Content-Length: 5", f"Expect: {expect}", method="POST"))
            assert read_some(sock, lambda d: d.endswith(b"\r\n\r\n")) == b"HTTP/1.1 100 Continue\r\n\r\n"
            sock.sendall(b"hello")
            got = answers(read_some(sock, lambda d: d.endswith(b"hello")))
        assert (got.statuses, got.bodies) == ([200], [b"hello"])

    def test_continue_is_not_sent_for_a_body_nobody_reads(self, server: Any, answers: Any) -> None:
        with server.connect() as sock:
            sock.sendall(get("/ignore", "Content-Length: 5", "Expect: 100-continue", method="POST"))
            got = answers(read_some(sock, lambda d: False))
        assert got.statuses == [200]
        assert got.heads[0]["connection"] == "close"

    def test_continue_is_not_sent_when_the_body_has_come(self, exchange: Exchange) -> None:
        got = exchange(post("/echo", b"hello", "Expect: 100-continue"))
        assert got.statuses == [200]

    def test_an_announced_body_over_the_limit_is_refused_at_once(self, exchange: Exchange) -> None:
        got = exchange(post("/limited", b"123456789"))
        assert (got.statuses, got.bodies) == ([413], [b"announced"])

    def test_a_body_within_the_limit_passes(self, exchange: Exchange) -> None:
        assert exchange(post("/limited", b"12345678")).bodies == [b"12345678"]

    def test_a_chunked_body_over_the_limit_is_refused_when_read(self, exchange: Exchange) -> None:
        raw = get("/limited", "Transfer-Encoding: chunked", method="POST") + b"5\r\n12345\r\n5\r\n67890\r\n"
        got = exchange(raw)
        assert (got.statuses, got.bodies) == ([413], [b"body-too-large"])
        assert got.heads[0]["connection"] == "close"

    def test_a_long_unread_body_ends_the_connection_and_the_answer_arrives(self, exchange: Exchange) -> None:
        got = exchange(post("/ignore", b"a" * 4_000_000) + get("/"))
        assert got.statuses == [200]
        assert got.heads[0]["connection"] == "close"

    def test_a_short_unread_body_is_dropped(self, exchange: Exchange) -> None:
        assert exchange(post("/ignore", b"a" * 60_000) + get("/")).statuses == [200, 200]

    def test_lines(self, exchange: Exchange) -> None:
        assert json.loads(exchange(post("/lines", b"a\nbc\n\nd")).bodies[0]) == ["a\n", "bc\n", "\n", "d"]

    def test_a_large_body_comes_whole(self, exchange: Exchange) -> None:
        body = bytes(range(256)) * 20_000
        assert exchange(post("/echo", body)).bodies == [body]


class TestResponses:
    @pytest.mark.parametrize(
        ("path", "body"),
        [
            ("/generator", b"onetwo" + b"three" * 10_000),
            ("/empty-generator", b""),
            ("/write", b"written returned"),
            ("/two", b"onetwo"),
            ("/large", b"0123456789abcdef" * 262_144),
            ("/long", b"some"),
            ("/hop-by-hop", b"x"),
        ],
    )
    def test_bodies(self, exchange: Exchange, path: str, body: bytes) -> None:
        got = exchange(get(path) + get("/"))
        assert (got.statuses, got.bodies[0]) == ([200, 200], body)

    def test_what_the_socket_does_not_take_at_once_follows(self, server: Any, answers: Any) -> None:
        with server.connect() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            for _ in range(3):
                sock.sendall(get("/narrow"))
                time.sleep(0.01)
            got = answers(read_some(sock, lambda d: d.count(b"0123456789abcdef") == 3000))
            assert (got.statuses, got.bodies) == ([200] * 3, [b"0123456789abcdef" * 1000] * 3)

    def test_an_unknown_length_is_chunked(self, exchange: Exchange) -> None:
        head = exchange(get("/generator")).heads[0]
        assert head["transfer-encoding"] == "chunked"
        assert "content-length" not in head

    def test_http10_gets_an_unknown_length_by_the_end_of_the_connection(self, exchange: Exchange) -> None:
        got = exchange(get("/generator", "Connection: keep-alive", version="1.0"))
        assert got.bodies[0].startswith(b"onetwothree")
        assert got.heads[0]["connection"] == "close"
        assert "transfer-encoding" not in got.heads[0]

    def test_http10_keep_alive_is_confirmed(self, exchange: Exchange) -> None:
        got = exchange(get("/", "Connection: keep-alive", version="1.0") * 2)
        assert [head["connection"] for head in got.heads] == ["keep-alive", "keep-alive"]

    def test_hop_by_hop_fields_are_the_workers(self, exchange: Exchange) -> None:
        head = exchange(get("/hop-by-hop")).heads[0]
        assert {"connection", "keep-alive", "transfer-encoding", "upgrade"} & set(head) == set()

    def test_the_application_may_close(self, exchange: Exchange) -> None:
        got = exchange(get("/close") * 2)
        assert got.statuses == [200]
        assert got.heads[0]["connection"] == "close"

    @pytest.mark.parametrize(("path", "status", "length"), [("/no-content", 204, None), ("/not-modified", 304, "5")])
    def test_statuses_without_a_body(self, exchange: Exchange, path: str, status: int, length: str | None) -> None:
        got = exchange(get(path) + get("/"))
        assert got.statuses == [status, 200]
        assert got.heads[0].get("content-length") == length

    @pytest.mark.parametrize("path", ["/", "/generator", "/large", "/two"])
    def test_head_has_no_body(self, exchange: Exchange, path: str) -> None:
        got = exchange(get(path, method="HEAD"))
        assert (got.statuses, got.rest) == ([200], b"")

    def test_date(self, exchange: Exchange) -> None:
        date = exchange(get("/")).heads[0]["date"]
        assert abs(time.mktime(time.strptime(date, "%a, %d %b %Y %H:%M:%S GMT")) - time.mktime(time.gmtime())) < 3

    def test_file_wrapper(self, exchange: Exchange) -> None:
        assert b"path_file" in exchange(get("/file")).bodies[0]


class TestFailures:
    @pytest.mark.parametrize("path", ["/raises", "/raises-after-start", "/injects"])
    def test_an_application_that_raises_is_a_500_without_detail(self, exchange: Exchange, path: str) -> None:
        got = exchange(get(path))
        assert got.statuses == [500]
        assert b"secret" not in got.bodies[0]
        assert "x-injected" not in got.heads[0]
        problem = json.loads(got.bodies[0])
        assert problem["request_id"] == got.heads[0]["x-request-id"]

    @pytest.mark.parametrize("path", ["/breaks", "/short"])
    def test_a_broken_body_is_never_ended_cleanly(self, exchange: Exchange, path: str) -> None:
        got = exchange(get(path) + get("/"))
        assert got.statuses == []
        assert b"some" in got.rest
        assert not got.rest.endswith(b"0\r\n\r\n")

    def test_a_broken_body_that_ends_with_the_connection_is_reset(self, server: Any) -> None:
        with server.connect() as sock:
            sock.sendall(get("/breaks", version="1.0"))
            with pytest.raises(ConnectionResetError):
                read_some(sock, lambda d: False)

    def test_refusals_reach_the_application(self, exchange: Exchange) -> None:
        request_id = exchange(get("/a//b")).heads[0]["x-request-id"]
        assert [request_id, "bad-target", 400, "127.0.0.1"] in json.loads(exchange(get("/refusals")).bodies[0])


class TestUpgrade:
    def test_the_application_takes_the_socket(self, server: Any) -> None:
        with server.connect() as sock:
            sock.sendall(get("/upgrade", "Connection: Upgrade", "Upgrade: websocket") + b"early")
            data = read_some(sock, lambda d: d.endswith(b"EARLY"))
            head = data.partition(b"\r\n\r\n")[0]
            assert head.startswith(b"HTTP/1.1 101 ")
            assert b"\r\nUpgrade: websocket" in head
            assert b"\r\nConnection: Upgrade" in head
            assert b"content-length" not in head.lower()
            sock.sendall(b"late")
            assert read_some(sock, lambda d: d.endswith(b"LATE")) == b"LATE"
            sock.sendall(b"bye")
            assert read_some(sock, lambda d: False) == base64.b64encode(b"bye")


class TestGone:
    def test_the_application_is_told_when_its_caller_closes(self, server: Any, exchange: Exchange) -> None:
        before = len(json.loads(exchange(get("/gone")).bodies[0]))
        with server.connect() as sock:
            sock.sendall(get("/watched"))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        deadline = time.monotonic() + 3
        while time.monotonic() < deadline:
            seen = json.loads(exchange(get("/gone")).bodies[0])
            if len(seen) > before:
                break
        assert seen[before:] == ["gone"]

    def test_also_behind_pipelined_bytes(self, server: Any, exchange: Exchange) -> None:
        before = len(json.loads(exchange(get("/gone")).bodies[0]))
        with server.connect() as sock:
            sock.sendall(get("/watched"))
            time.sleep(0.01)  # so that the next one is not read with it
            sock.sendall(get("/"))
            time.sleep(0.01)
        deadline = time.monotonic() + 3
        while time.monotonic() < deadline:
            seen = json.loads(exchange(get("/gone")).bodies[0])
            if len(seen) > before:
                break
        assert seen[before:] == ["gone"]

    def test_one_that_pipelines_and_stays_is_not_gone(self, server: Any, answers: Any) -> None:
        with server.connect() as sock:
            sock.sendall(get("/watched"))
            time.sleep(0.01)
            sock.sendall(get("/watched") + get("/"))
            got = answers(read_some(sock, lambda d: d.endswith(b"\r\n\r\n/")))
        assert got.bodies == [b"stayed", b"stayed", b"/"]

    def test_a_caller_that_stays_is_not_gone(self, server: Any, answers: Any) -> None:
        with server.connect() as sock:
            sock.sendall(get("/watched"))
            got = answers(read_some(sock, lambda d: d.endswith(b"stayed")))
            assert got.bodies == [b"stayed"]
            sock.sendall(get("/"))
            assert answers(read_some(sock, lambda d: d.endswith(b"/"))).statuses == [200]

"""Upstreams' responses taken apart, whole and byte by byte; heads of requests as sent."""

from __future__ import annotations

import pytest

from fastpath.upstream import AnswerError, AnswerNames, AnswerReader, RequestHeadError, RequestHeads

NAMES = AnswerNames(frozenset({"connection", "content-length", "relay-source", "upgrade"}))
HEADS = RequestHeads(frozenset({"authorization", "connection"}), ("x-caregate-",))
OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
EMPTY = OK + b"Content-Length: 0\r\n\r\n"
ONE = OK + b"Content-Length: 1\r\n\r\na"
CASES = [
    pytest.param(OK + b"Content-Length: 5\r\n\r\nhello", False, b"hello", True, id="length"),
    pytest.param(OK + b"Content-Length: 0\r\n\r\n", False, b"", True, id="length zero"),
    pytest.param(CHUNKED + b"5\r\nhello\r\n0\r\n\r\n", False, b"hello", True, id="chunked"),
    pytest.param(OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX: y\r\n\r\n", False, b"", True, id="trailer"),
    pytest.param(OK + b"Content-Length: 5\r\n\r\n", True, b"", True, id="HEAD"),
    pytest.param(b"HTTP/1.1 204 No Content\r\n\r\n", False, b"", True, id="204"),
    pytest.param(b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", False, b"", True, id="304 with length"),
    pytest.param(b"HTTP/1.1 100 Continue\r\n\r\n" + ONE, False, b"a", True, id="100 first"),
    pytest.param(b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + EMPTY, False, b"", True, id="103"),
    pytest.param(OK + b"Connection: close\r\nContent-Length: 1\r\n\r\na", False, b"a", False, id="closes"),
    pytest.param(b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\na", False, b"a", False, id="HTTP/1.0"),
    pytest.param(OK + b"Content-Length: 1\r\n\r\n\n", False, b"\n", True, id="line feed as content"),
    pytest.param(b"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", False, b"", True, id="no reason"),
    pytest.param(b"HTTP/1.1 599 \r\nContent-Length: 1\r\n\r\na", False, b"a", True, id="odd status"),
]  # fmt: skip


def read(pieces: list[bytes], head_only: bool) -> AnswerReader:
    reader = AnswerReader(NAMES, head_only)
    for piece in pieces:
        reader.feed(piece)
    return reader


@pytest.mark.parametrize(("raw", "head_only", "body", "reusable"), CASES)
def test_whole_and_byte_by_byte(raw: bytes, head_only: bool, body: bytes, reusable: bool) -> None:
    for pieces in ([raw], [raw[i : i + 1] for i in range(len(raw))]):
        reader = read(pieces, head_only)
        assert reader.done
        assert reader.take() == body
        assert reader.reusable is reusable
        assert reader.take() == b""


@pytest.mark.parametrize(("raw", "head_only", "body", "reusable"), CASES)
def test_no_prefix_is_complete(raw: bytes, head_only: bool, body: bytes, reusable: bool) -> None:
    for end in range(1, len(raw)):
        reader = read([raw[:end]], head_only)
        assert not reader.done
        with pytest.raises(AnswerError):
            reader.end()


@pytest.mark.parametrize(("raw", "head_only", "body", "reusable"), CASES)
def test_bytes_after_the_end_spoil_the_connection(raw: bytes, head_only: bool, body: bytes, reusable: bool) -> None:
    for pieces in ([raw + b"HTTP/1.1 200 OK\r\nX: evil\r\n"], [raw, b"x"], [raw + b"garbage"]):
        reader = read(pieces, head_only)
        assert reader.take() == body
        assert not reader.reusable
        assert "x" not in reader.fields


def test_fields_are_those_of_the_final_response() -> None:
    reader = read(
        [b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + OK + b"ETag:  a \r\nContent-Length: 0\r\n\r\n"], False
    )
    assert (reader.fields, reader.content_length) == ({"etag": "a"}, 0)


def test_the_end_of_the_connection_may_delimit() -> None:
    reader = read([OK + b"\r\nhello"], False)
    assert not reader.done
    reader.end()
    assert (reader.done, reader.take(), reader.reusable) == (True, b"hello", False)


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b"garbage\r\n\r\n", id="garbage"),
        pytest.param(b"SSH-2.0-x", id="garbage without a line end"),
        pytest.param(b"HTTP/2.0 200 OK\r\n\r\n", id="version"),
        pytest.param(b"HTTP/1.1 20 OK\r\n\r\n", id="short status"),
        pytest.param(b"HTTP/1.1 099 OK\r\n\r\n", id="status below 100"),
        pytest.param(b"HTTP/1.1 2000 OK\r\n\r\n", id="long status"),
        pytest.param(b"HTTP/1.1 200 OK\nContent-Length: 0\n\n", id="bare line feeds"),
        pytest.param(OK + b"X: a\n\r\n", id="a bare line feed"),
        pytest.param(OK + b"X: a\rb\r\n\r\n", id="bare carriage return"),
        pytest.param(OK + b"X: a\r\n folded\r\n\r\n", id="folded"),
        pytest.param(OK + b"X : a\r\n\r\n", id="blank before the colon"),
        pytest.param(OK + b": a\r\n\r\n", id="no name"),
        pytest.param(OK + b"X\r\n\r\n", id="no colon"),
        pytest.param(OK + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\n", id="the same length twice"),
        pytest.param(OK + b"Content-Length: 5, 5\r\n\r\n", id="a list of lengths"),
        pytest.param(OK + b"Content-Length: +5\r\n\r\n", id="signed length"),
        pytest.param(OK + b"Content-Length: 1000000000000000000\r\n\r\n", id="length over 18 digits"),
        pytest.param(OK + b"Content-Length:\r\n\r\n", id="empty length"),
        pytest.param(OK + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", id="chunked twice"),
        pytest.param(b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", id="chunks in HTTP/1.0"),
        pytest.param(b"HTTP/1.1 102 P\r\n" + b"X: a\r\n" * 9 + b"\r\nX", id="garbage after an informational one"),
        pytest.param(b"HTTP/1.0 100 Continue\r\n\r\n" + ONE, id="an informational one in HTTP/1.0"),
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", id="a request"),
        pytest.param(OK + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n", id="two lengths"),
        pytest.param(OK + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", id="length and coding"),
        pytest.param(OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n", id="unknown coding"),
        pytest.param(OK + b"Transfer-Encoding: gzip\r\n\r\n", id="coding without chunks"),
        pytest.param(OK + b"Content-Length: -5\r\n\r\n", id="negative length"),
        pytest.param(OK + b"Content-Length: x\r\n\r\n", id="length no number"),
        pytest.param(OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", id="bad chunk"),
        pytest.param(OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhelloX\r\n", id="chunk end"),
        pytest.param(OK + b"X-A: b\x00c\r\n\r\n", id="control character"),
        pytest.param(OK + b"X A: b\r\n\r\n", id="blank in name"),
        pytest.param(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", id="101"),
        pytest.param(OK + b"X: " + b"a" * 70_000, id="endless head"),
        pytest.param(OK + b"".join(b"X-%d: a\r\n" % i for i in range(300)) + b"\r\n", id="too many fields"),
    ],
)
def test_broken_answers(raw: bytes) -> None:
    for pieces in ([raw], [raw[i : i + 1] for i in range(len(raw))]):
        with pytest.raises(AnswerError):
            read(pieces, False)


def test_repeated_fields_are_joined_and_cookies_are_not() -> None:
    reader = read(
        [OK + b"Vary: a\r\nVARY: b\r\nSet-Cookie: x=1\r\nSet-Cookie: y=2\r\nContent-Length: 0\r\n\r\n"], False
    )
    assert reader.fields == {"vary": "a, b"}
    assert reader.cookies == ["x=1", "y=2"]


@pytest.mark.parametrize(
    ("value", "connection", "reusable"),
    [
        (b"keep-alive", None, True), (b"Keep-Alive", None, True), (b"close", None, False), (b"CLOSE", None, False),
        (b"keep-alive, X-Hop", "keep-alive, x-hop", True), (b"x, close", "x, close", False),
        (b"a\r\nConnection: b", "a, b", True),
    ],
)  # fmt: skip
def test_connection(value: bytes, connection: str | None, reusable: bool) -> None:
    reader = read([OK + b"Connection: " + value + b"\r\nContent-Length: 0\r\n\r\n"], False)
    assert (reader.connection, reader.reusable) == (connection, reusable)


def test_more_names_than_are_kept_still_come_through() -> None:
    names = AnswerNames(frozenset({"upgrade"}))
    for number in range(0, 1200, 100):
        lines = b"".join(b"X-%d: %d\r\n" % (n, n) for n in range(number, number + 100))
        reader = AnswerReader(names, False)
        reader.feed(OK + lines + b"Upgrade: h2\r\nContent-Length: 0\r\n\r\n")
        assert reader.fields == {f"x-{n}": str(n) for n in range(number, number + 100)}


ENVIRON = {
    "REQUEST_METHOD": "GET", "HTTP_AUTHORIZATION": "Bearer x", "HTTP_X_A": "b", "HTTP_X_CAREGATE_UNIT": "forged",
    7: "odd",
    "HTTP_CONNECTION": "close", "HTTP_": "x", "HTTP_ACCEPT": "text/\xe4", "wsgi.input": None,
}  # fmt: skip


@pytest.mark.parametrize(
    ("method", "length", "nominated", "lines"),
    [
        pytest.param("GET", 0, None, b"x-a: b\r\naccept: text/\xe4\r\n", id="no body"),
        pytest.param("POST", 0, None, b"content-length: 0\r\nx-a: b\r\naccept: text/\xe4\r\n", id="empty body"),
        pytest.param("GET", 7, frozenset({"x-a"}), b"content-length: 7\r\naccept: text/\xe4\r\n", id="nominated"),
        pytest.param("PUT", -1, None, b"transfer-encoding: chunked\r\nx-a: b\r\naccept: text/\xe4\r\n", id="chunks"),
    ],
)
def test_head_as_sent(method: str, length: int, nominated: frozenset[str] | None, lines: bytes) -> None:
    for _ in range(2):
        head = HEADS.encode(method, "/a?b", ["host", "h", "x-request-id", "1"], ENVIRON, nominated, length)
        assert head == method.encode() + b" /a?b HTTP/1.1\r\nhost: h\r\nx-request-id: 1\r\n" + lines + b"\r\n"


@pytest.mark.parametrize(
    ("target", "environ"),
    [
        pytest.param("/a\r\nX: y", {}, id="target"),
        pytest.param("/", {"HTTP_X": "a\r\nb: c"}, id="value"),
        pytest.param("/", {"HTTP_X": "\u20ac"}, id="beyond latin-1"),
        pytest.param("/", {"HTTP_X\r\nB": "c"}, id="name"),
        pytest.param("/", {"CONTENT_TYPE": "a\nb"}, id="content type"),
    ],
)
def test_no_head_of_two_lines(target: str, environ: dict[str, object]) -> None:
    with pytest.raises(RequestHeadError):
        HEADS.encode("GET", target, ["host", "h"], environ, None, 0)

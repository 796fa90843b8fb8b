"""Upstream responses taken apart, whole and byte by byte."""

from __future__ import annotations

import pytest

from gateway.errors import UpstreamBroken
from gateway.upstream.response import ResponseReader

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
    pytest.param(b"HTTP/1.1 599 \r\nContent-Length: 1\r\n\r\na", False, b"a", True, id="odd status"),
]  # fmt: skip


def read(pieces: list[bytes], head_only: bool) -> ResponseReader:
    reader = ResponseReader(head_only)
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
        with pytest.raises(UpstreamBroken):
            reader.end()


@pytest.mark.parametrize(("raw", "head_only", "body", "reusable"), CASES)
def test_bytes_after_the_end_spoil_the_connection(raw: bytes, head_only: bool, body: bytes, reusable: bool) -> None:
    for pieces in ([raw + b"HTTP/1.1 200 OK\r\nX: evil\r\n"], [raw, b"x"], [raw + b"garbage"]):
        reader = read(pieces, head_only)
        assert reader.take() == body
        assert not reader.reusable
        assert ("x", "evil") not in reader.fields


def test_fields_are_those_of_the_final_response() -> None:
    reader = read(
        [b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + OK + b"ETag:  a \r\nContent-Length: 0\r\n\r\n"], False
    )
    assert reader.fields == [("etag", "a"), ("content-length", "0")]


def test_the_end_of_the_connection_may_delimit() -> None:
    reader = read([OK + b"\r\nhello"], False)
    assert not reader.done
    reader.end()
    assert (reader.done, reader.take(), reader.reusable) == (True, b"hello", False)


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b"garbage\r\n\r\n", id="garbage"),
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
        with pytest.raises(UpstreamBroken):
            read(pieces, False)

"""Answers of a local service as bytes: the same whole and byte by byte."""

from __future__ import annotations

import pytest

from gateway.agent.response import MAX_FIELDS, ResponseBroken, ResponseReader

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def read(data, method="GET", size=1 << 20, end=False):
    reader, body = ResponseReader(method), b""
    for position in range(0, len(data), size):
        body += b"".join(reader.feed(data[position : position + size]))
    if end:
        reader.end_of_stream()
    return reader, body


@pytest.mark.parametrize("size", [1, 2, 1 << 20])
@pytest.mark.parametrize(
    ("data", "method", "end", "body", "length", "reusable"),
    [
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc", "GET", False, b"abc", 3, True, id="length"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "GET", False, b"", 0, True, id="empty"),
        pytest.param(
            CHUNKED + b"2;x=y\r\nab\r\n1\r\nc\r\n0\r\nT: u\r\n\r\n", "GET", False, b"abc", None, True, id="chunked"
        ),
        pytest.param(b"HTTP/1.1 200 OK\r\n\r\nabc", "GET", True, b"abc", None, False, id="until the end"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", "HEAD", False, b"", 9, True, id="head"),
        pytest.param(CHUNKED, "HEAD", False, b"", None, True, id="head of chunked"),
        pytest.param(b"HTTP/1.1 204 No\r\n\r\n", "GET", False, b"", None, True, id="204"),
        pytest.param(b"HTTP/1.1 304 No\r\nContent-Length: 9\r\n\r\n", "GET", False, b"", 9, True, id="304"),
        pytest.param(
            b"HTTP/1.1 100 Continue\r\nA: b\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx",
            "PUT",
            False,
            b"x",
            1,
            True,
            id="interim",
        ),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 1\r\n\r\nx",
            "GET",
            False,
            b"x",
            1,
            False,
            id="close",
        ),
        pytest.param(b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\nx", "GET", False, b"x", 1, False, id="1.0"),
    ],
)
def test_answers(data, method, end, body, length, reusable, size):
    reader, got = read(data, method, size, end)
    assert got == body
    assert reader.complete
    assert reader.head is not None
    assert reader.head.length == length
    assert reader.reusable is reusable
    assert not [name for name, _ in reader.head.fields if name in {"a", "t", "content-length", "transfer-encoding"}]


def test_fields_survive_repeated_and_in_order():
    reader, _ = read(
        b"HTTP/1.1 200 OK\r\nSet-Cookie: a\r\nX-One: \t b\xe4 \r\nSet-Cookie: c\r\nConnection: x-hop\r\nX-Hop: d\r\n"
        b"Content-Length: 0\r\n\r\n"
    )
    assert reader.head.fields == [("set-cookie", "a"), ("x-one", "b\xe4"), ("set-cookie", "c")]


@pytest.mark.parametrize("extra", [b"x", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b"\x00"])
@pytest.mark.parametrize("together", [True, False])
def test_bytes_after_the_end_spoil_the_connection_not_the_answer(extra, together):
    whole = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx"
    reader = ResponseReader("GET")
    if together:
        assert reader.feed(whole + extra) == [b"x"]
    else:
        assert reader.feed(whole) == [b"x"]
        assert reader.feed(extra) == []
    assert reader.complete
    assert not reader.reusable


@pytest.mark.parametrize("size", [1, 1 << 20])
def test_body_after_an_answer_to_head_spoils_the_connection(size):
    reader, body = read(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc", "HEAD", size)
    assert (reader.complete, reader.reusable, body) == (True, False, b"")


@pytest.mark.parametrize("size", [1, 1 << 20])
@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"HTTP/2 200 OK\r\n\r\n", id="version"),
        pytest.param(b"HTTP/1.1 20 OK\r\n\r\n", id="status of two digits"),
        pytest.param(b"HTTP/1.1 199 X\r\nContent-Length: 0\r\n\r\nx", id="interim and nonsense"),
        pytest.param(b"HTTP/1.1 600 X\r\nContent-Length: 0\r\n\r\n", id="status 600"),
        pytest.param(b"HTTP/1.1 200 OK\r\nA : b\r\n\r\n", id="space before the colon"),
        pytest.param(b"HTTP/1.1 200 OK\r\nA: b\r\n folded\r\n\r\n", id="folded"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 1 \r\nContent-Length: 1\r\n\r\nx", id="length twice"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: +1\r\n\r\nx", id="signed length"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\nx", id="endless length"),
        pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", id="two codings"),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", id="coding twice"
        ),
        pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\t\r\n\r\n0\r\n\r\n", id="coding and a tab"),
        pytest.param(CHUNKED + b"-1\r\n", id="negative chunk"),
        pytest.param(CHUNKED + b"1\r\nab\r\n", id="long chunk"),
        pytest.param(CHUNKED + b"0\r\nT: " + b"t" * 200_000, id="endless trailer"),
        pytest.param(b"HTTP/1.1 200 OK\r\nA: " + b"a" * 200_000, id="endless field"),
        pytest.param(b"HTTP/1.1 100 Continue\r\n\r\n" * 4_000, id="endless interim answers"),
        pytest.param(b"\xff\xfe", id="binary"),
    ],
)
def test_broken(data, size):
    with pytest.raises(ResponseBroken):
        read(data, size=size)


@pytest.mark.parametrize(
    "data",
    [b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nx", CHUNKED, CHUNKED + b"1\r\na\r\n"],
)
def test_truncated(data):
    with pytest.raises(ResponseBroken, match="truncated"):
        read(data, end=True)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        pytest.param(b"a b", b"x", id="a name with a space"),
        pytest.param(b"", b"x", id="no name"),
        pytest.param(b"a\nb", b"x", id="a name that would be two"),
        pytest.param(b"a\x00", b"x", id="a name with NUL"),
        pytest.param(b"a", b"x\ny", id="a value that would be two"),
        pytest.param(b"a", b"x\r", id="a value with CR"),
        pytest.param(b"a", b"x\x00y", id="a value with NUL"),
        pytest.param(b"a", b"x\x7f", id="a value with DEL"),
    ],
)
@pytest.mark.parametrize("others", [0, 2])
def test_what_a_lenient_parser_would_hand_on_is_refused(name, value, others):
    """Fields are looked at together: none may hide among the others, or be taken for two."""
    reader = ResponseReader("GET")
    for _ in range(others):
        reader.on_header(b"good", b"one")
    reader.on_header(name, value)
    with pytest.raises(ResponseBroken, match="header field"):
        reader._fields()


def test_two_faults_that_would_make_the_count_right_are_refused():
    reader = ResponseReader("GET")
    reader.on_header(b"a\nb", b"x\ny")
    with pytest.raises(ResponseBroken, match="header field"):
        reader._fields()


@pytest.mark.parametrize(("count", "fits"), [(MAX_FIELDS - 1, True), (MAX_FIELDS, True), (MAX_FIELDS + 1, False)])
def test_as_many_fields_as_a_frame_takes(count, fits):
    answer = b"HTTP/1.1 204 No\r\n" + b"".join(b"a: %d\r\n" % n for n in range(count)) + b"\r\n"
    if fits:
        assert len(read(answer)[0].head.fields) == count
        return
    with pytest.raises(ResponseBroken, match="head too large"):
        read(answer)


def test_the_length_of_a_204_is_none():
    reader, body = read(b"HTTP/1.1 204 No\r\nContent-Length: 5\r\n\r\n")
    assert (reader.complete, reader.head.length, body) == (True, None, b"")

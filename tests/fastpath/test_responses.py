"""Response heads and request ids."""

# ruff: noqa: E501
from __future__ import annotations

import os
import uuid
from typing import Any

import pytest

from fastpath.responses import BODY_CHUNKED, BODY_NONE, BODY_TO_CLOSE, RequestIds, ResponseError, encode_response

DATE = b"Date: now\r\n"
PLAIN: dict[str, Any] = {
    "status": "200 OK", "fields": [], "date": DATE, "http10": False, "head_only": False, "keep_alive": True, "body": None,
    "body_size": -1,
}  # fmt: skip


def encode(**changes: Any) -> tuple[bytes, int, bool]:
    return encode_response(*(PLAIN | changes).values())


OK = b"HTTP/1.1 200 OK\r\nDate: now\r\n"


@pytest.mark.parametrize(
    ("changes", "raw", "framing", "keep_alive"),
    [
        pytest.param({}, OK + b"Transfer-Encoding: chunked\r\n\r\n", BODY_CHUNKED, True, id="chunked"),
        pytest.param({"http10": True}, OK + b"Connection: close\r\n\r\n", BODY_TO_CLOSE, False, id="to the end"),
        pytest.param(
            {"body": b"hello", "body_size": 5}, OK + b"Content-Length: 5\r\n\r\nhello", 0, True, id="joined"
        ),
        pytest.param(
            {"body": b"a" * 20_000, "body_size": 20_000}, OK + b"Content-Length: 20000\r\n\r\n", 20_000, True, id="large"
        ),
        pytest.param({"body": b"", "body_size": 0}, OK + b"Content-Length: 0\r\n\r\n", 0, True, id="empty"),
        pytest.param(
            {"fields": [("content-length", "7")]}, OK + b"Content-Length: 7\r\n\r\n", 7, True, id="announced"
        ),
        pytest.param(
            {"head_only": True, "body": b"", "body_size": 0, "fields": [("Content-Length", "7")]},
            OK + b"Content-Length: 7\r\n\r\n", BODY_NONE, True, id="HEAD with length",
        ),
        pytest.param({"head_only": True, "body": b"", "body_size": 0}, OK + b"\r\n", BODY_NONE, True, id="HEAD without"),
        pytest.param(
            {"status": "204 No Content", "fields": [("content-length", "0")]},
            b"HTTP/1.1 204 No Content\r\nDate: now\r\n\r\n", BODY_NONE, True, id="204",
        ),
        pytest.param(
            {"fields": [("Connection", "close")], "body": b"", "body_size": 0},
            OK + b"Content-Length: 0\r\nConnection: close\r\n\r\n", 0, False, id="the application closes",
        ),
        pytest.param(
            {"http10": True, "body": b"", "body_size": 0}, OK + b"Content-Length: 0\r\nConnection: keep-alive\r\n\r\n", 0,
            True, id="HTTP/1.0 kept",
        ),
        pytest.param(
            {"fields": [("date", "mine")], "body": b"", "body_size": 0},
            b"HTTP/1.1 200 OK\r\ndate: mine\r\nContent-Length: 0\r\n\r\n", 0, True, id="own date",
        ),
        pytest.param(
            {"fields": [("x", "\xe4")], "body": b"", "body_size": 0},
            b"HTTP/1.1 200 OK\r\nx: \xe4\r\nDate: now\r\nContent-Length: 0\r\n\r\n", 0, True, id="latin-1",
        ),
        pytest.param(
            {"status": "101 Switching Protocols", "fields": [("Upgrade", "websocket"), ("Connection", "x")]},
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nDate: now\r\nConnection: Upgrade\r\n\r\n",
            BODY_NONE, True, id="101",
        ),
        pytest.param(
            {"fields": [(n, "x") for n in ("TE", "trailer", "Transfer-Encoding", "keep-alive", "upgrade", "Proxy-Connection")],
             "body": b"", "body_size": 0},
            OK + b"Content-Length: 0\r\n\r\n", 0, True, id="hop by hop",
        ),
    ],
)  # fmt: skip
def test_heads(changes: dict[str, Any], raw: bytes, framing: int, keep_alive: bool) -> None:
    assert encode(**changes) == (raw, framing, keep_alive)


@pytest.mark.parametrize(
    "changes",
    [
        {"status": "200"}, {"status": "OK 200"}, {"status": "2000 OK"}, {"status": "200 O\r\nK"}, {"status": ""},
        {"fields": [("", "x")]}, {"fields": [("a b", "x")]}, {"fields": [("a:", "x")]}, {"fields": [("a", "b\r\nc: d")]},
        {"fields": [("a", "b\nc")]}, {"fields": [("a", "\x00")]}, {"fields": [("a\r\nb", "c")]}, {"fields": [("a", "\u20ac")]},
        {"fields": [("a", b"bytes")]}, {"fields": [("a", 1)]}, {"fields": [("a",)]}, {"fields": [("content-length", "x")]},
        {"fields": [("content-length", "-1")]}, {"fields": [("content-length", "")]},
        {"fields": [("content-length", "4")], "body": b"hello", "body_size": 5},
    ],
)  # fmt: skip
def test_what_is_not_http_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ResponseError):
        encode(**changes)
    assert encode(body=b"", body_size=0)[0] == OK + b"Content-Length: 0\r\n\r\n", "nothing is left of the refused head"


def test_request_ids_are_random_uuids() -> None:
    ids = RequestIds(os.urandom)
    made = [ids.next() for _ in range(2000)]
    assert len(set(made)) == 2000
    for text in made:
        parsed = uuid.UUID(text)
        assert (parsed.version, parsed.variant, str(parsed)) == (4, uuid.RFC_4122, text)


def test_request_ids_use_all_their_entropy() -> None:
    ids = RequestIds(lambda size: bytes(range(256)) * (size // 256))
    assert [ids.next() for _ in range(2)] == [
        "00010203-0405-4607-8809-0a0b0c0d0e0f",
        "10111213-1415-4617-9819-1a1b1c1d1e1f",
    ]


def test_too_little_entropy_is_an_error() -> None:
    with pytest.raises(ValueError, match="too few"):
        RequestIds(lambda size: b"short").next()

"""The corpus through gunicorn's own parsers: every difference from ours has its reason in a table."""

from __future__ import annotations

import re
from typing import Any

import pytest
from gunicorn.config import Config
from gunicorn.http.errors import NoMoreData
from gunicorn.http.parser import RequestParser

BOTH, PYTHON, FAST = {"python", "fast"}, {"python"}, {"fast"}
STRICTER = [
    (r"method-(CONNECT|TRACE)", BOTH, "methods a gateway must not serve are handed to the application"),
    (r"line-two-spaces", FAST, "picohttpparser skips blanks in the request line"),
    (r"version-HTTPx2f1\.[29]", PYTHON, "any HTTP/1.x counts as HTTP/1.1"),
    (
        r"target-refused-",
        BOTH,
        "targets are not checked for canonical form: the application sees dot segments, CRLF, NUL",
    ),
    (r"absolute-", BOTH, "an absolute target may name another host than Host, another scheme, or none"),
    (r"host-", BOTH, "Host may be missing or anything"),
    (r"field-refused-underscore", BOTH, "fields with an underscore are dropped in silence"),
    (r"length-refused-(9{19}|18446744073709551616)", PYTHON, "a length no file can have is accepted"),
    (r"coding-twice-other|coding-unknown-.*chunked", BOTH, "codings before chunked are accepted and not undone"),
    (r"coding-name-refused-Transfer_Encoding", BOTH, "a dropped Transfer_Encoding leaves its body as the next request"),
    (
        r"chunk-refused-(too-many-digits|extension-too-long|extensions-add-up)",
        BOTH,
        "sizes and extensions have no bound",
    ),
    (r"expect-twice", BOTH, "a doubled Expect is accepted"),
    (r"pipeline-(then-refused|refused-then-good)", BOTH, "targets again"),
]
LATER = [
    (r"tls-hello", PYTHON, "refused once more bytes have come"),
    (r"target-never-ends", FAST, "refused once the end of the line has come"),
    (r"head-never-ends", BOTH, "its limit for a whole head is larger"),
    (r"chunk-refused-(overflow|huge)", BOTH, "waits for a chunk that no body can fill"),
]
MORE_LENIENT = [
    (r"target-at-limit", BOTH, "our limit is 8192 bytes of target, gunicorn's 8190 of the whole line"),
    (r"field-long-value", BOTH, "our limit is on the whole head, gunicorn's on each field too"),
    (r"chunk-trailer-dropped-length", BOTH, "we drop every trailer, gunicorn refuses some names"),
]
TRUNCATED = [
    (r"length-truncated", BOTH, "a truncated body is handed on as complete"),
    (r"chunk-truncated-(half-end|trailer)", BOTH, "ours waits for the rest; at the end of the stream it answers 400"),
]
TABLE = STRICTER + LATER + MORE_LENIENT + TRUNCATED


class Bytes:
    """A socket that has received the bytes and then the end."""

    def __init__(self, raw: bytes) -> None:
        self.raw = raw

    def recv(self, size: int) -> bytes:
        piece, self.raw = self.raw[:size], self.raw[size:]
        return piece


def gunicorn_says(raw: bytes, parser: str) -> tuple[int, bool]:
    """Requests accepted with their bodies, and whether one was refused."""
    config: Any = Config()
    for name, value in {"http_parser": parser, "limit_request_line": 8190, "limit_request_field_size": 8190}.items():
        config.set(name, value)
    accepted = 0
    try:
        for request in RequestParser(config, Bytes(raw), ("127.0.0.1", 1)):
            request.body.read()
            accepted += 1
            if request.should_close():
                break
    except (NoMoreData, StopIteration):
        return accepted, False
    except Exception:
        return accepted, True
    return accepted, False


def ours_say(case: Any) -> tuple[int, bool]:
    return sum(status == 200 for status in case.statuses), any(status >= 400 for status in case.statuses)


@pytest.mark.parametrize("parser", ["python", "fast"])
def test_every_difference_is_explained(corpus: Any, parser: str) -> None:
    used: set[str] = set()
    unexplained = []
    for case in corpus.CASES:
        if case.after == "any" or gunicorn_says(case.raw, parser) == ours_say(case):
            continue
        name = case.id.partition("-")[2]
        rows = [row for row in TABLE if re.match(row[0], name) and parser in row[1]]
        used |= {row[0] for row in rows}
        if not rows:
            unexplained.append((case.id, gunicorn_says(case.raw, parser), ours_say(case)))
    assert unexplained == []
    assert {row[0] for row in TABLE if parser in row[1]} == used, "rows that explain nothing"


@pytest.mark.parametrize("parser", ["python", "fast"])
def test_ours_accepts_more_only_where_the_table_says(corpus: Any, parser: str) -> None:
    more = [
        case.id.partition("-")[2]
        for case in corpus.CASES
        if case.after != "any" and ours_say(case)[0] > gunicorn_says(case.raw, parser)[0]
    ]
    assert all(any(re.match(row[0], name) for row in MORE_LENIENT) for name in more), more

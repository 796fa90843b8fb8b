"""The semantic part of the corpus over HTTP/2: what a request says, not how its bytes frame it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

_NOT_SEMANTIC = re.compile(
    r"line-|version-|http2-preface|tls-hello|incomplete-|absolute-|coding-|chunk|pipeline|http10|host-http10|connection-|"
    r"field-first-is-folded|target-never-ends|head-never-ends|length-truncated|host-missing|trailer"
)
"""Groups about the bytes of HTTP/1.1, or about what HTTP/2 says otherwise; test_http2.py has its own of those."""
_REQUESTS = 190
"""On one connection: fewer than a client may have refused in ten seconds."""
_BODY_BYTES = 60_000
"""What the windows let a client send at once."""


def translate(raw: bytes) -> tuple[list[tuple[bytes, bytes]], bytes] | None:
    """A raw request as a header block and a body; None where the bytes do not take apart."""
    head, empty, body = raw.partition(b"\r\n\r\n")
    line, _, rest = head.partition(b"\r\n")
    match = re.fullmatch(rb"([^ ]*) ([^ ]*) HTTP/1\.1", line, re.DOTALL)
    if not empty or match is None:
        return None
    fields = [(b":method", match[1]), (b":scheme", b"https"), (b":path", match[2])]
    more = []
    for one in rest.split(b"\r\n") if rest else []:
        name, colon, value = one.partition(b":")
        if not colon:
            return None
        # Names of valid requests are in lower case here; blanks around values belong to the syntax of HTTP/1.1.
        more.append((name.lower(), value.strip(b" \t")))
    return fields + more, body


def semantic(cases: list[Any]) -> Iterator[tuple[Any, list[tuple[bytes, bytes]], bytes]]:
    for case in cases:
        name = case.id.partition("-")[2]
        if _NOT_SEMANTIC.match(name) or len(case.statuses) != 1 or case.after == "any":
            continue
        translated = translate(case.raw)
        if translated is not None and b"connection" not in dict(translated[0]) and len(case.raw) < _BODY_BYTES:
            yield case, *translated


def test_the_semantic_part_is_large(corpus: Any) -> None:
    groups = {case.id.split("-")[1] for case, _, _ in semantic(corpus.CASES)}
    assert {"method", "target", "host", "field", "fields", "value", "name", "length", "expect"} <= groups
    assert len(list(semantic(corpus.CASES))) >= 250


@pytest.mark.parametrize("pieces", ["whole", "byte by byte"])
def test_every_request_has_its_one_outcome(
    front: Any, speak_http2: Callable[..., Any], http2: Any, corpus: Any, pieces: str
) -> None:
    wrong = []
    client: Any = None
    for number, (case, fields, body) in enumerate(semantic(corpus.CASES)):
        if pieces != "whole" and len(case.raw) > 400:
            continue
        if client is None or number % _REQUESTS == 0:
            client = speak_http2(front)
            client.get(http2.request())
        stream, client.next_id = client.next_id, client.next_id + 2
        raw = client.block(stream, fields, 0 if body else http2.END_STREAM)
        if body:
            raw += http2.frame(http2.DATA, http2.END_STREAM, stream, body)
        step = len(raw) if pieces == "whole" else 1
        for i in range(0, len(raw), step):
            client.send(raw[i : i + step])
        got = client.wait(stream)
        if got.status != case.statuses[0] or (case.body is not None and got.body != case.body) or client.ended:
            wrong.append((case.id, got.status, case.statuses[0], got.reset, client.goaway))
            client = None
        elif got.status >= 400 and b"x-code" not in got.fields and b"x-request-id" not in got.fields:
            wrong.append((case.id, "no request id"))
    assert wrong == []

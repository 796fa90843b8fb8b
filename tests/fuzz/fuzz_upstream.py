#!/usr/bin/env python3
"""Fuzz target: an upstream's answers against a plain model of their grammar and against llhttp; heads as sent.

`python tests/fuzz/fuzz_upstream.py [corpus] [-runs=N]` needs atheris.
"""

# ruff: noqa: E501
from __future__ import annotations

import random
import re
import sys
from dataclasses import dataclass, field
from typing import Any

import httptools

from fastpath.upstream import AnswerError, AnswerNames, AnswerReader, RequestHeadError, RequestHeads

DROPPED = frozenset({"connection", "content-length", "keep-alive", "transfer-encoding", "upgrade", "relay-source"})
NAMES = AnswerNames(DROPPED)
HEADS = RequestHeads(DROPPED | {"authorization"}, ("x-caregate-",))

OK = b"HTTP/1.1 200 OK\r\n"
SEEDS = [
    OK + b"Content-Length: 5\r\nETag: \"a\"\r\n\r\nhello", OK + b"Content-Length: 0\r\n\r\n", OK + b"X-A: b\r\n\r\nto the end",
    OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", OK + b"Set-Cookie: a=b\r\nSet-Cookie: c\r\n\r\n",
    OK + b"Transfer-Encoding: Chunked\r\nX: y\r\n\r\n1;a=b\r\nh\r\n0\r\nT: u\r\n\r\n", b"HTTP/1.1 204\r\nA: b\r\na: c\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\nA: b\r\n\r\n" + OK + b"Content-Length: 1\r\n\r\na", b"HTTP/1.1 304 No\r\nContent-Length: 9\r\n\r\n",
    b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\nConnection: keep-alive\r\n\r\na", b"HTTP/1.1 101 S\r\nUpgrade: x\r\n\r\n",
    OK + b"Connection: close, X-Hop\r\nConnection: te\r\nX-Hop: 1\r\nContent-Length: 2\r\n\r\nab",
    b"HTTP/1.1 404 Not Found\r\nServer: \tx \r\nKeep-Alive: 5\r\nContent-Length: 3\r\n\r\nabc",
]  # fmt: skip
SPICE = [
    b"\r\n", b"\r", b"\n", b"\0", b" ", b":", b";", b",", b"0", b"5", b"\t", b"chunked", b"\r\n\r\n", b"Content-Length: 5\r\n",
    b"Transfer-Encoding: chunked\r\n", b"Connection: close\r\n", b"HTTP/1.1 ", b"HTTP/1.0 ", b"close", b"\xff", b"\x7f", b"99",
    b"HTTP/1.1 100 \r\n\r\n", b"Upgrade: x\r\n", b"_",
]  # fmt: skip

TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
TEXT = rb"[\t\x20-\x7e\x80-\xff]*"
HEAD = re.compile(rb"HTTP/1\.([01]) ([1-9]\d\d)(?: " + TEXT + rb")?\r\n((?:" + TOKEN + rb":" + TEXT + rb"\r\n)*)\r\n")
QUOTED = rb'"(?:[\t !#-\[\]-~\x80-\xff]|\\[\t -~\x80-\xff])*"'
EXTENSIONS = rb"(?:[ \t]*;[ \t]*" + TOKEN + rb"(?:[ \t]*=[ \t]*(?:" + TOKEN + rb"|" + QUOTED + rb"))?)*"
CHUNK = re.compile(rb"([0-9a-fA-F]{1,15})" + EXTENSIONS + rb"\r\n")
TRAILERS = re.compile(rb"(?:" + TOKEN + rb":" + TEXT + rb"\r\n)*\r\n")


@dataclass(slots=True)
class Answer:
    """What a reader knows of a response; `end` is the offset after it, -1 while it is not whole."""

    status: int = 0
    fields: dict[str, str] = field(default_factory=dict)
    cookies: list[str] | None = None
    body: bytes = b""
    reusable: bool = False
    surplus: bool = False
    done: bool = False


def one_input(data: bytes) -> None:
    """The input as an answer to GET and to HEAD, and as what a caller's fields may hold."""
    for head_only in (False, True):
        outcomes = [read(pieces, head_only) for pieces in cuts(data)]
        assert all(outcome == outcomes[0] for outcome in outcomes), outcomes
        check(data, head_only, outcomes[0])
    check_sent(data)


def cuts(data: bytes) -> list[list[bytes]]:
    """Whole, in two places the input chooses, and byte by byte."""
    first, last = (data[0] % len(data), data[-1] % len(data)) if data else (0, 0)
    pieces = (
        [data],
        [data[:first], data[first:]],
        [data[:last], data[last:]],
        [data[i : i + 1] for i in range(len(data))],
    )
    return [[piece for piece in cut if piece] for cut in pieces]


def read(pieces: list[bytes], head_only: bool) -> Answer | None:
    """What the kernel says; None if it refuses."""
    reader = AnswerReader(NAMES, head_only)
    body = b""
    try:
        for piece in pieces:
            reader.feed(piece)
            body += reader.take()
    except AnswerError:
        return None
    fields = reader.fields if reader.status else {}
    cookies = reader.cookies if reader.status else None
    return Answer(reader.status, fields, cookies, body, reader.reusable, reader.surplus, reader.done)


def check(data: bytes, head_only: bool, outcome: Answer | None) -> None:
    """What is accepted is in the grammar, says what the model says, and llhttp reads the same."""
    expected = model(data, head_only)
    if outcome is None:
        assert expected is None or not expected.done
        return
    if not outcome.status:
        return
    assert outcome == expected
    if outcome.done and not head_only:
        check_oracle(data, outcome)


def model(data: bytes, head_only: bool) -> Answer | None:
    """The response at the start of the data by its grammar; None if there is no head, or its body breaks the rules."""
    head = final_head(data)
    if head is None:
        return None
    at = head.end()
    pairs = [line.partition(b":")[::2] for line in head[3].split(b"\r\n")[:-1]]
    lines = [(name.decode().lower(), value.strip(b" \t").decode("latin-1")) for name, value in pairs]
    answer = Answer(int(head[2]))
    lengths = [value for name, value in lines if name == "content-length"]
    codings = [value.lower() for name, value in lines if name == "transfer-encoding"]
    closes = head[1] == b"0" or any("close" in value.lower() for name, value in lines if name == "connection")
    if len(lines) > 200 or not framed(lengths, codings, head[1]):
        return None
    for name, value in lines:
        if name == "set-cookie":
            answer.cookies = [*(answer.cookies or ()), value]
        elif name not in DROPPED:
            answer.fields[name] = f"{answer.fields[name]}, {value}" if name in answer.fields else value
    rest = data[at:]
    if head_only or answer.status in (204, 304):
        answer.done, used = True, 0
    elif codings:
        chunks = model_chunks(rest)
        if chunks is None:
            return None
        answer.body, used, answer.done = chunks
    elif lengths:
        answer.body = rest[: int(lengths[0])]
        used = len(answer.body)
        answer.done = used == int(lengths[0])
    else:
        answer.body, used = rest, len(rest)
    answer.surplus = answer.done and used < len(rest)
    answer.reusable = answer.done and not answer.surplus and not closes
    return answer


def final_head(data: bytes) -> re.Match[bytes] | None:
    """The head after the informational ones; of these, HTTP/1.0 has none and 101 is not served."""
    at = 0
    while head := HEAD.match(data, at):
        if head[2][:1] != b"1":
            return head
        if head[1] == b"0" or head[2] == b"101":
            return None
        at = head.end()
    return None


def framed(lengths: list[str], codings: list[str], minor: bytes) -> bool:
    """RFC 9112, 6: at most one length or one coding that is served."""
    if codings:
        return codings == ["chunked"] and not lengths and minor == b"1"
    return not lengths or (len(lengths) == 1 and re.fullmatch(r"[0-9]{1,18}", lengths[0]) is not None)


def model_chunks(data: bytes) -> tuple[bytes, int, bool] | None:
    """Content, bytes used and whether it ended; None if the complete part breaks the grammar.

    NOTE: of a body that is not whole only the whole chunks are looked at; the kernel may refuse the rest earlier.
    """
    content, at = b"", 0
    while at < len(data):
        line = CHUNK.match(data, at)
        if line is None:
            return None if b"\r\n" in data[at:] else (content, at, False)
        size = int(line[1], 16)
        if size == 0:
            trailers = TRAILERS.match(data, line.end())
            return (content, trailers.end(), True) if trailers else (content, line.end(), False)
        piece = data[line.end() : line.end() + size]
        after = data[line.end() + size :][:2]
        content += piece
        at = line.end() + size + 2
        if len(piece) == size and not b"\r\n".startswith(after):
            return None
    return content, at, False


class Oracle:
    """What llhttp makes of a response."""

    def __init__(self) -> None:
        self.body, self.done, self.status = b"", False, 0
        self.parser: Any = httptools.HttpResponseParser(self)

    def on_headers_complete(self) -> None:
        if not self.done:
            self.status = self.parser.get_status_code()

    def on_body(self, data: bytes) -> None:
        if not self.done:
            self.body += data

    def on_message_complete(self) -> None:
        self.done = self.status >= 200


def check_oracle(data: bytes, outcome: Answer) -> None:
    """NOTE: the final answer alone: an informational one that says `close` ends the connection for llhttp."""
    head = final_head(data)
    assert head is not None, data
    oracle = Oracle()
    try:
        oracle.parser.feed_data(data[head.start() :])
    except (httptools.HttpParserError, httptools.HttpParserUpgrade):
        if not oracle.done and oracle.status < 200:
            raise AssertionError(data) from None
    assert oracle.status == outcome.status, data
    assert oracle.body == outcome.body or not oracle.done, data


def check_sent(data: bytes) -> None:
    """A head is one head, whatever the caller's fields hold."""
    text = data.decode("latin-1")
    for environ in (
        {"HTTP_X_A": text},
        {"CONTENT_TYPE": text},
        {"HTTP_" + text.upper(): "b"},
        {"HTTP_X_CAREGATE_" + text: "c"},
    ):
        try:
            head = HEADS.encode("GET", "/a", ["host", "h"], environ, None, 0)
        except RequestHeadError:
            continue
        assert re.fullmatch(rb"GET /a HTTP/1\.1\r\nhost: h\r\n(?:" + TOKEN + rb": " + TEXT + rb"\r\n)?\r\n", head), head
        assert b"caregate" not in head or "CAREGATE" not in str(environ)


def mutated(chance: random.Random, seed: bytes) -> bytes:
    """A seed with up to three places of it changed."""
    data = seed
    for _ in range(chance.randrange(4)):
        at = chance.randrange(len(data) + 1)
        data = data[:at] + chance.choice(SPICE) + data[at + chance.randrange(3) :]
    return data


def main() -> None:
    import atheris

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        # NOTE: the kernels are compiled without coverage, so libFuzzer alone would never get past the first byte.
        chance = random.Random(seed)
        return mutated(chance, chance.choice(SEEDS)) if chance.random() < 0.9 else atheris.Mutate(data, max_size)

    atheris.Setup(sys.argv, one_input, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()

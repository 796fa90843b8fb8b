#!/usr/bin/env python3
"""Fuzz target: request heads, chunks and response heads against plain models of their grammars.

`python tests/fuzz/fuzz_http.py [corpus] [-runs=N]` needs atheris.
"""

from __future__ import annotations

import importlib.util
import random
import re
import sys
from pathlib import Path

from fastpath.chunks import ChunkError, ChunkReader
from fastpath.http import Head, HeadError, HeadReader
from fastpath.responses import ResponseError, encode_response
from fastpath.routes import canonical_path

READER = HeadReader(canonical_path, 256, 2048, 20)
WHOLE = 1 << 30

SPICE = [
    b"\r\n", b"\r", b"\n", b"\0", b" ", b":", b";", b",", b"0", b"5", b"\t", b"_", b"chunked", b"Host: a\r\n", b"%2e",
    b"\xff", b'"', b"=", b"\r\n\r\n", b"HEAD", b"/", b"?", b"Content-Length: 5\r\n", b"f", b"\\",
]  # fmt: skip

TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
HEAD = re.compile(
    rb"(?:\r\n)?([A-Z0-9_-]{1,24}) ([\x21-\x7e]{1,256}) HTTP/1\.([01])\r\n"
    rb"((?:[!#$%&'*+\-.^`|~0-9A-Za-z]+:[\t\x20-\x7e\x80-\xff]*\r\n)*)\r\n"
)
QUOTED = rb'"(?:[\t !#-\[\]-~\x80-\xff]|\\[\t -~\x80-\xff])*"'
EXTENSIONS = rb"(?:[ \t]*;[ \t]*" + TOKEN + rb"(?:[ \t]*=[ \t]*(?:" + TOKEN + rb"|" + QUOTED + rb"))?)*"
SIZE_LINE = re.compile(rb"([0-9a-fA-F]{1,15})(" + EXTENSIONS + rb")\r\n")
TRAILERS = re.compile(rb"(?:" + TOKEN + rb":[\t\x20-\x7e\x80-\xff]*\r\n)*\r\n")
RESPONSE = re.compile(
    rb"HTTP/1\.1 \d{3} [\t\x20-\x7e\x80-\xff]*\r\n(?:" + TOKEN + rb": [\t\x20-\x7e\x80-\xff]*\r\n)*\r\n"
)


def one_input(data: bytes) -> None:
    """The input as a request, as a chunked body, and as what an application would put into a response head."""
    check_head(data)
    check_chunks(data)
    check_response(data)


def read_head(pieces: list[bytes]) -> Head | str | None:
    """The head, None if it is incomplete, or "refused"."""
    data, searched = b"", 0
    head: Head | None = None
    for piece in pieces:
        data += piece
        try:
            head = READER.read(data, {}, searched)
        except HeadError:
            return "refused"
        if head is not None:
            return head
        searched = len(data)
    return head


def check_head(data: bytes) -> None:
    """However the bytes are cut the outcome is the same, and what is accepted is in the grammar."""
    outcomes = [read_head(pieces) for pieces in cuts(data)]
    plain = [
        outcome if isinstance(outcome, str) else outcome and (outcome.environ, outcome.end) for outcome in outcomes
    ]
    assert all(outcome == plain[0] for outcome in plain), plain
    if isinstance(outcomes[0], Head):
        check_accepted(data[: outcomes[0].end], outcomes[0])


def check_accepted(raw: bytes, head: Head) -> None:
    match = HEAD.fullmatch(raw)
    assert match is not None, raw
    environ = head.environ
    assert environ["REQUEST_METHOD"].encode() == match[1]
    assert environ["RAW_URI"].encode() == match[2]
    assert head.http10 == (match[3] == b"0")
    names = [line.partition(b":")[0].lower() for line in match[4].split(b"\r\n")[:-1]]
    assert environ["caregate.duplicate"] == {name.decode() for name in names if names.count(name) > 1}
    for single in (b"host", b"content-length", b"transfer-encoding", b"content-type"):
        assert names.count(single) <= 1
    assert not (b"content-length" in names and b"transfer-encoding" in names)
    assert b"host" in names or head.http10
    assert (head.content_length == -1) == (b"transfer-encoding" in names)
    if head.content_length > 0:
        assert head.content_length == int(environ["CONTENT_LENGTH"])
    assert {key for key in environ if key.startswith("HTTP_")} == {
        "HTTP_" + name.decode().upper().replace("-", "_") for name in names
    } - {"HTTP_CONTENT_LENGTH", "HTTP_CONTENT_TYPE"}


def cuts(data: bytes) -> list[list[bytes]]:
    """Whole, in two places the input chooses, and byte by byte."""
    first = data[0] % (len(data) or 1) if data else 0
    last = data[-1] % (len(data) or 1) if data else 0
    return [
        [data],
        [data[:first], data[first:]],
        [data[:last], data[last:]],
        [data[i : i + 1] for i in range(min(len(data), 3000))] + [data[3000:]],
    ]


def read_chunks(pieces: list[bytes]) -> tuple[bytes, int, bool] | None:
    """Content, bytes consumed, and whether it ended; None if refused."""
    reader = ChunkReader()
    content, consumed = b"", 0
    for piece in pieces:
        at = 0
        while at < len(piece) and not reader.done:
            try:
                got, at = reader.take(piece, at, WHOLE)
            except ChunkError:
                return None
            content += got
        consumed += at
    return content, consumed, reader.done


def check_chunks(data: bytes) -> None:
    """However the bytes are cut the outcome is the same, and it is the model's."""
    outcomes = [read_chunks(pieces) for pieces in cuts(data)]
    assert all(outcome == outcomes[0] for outcome in outcomes), outcomes
    if outcomes[0] is not None and outcomes[0][2]:
        assert model_chunks(data) == outcomes[0][:2]
    elif outcomes[0] is None:
        assert model_chunks(data) is None


def model_chunks(data: bytes) -> tuple[bytes, int] | None:
    """Content and length of a complete chunked body at the start of the data; None if there is none."""
    content, at, extension = b"", 0, 0
    while True:
        line = SIZE_LINE.match(data, at)
        if line is None:
            return None
        at = line.end()
        extension += len(line[2])
        size = int(line[1], 16)
        if extension > 1024:
            return None
        if size == 0:
            trailers = TRAILERS.match(data, at)
            if trailers is None or len(trailers[0]) > 8192:
                return None
            return content, trailers.end()
        if data[at + size : at + size + 2] != b"\r\n":
            return None
        content += data[at : at + size]
        at += size + 2


def check_response(data: bytes) -> None:
    """A head is one head, whatever the application puts into it."""
    text = data.decode("latin-1")
    parts = ([*text.split("\n"), "", "", ""])[:3]
    for status, fields in (
        (text, []),
        ("200 OK", [(text, "value")]),
        ("200 OK", [("name", text)]),
        ("200 " + parts[0], [(parts[1], parts[2])]),
        ("200 OK", [("content-length", text)]),
        ("101 Switching", [("upgrade", text), ("connection", text)]),
    ):
        try:
            head, _, _ = encode_response(status, fields, b"Date: now\r\n", False, False, True, None, -1)
        except ResponseError:
            continue
        assert RESPONSE.fullmatch(head), head
        assert head.count(b"\r\n") <= 5 + len(fields)


def seeds() -> list[bytes]:
    """The corpus' requests, and the bodies of those that are chunked."""
    path = Path(__file__).parent.parent / "corpus" / "raw_requests.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    requests = [case.raw for case in module.CASES if len(case.raw) < 1500]
    return requests + [raw.partition(b"\r\n\r\n")[2] for raw in requests if b"chunked\r\n" in raw] * 2


def mutated(chance: random.Random, seed: bytes) -> bytes:
    """A seed with up to three places of it changed."""
    data = seed
    for _ in range(chance.randrange(4)):
        at = chance.randrange(len(data) + 1)
        data = data[:at] + chance.choice(SPICE) + data[at + chance.randrange(3) :]
    return data


def main() -> None:
    import atheris

    held = seeds()

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        # NOTE: without clang the kernels give no coverage, and libFuzzer alone would never get past the first byte.
        chance = random.Random(seed)
        way = chance.random()
        if way < 0.4:
            return atheris.Mutate(data, max_size)
        return mutated(chance, data if way < 0.7 else chance.choice(held))[:max_size]

    atheris.Setup(sys.argv, one_input, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()

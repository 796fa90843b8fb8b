"""Every raw request of the corpus through a real worker: whole, byte by byte, and split."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import pytest

from fastpath.http import HeadError, HeadReader
from fastpath.routes import canonical_path
from gateway.errors import GatewayError
from gateway.http1.body import Body

PARALLEL = 40
STATUS_OF = {
    "bad-request": 400, "bad-framing": 400, "bad-target": 400, "target-too-long": 414, "headers-too-large": 431,
    "not-implemented": 501, "version": 505, "expectation": 417,
}  # fmt: skip


class Talk:
    """One case on one connection, its bytes sent in the given pieces."""

    def __init__(self, case: Any, answers: Any) -> None:
        self.case = case
        self.answers = answers
        self.data = b""
        self.ended = False

    async def run(self, address: tuple[str, int], pieces: list[bytes]) -> None:
        reader, writer = await asyncio.open_connection(*address, limit=1 << 24)
        reading = asyncio.create_task(self._read(reader))
        with contextlib.suppress(ConnectionError):
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0)
        await self._settle(reading)
        reading.cancel()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    async def _read(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(ConnectionError):
            while piece := await reader.read(1 << 20):
                self.data += piece
        self.ended = True

    async def _settle(self, reading: asyncio.Task[None]) -> None:
        """Wait until the expected has come, and a moment longer for what is not expected."""
        for _ in range(1000):
            done = self.ended or (self.case.after != "closed" and self._complete())
            if done:
                break
            await asyncio.sleep(0.01)
        if not self.ended:
            await asyncio.wait({reading}, timeout=0.05)

    def _complete(self) -> bool:
        return len(self.parse().statuses) >= len(self.case.statuses)

    def parse(self) -> Any:
        return self.answers(self.data, head_requests=self.case.raw.startswith(b"HEAD"), ended=self.ended)

    def verdict(self) -> str | None:
        """What is wrong with the outcome, None if nothing is."""
        case, got = self.case, self.parse()
        if case.after == "any":
            return None if got.statuses[:1] == list(case.statuses) else f"{case.id}: {got.statuses}"
        if tuple(got.statuses) != case.statuses or got.rest:
            return f"{case.id}: {got.statuses} {got.rest!r} instead of {case.statuses}"
        if self.ended != (case.after == "closed"):
            return f"{case.id}: {'closed' if self.ended else 'open'} instead of {case.after}"
        if case.body is not None and got.bodies[-1] != case.body:
            return f"{case.id}: body {got.bodies[-1][:80]!r}"
        return self._complaint(got)

    def _complaint(self, got: Any) -> str | None:
        """Refusals carry a problem document with the request's id and close the connection."""
        for status, fields in zip(got.statuses, got.heads, strict=True):
            if status >= 400 and "x-code" not in fields and "x-request-id" not in fields:
                return f"{self.case.id}: no request id"
            if status >= 400 and fields.get("connection") != "close":
                return f"{self.case.id}: does not say that it closes"
        return None


async def talk_all(address: tuple[str, int], answers: Any, jobs: Iterable[tuple[Any, list[bytes]]]) -> list[str]:
    gate = asyncio.Semaphore(PARALLEL)

    async def one(case: Any, pieces: list[bytes]) -> str | None:
        async with gate:
            talk = Talk(case, answers)
            await talk.run(address, pieces)
            return talk.verdict()

    verdicts = await asyncio.gather(*(one(case, pieces) for case, pieces in jobs))
    return [verdict for verdict in verdicts if verdict]


def cut(raw: bytes, *borders: int) -> list[bytes]:
    return [raw[a:b] for a, b in pairwise((0, *borders, len(raw)))]


def test_corpus_is_large_and_its_ids_differ(corpus: Any) -> None:
    ids = [case.id for case in corpus.CASES]
    assert len(ids) == len(set(ids)) >= 300


def test_whole(server: Any, answers: Any, corpus: Any) -> None:
    jobs = [(case, [case.raw]) for case in corpus.CASES]
    assert asyncio.run(talk_all(server.address, answers, jobs)) == []


def test_byte_by_byte(server: Any, answers: Any, corpus: Any) -> None:
    jobs = [
        (case, [case.raw[i : i + 1] for i in range(len(case.raw))]) for case in corpus.CASES if len(case.raw) <= 1500
    ]
    assert len(jobs) > 480
    assert asyncio.run(talk_all(server.address, answers, jobs)) == []


def borders_of(raw: bytes, every: bool) -> list[int]:
    """Where a request is cut: after a third, before its last byte, inside its first empty line; or everywhere."""
    if every and len(raw) <= 1500:
        return list(range(1, len(raw)))
    borders = {len(raw) // 3, len(raw) - 1, raw.find(b"\r\n\r\n") + 3} - {2}
    return sorted(border for border in borders if 0 < border < len(raw))


def test_split_over_sockets(server: Any, answers: Any, corpus: Any) -> None:
    """Each case cut at three borders; at every one with CAREGATE_TEST_EVERY_BORDER=1, which takes minutes."""
    every = os.environ.get("CAREGATE_TEST_EVERY_BORDER") == "1"
    jobs = [(case, cut(case.raw, border)) for case in corpus.CASES for border in borders_of(case.raw, every)]
    assert asyncio.run(talk_all(server.address, answers, jobs)) == []


class Pieces:
    """The rest of a split request as a body's source."""

    def __init__(self, pieces: list[bytes]) -> None:
        self.pieces = pieces

    def receive_body(self, received_bytes: int, deadline_ns: int) -> bytes:
        if not self.pieces:
            raise EOFError
        return self.pieces.pop(0)


def read_all(pieces: list[bytes]) -> tuple[list[int], list[bytes]]:
    """Statuses and bodies of requests read in process, without a socket; ends at a refusal or at the last byte."""
    reader = HeadReader(canonical_path)
    statuses: list[int] = []
    bodies: list[bytes] = []
    data, searched = b"", 0
    pieces = list(pieces)
    while pieces or data:
        try:
            head = reader.read(data, {}, searched) if data else None
        except HeadError as error:
            return [*statuses, STATUS_OF[error.code]], bodies
        if head is None:
            if not pieces:
                break
            searched, data = len(data), data + pieces.pop(0)
            continue
        source = Pieces(pieces)
        body = Body(source, head.content_length, data[head.end :])
        try:
            bodies.append(body.read())
        except EOFError:
            break
        except GatewayError:
            return [*statuses, 400], bodies
        statuses.append(200)
        data, searched = body.pending, 0
    return statuses, bodies


def test_split_at_every_border(case: Any) -> None:
    whole = read_all([case.raw])
    raw = case.raw
    borders = range(1, len(raw)) if len(raw) <= 2000 else (*range(1, 60), *range(len(raw) - 60, len(raw)))
    assert whole[0][: len(case.statuses)] == list(case.statuses)[: len(whole[0])]
    for border in borders:
        assert read_all(cut(raw, border)) == whole, border
    assert read_all([raw[i : i + 1] for i in range(min(len(raw), 40_000))]) == whole or len(raw) > 40_000


@pytest.mark.parametrize(
    "ending", [b"5\r\nhel", b"5", b"0\r\nA: b\r\n", b""], ids=["data", "size", "trailer", "nothing"]
)
def test_truncated_chunks_are_refused_at_the_end_of_the_stream(exchange: Any, corpus: Any, ending: bytes) -> None:
    assert exchange(corpus.chunked(ending)).statuses == [400]


def test_truncated_length_is_refused_at_the_end_of_the_stream(exchange: Any, corpus: Any) -> None:
    got = exchange(corpus.post(b"Content-Length: 10\r\n", b"hello"))
    assert got.statuses == [400]
    assert got.heads[0]["connection"] == "close"


def test_half_a_head_and_the_end_gets_no_answer(exchange: Any) -> None:
    assert exchange(b"GET / HTTP/1.1\r\nHost: gw").statuses == []

"""The callers of a soak: good ones, refused ones, ones that leave, ones that dawdle."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
import struct
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from gateway.demo import story

RESULTS = f"/units/v1/{story.HOSPITAL}/patients/{story.OWN}/lab-results"
APPOINTMENTS = f"/portal/v1/patients/{story.OWN}/appointments"
OBSERVATIONS = f"/units/v1/{story.HOSPITAL}/fhir/Observation"
LOOKUP = "/terminology/v1/lookup?code=2160-0&system=http%3A%2F%2Floinc.org"
BIG_BODY = json.dumps({"resourceType": "Basic", "note": "x" * 300_000}).encode()
"""The unit reads it and refuses it, so that nothing piles up there."""
_LIMIT_S = 15.0

REFUSALS: tuple[tuple[bytes, int], ...] = (
    (b"GET /nowhere HTTP/1.1\r\nHost: g\r\n\r\n", 404),
    (f"GET {APPOINTMENTS} HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer junk\r\n\r\n".encode(), 401),
    (b"GET /a/../b HTTP/1.1\r\nHost: g\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: g\r\nX: " + b"a" * 40_000 + b"\r\n\r\n", 431),
    (b"POST / HTTP/1.1\r\nHost: g\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 50, 400),
)


class Connection:
    """A raw HTTP/1.1 connection that reads answers with a length or chunks."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def open(cls, port: int) -> Connection:
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def ask(self, raw: bytes) -> int:
        """The status of the answer, whose body has been read."""
        self.writer.write(raw)
        return await self.answer()

    async def answer(self) -> int:
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        fields = dict(line.partition(": ")[::2] for line in head.split("\r\n")[1:] if line)
        if "chunked" in fields.get("transfer-encoding", ""):
            while size := int(await self.reader.readline(), 16):
                await self.reader.readexactly(size + 2)
            await self.reader.readline()
        else:
            await self.reader.readexactly(int(fields.get("content-length", "0")))
        return int(head.split(" ", 2)[1])

    def abort(self) -> None:
        """Leave with a reset."""
        sock = self.writer.get_extra_info("socket")
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


class Callers:
    """All callers of a soak.

    Shapes: `counts` by kind of caller; `failures` by (kind, what came instead).
    """

    def __init__(self, port: int, tokens: dict[str, str], pause_s: float) -> None:
        self._port = port
        self._tokens = tokens
        self._pause_s = pause_s
        self._chance = random.Random(3)
        self.counts: Counter[str] = Counter()
        self.failures: Counter[tuple[str, str]] = Counter()

    def kinds(self) -> dict[str, Callable[[], Awaitable[None]]]:
        """One turn of each kind; a turn is one connection's life."""
        return {
            "portal read": lambda: self._kept("portal read", self._get(APPOINTMENTS, story.PATIENT), 20),
            "relay call": lambda: self._kept("relay call", self._get(RESULTS, story.PATIENT), 20),
            "upstream call": lambda: self._kept("upstream call", self._get(LOOKUP, story.PATIENT), 10),
            "big body": lambda: self._kept("big body", self._post(BIG_BODY), 3, statuses=(400, 422)),
            "refusal": self._refused,
            "leaves before the answer": self._leaves_early,
            "leaves inside its body": self._leaves_inside_its_body,
            "dawdles with its head": self._dawdles,
            "dawdles with the answer": self._reads_slowly,
        }

    async def run(self, kind: str, turn: Callable[[], Awaitable[None]], until_s: float) -> None:
        """Turn after turn until the moment, of the loop's clock."""
        clock = asyncio.get_running_loop().time
        while clock() < until_s:
            try:
                async with asyncio.timeout(_LIMIT_S):
                    await turn()
                self.counts[kind] += 1
            except (OSError, EOFError, ValueError, TimeoutError) as error:
                self.failures[kind, type(error).__name__] += 1
            await asyncio.sleep(self._pause_s)

    def _get(self, path: str, token: str) -> bytes:
        return f"GET {path} HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer {self._tokens[token]}\r\n\r\n".encode()

    def _post(self, body: bytes) -> bytes:
        return (
            f"POST {OBSERVATIONS} HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer {self._tokens[story.PRACTITIONER]}\r\n"
            f"Content-Type: application/fhir+json\r\nContent-Length: {len(body)}\r\n\r\n"
        ).encode() + body

    async def _kept(self, kind: str, raw: bytes, requests: int, statuses: tuple[int, ...] = (200,)) -> None:
        connection = await Connection.open(self._port)
        try:
            for _ in range(requests):
                status = await connection.ask(raw)
                if status not in statuses:
                    self.failures[kind, str(status)] += 1
                await asyncio.sleep(self._pause_s)
        finally:
            connection.abort()

    async def _refused(self) -> None:
        for raw, expected in REFUSALS:
            connection = await Connection.open(self._port)
            try:
                status = await connection.ask(raw)
            finally:
                connection.abort()
            if status != expected:
                self.failures["refusal", f"{status} instead of {expected}"] += 1

    async def _leaves_early(self) -> None:
        for path in (RESULTS, APPOINTMENTS, LOOKUP):
            connection = await Connection.open(self._port)
            connection.writer.write(self._get(path, story.PATIENT))
            await connection.writer.drain()
            await asyncio.sleep(self._chance.random() * 0.01)
            connection.abort()

    async def _leaves_inside_its_body(self) -> None:
        raw = self._post(BIG_BODY)
        connection = await Connection.open(self._port)
        connection.writer.write(raw[: self._chance.randrange(200, len(raw))])
        with contextlib.suppress(OSError):
            await connection.writer.drain()
        connection.abort()

    async def _dawdles(self) -> None:
        """A byte now and then, until the gateway has had enough."""
        connection = await Connection.open(self._port)
        try:
            for byte in b"GET / HTTP/1.1\r\nHost: g\r\nX: " + b"a" * 1000:
                connection.writer.write(bytes([byte]))
                if connection.reader.at_eof() or await self._says_something(connection.reader):
                    return
            raise ValueError("never cut off")
        finally:
            connection.abort()

    async def _says_something(self, reader: asyncio.StreamReader) -> bool:
        try:
            async with asyncio.timeout(0.1):
                await reader.read(1)
        except TimeoutError:
            return False
        except OSError:
            pass
        return True

    async def _reads_slowly(self) -> None:
        """Asks for more than the sockets hold and never reads."""
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setblocking(False)
        loop: Any = asyncio.get_running_loop()
        try:
            await loop.sock_connect(sock, ("127.0.0.1", self._port))
            with contextlib.suppress(TimeoutError, OSError):
                async with asyncio.timeout(4):
                    while True:
                        await loop.sock_sendall(sock, self._get(APPOINTMENTS, story.PATIENT))
        finally:
            sock.close()

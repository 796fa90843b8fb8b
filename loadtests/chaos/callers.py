"""Callers that give every attempt an id of its own and keep what they were told about it."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from loadtests.chaos.rig import DEADLINE_S

ANSWERED, PROBLEM, BROKEN = "answered", "problem", "broken"
GIVE_UP_S = DEADLINE_S + 4.0
STALLING_BYTES = 60_000
"""Some callers with a body as long stop in the middle of it: held back by the gateway, or at the unit already."""


@dataclass(slots=True)
class Attempt:
    """One request on the wire. Shapes: `told` is ANSWERED, PROBLEM or BROKEN; `fault` what no caller may see; who
    `stalls` sends half of its body and waits.

    Units: `took_s` seconds from the first byte sent to the last received.
    """

    root: str
    name: str
    method: str
    keyed: bool = False
    stalls: bool = False
    told: str = BROKEN
    code: str = ""
    delivery: str = ""
    retryable: bool = False
    took_s: float = 0.0
    fault: str = ""


@dataclass(slots=True)
class Records:
    attempts: list[Attempt] = field(default_factory=list)


class Caller:
    """One connection at a time; a broken one is opened again."""

    def __init__(self, port: int, token: str, units: Sequence[str], records: Records, number: int) -> None:
        self._port = port
        self._token = token
        self._units = units
        self._records = records
        self._dice = random.Random(number)
        self._number = number
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def run(self, until_s: float) -> None:
        count = 0
        while time.monotonic() < until_s:
            count += 1
            await self._call(f"{self._number}-{count}")
            await asyncio.sleep(self._dice.uniform(0.005, 0.06))
        self._hang_up()

    async def _call(self, root: str) -> None:
        """A request, and once more if the answer says that this caller may."""
        method = self._dice.choice(["GET", "POST"])
        target, body = self._target(), b""
        if method == "POST":
            body = b"b" * self._dice.choice([0, 10, 1_000, 60_000, 200_000])
            if self._dice.random() < 0.4:
                await self._call_keyed(root, target, body)
                return
        stalls = len(body) >= STALLING_BYTES and self._dice.random() < 0.1
        for number in (1, 2):
            attempt = Attempt(root, f"{root}.{number}", method, stalls=stalls)
            self._records.attempts.append(attempt)
            await self._attempt(attempt, target, body)
            if not attempt.retryable:
                return
            await asyncio.sleep(0.05)

    async def _call_keyed(self, root: str, target: str, body: bytes) -> None:
        """The same request with the same key until it is answered: it may be seen once at most."""
        for _ in range(4):
            attempt = Attempt(root, f"{root}.key", "POST", keyed=True)
            self._records.attempts.append(attempt)
            await self._attempt(attempt, target, body)
            if attempt.told == ANSWERED or (attempt.told == PROBLEM and not attempt.retryable):
                return
            await asyncio.sleep(self._dice.uniform(0.05, 0.8))

    def _target(self) -> str:
        unit = self._dice.choice(list(self._units))
        what = self._dice.choices(["fast", "slow", "late", "large"], [70, 12, 4, 14])[0]
        rest = {"fast": "fast", "slow": f"slow/{self._dice.randint(100, 1_200)}", "late": "slow/3000"}.get(
            what, f"large/{self._dice.choice([70_000, 400_000])}"
        )
        return f"/chaos/v1/{unit}/{rest}"

    async def _attempt(self, attempt: Attempt, target: str, body: bytes) -> None:
        started_s = time.monotonic()
        try:
            async with asyncio.timeout(GIVE_UP_S):
                await self._exchange(attempt, target, body)
        except TimeoutError:
            attempt.fault = "hanging"
            self._hang_up()
        except (OSError, asyncio.IncompleteReadError, ValueError):
            self._hang_up()
        attempt.took_s = time.monotonic() - started_s

    async def _exchange(self, attempt: Attempt, target: str, body: bytes) -> None:
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        length = f"Content-Length: {len(body)}\r\n" if attempt.method == "POST" else ""
        key = f"Idempotency-Key: {attempt.root}\r\n" if attempt.keyed else ""
        head = (
            f"{attempt.method} {target} HTTP/1.1\r\nHost: chaos\r\nAuthorization: Bearer {self._token}\r\n"
            f"x-chaos-id: {attempt.name}\r\n{key}{length}\r\n"
        )
        writer.write(head.encode() + (body[: len(body) // 2] if attempt.stalls else body))
        status, fields = await _read_head(reader)
        data = await _read_body(reader, fields)
        self._judge(attempt, status, data)
        if reader._buffer:  # type: ignore[attr-defined]
            attempt.fault = "bytes after the answer"
        if attempt.stalls or fields.get("connection", "").lower() == "close":
            self._hang_up()

    def _judge(self, attempt: Attempt, status: int, data: bytes) -> None:
        if status == 200:
            attempt.told = ANSWERED
            if data.partition(b"\n")[0] != attempt.name.encode():
                attempt.fault = "the answer to another request"
            elif attempt.stalls:
                attempt.fault = "the answer to half a request"
            return
        problem = json.loads(data)
        attempt.told = PROBLEM
        attempt.code = str(problem["type"]).rpartition(":")[2]
        attempt.delivery = str(problem.get("delivery", ""))
        attempt.retryable = problem.get("retryable") is True

    def _hang_up(self) -> None:
        if self._streams is not None:
            self._streams[1].transport.abort()
            self._streams = None


async def _read_head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.split("\r\n")[:-2]
    fields = dict(line.split(": ", 1) for line in lines if ": " in line)
    return int(first[9:12]), {name.lower(): value for name, value in fields.items()}


async def _read_body(reader: asyncio.StreamReader, fields: dict[str, str]) -> bytes:
    if "content-length" in fields:
        return await reader.readexactly(int(fields["content-length"]))
    data = b""
    while size := int((await reader.readuntil(b"\r\n")).strip(), 16):
        data += await reader.readexactly(size)
        await reader.readexactly(2)
    await reader.readuntil(b"\r\n")
    return data

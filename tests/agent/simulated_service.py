"""A unit's local service in a simulated world: connections without sockets, answers in real HTTP/1.1 bytes.

It takes bytes and answers when a step of the world says so, and notes of each request what it was given.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from typing import Any

from httptools import HttpRequestParser

from tests.agent.virtual import Clock, Event

RECEIVE_BYTES = 32_768
_CALL = re.compile(rb"x-call: (\d+)\r\n")


class Attempt:
    """One request as it was written to one connection. `taken`: bytes of it that left the agent."""

    def __init__(self, number: int, call: int) -> None:
        self.number = number
        self.call = call
        self.taken = 0
        self.body = bytearray()
        self.head_seen = False
        self.whole = False
        self.method = ""
        self.target = ""
        self.status = 0
        self.answer = b""
        self.out: bytearray | None = None
        self.broken_off = False
        self.until_close = False
        self.answered = False
        self.answered_whole = False
        """The service has given its answer, and that after it had the whole request."""
        self._parser = HttpRequestParser(self)

    def feed(self, data: bytes) -> None:
        self.taken += len(data)
        self._parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self.target += url.decode()

    def on_headers_complete(self) -> None:
        self.head_seen = True
        self.method = self._parser.get_method().decode()

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        self.whole = True


class Connection:
    """Stands for `LocalConnection`. Units: `room` bytes that the kernel takes before the service reads."""

    def __init__(self, backend: Backend, room: int) -> None:
        self.reused = False
        self.idle_since_s = 0.0
        self.closed = False
        self.room = room
        self.inbox = bytearray()
        self.ended = False
        self.fault: OSError | None = None
        self.deaf: OSError | None = None
        self.attempt: Attempt | None = None
        self.changed = Event(backend.clock)
        self._backend = backend

    # --- the agent

    def send_some(self, data: memoryview, timeout_s: float) -> int:
        attempt = self._backend.begin(self, bytes(data))
        return self._send(attempt, data, self._backend.clock.now_s + timeout_s)

    def send_all(self, data: bytes | memoryview, timeout_s: float) -> None:
        attempt, due_s, rest = self.attempt, self._backend.clock.now_s + timeout_s, memoryview(data)
        assert attempt is not None
        while rest:
            rest = rest[self._send(attempt, rest, due_s) :]

    def receive(self, timeout_s: float) -> bytes:
        self._until(lambda: bool(self.inbox or self.ended), self._backend.clock.now_s + timeout_s, lambda: self.fault)
        data = bytes(self.inbox[:RECEIVE_BYTES])
        del self.inbox[:RECEIVE_BYTES]
        return data

    def stale(self) -> bool:
        return bool(self.inbox or self.ended or self.fault)

    def close(self) -> None:
        self.closed = True
        self.changed.set()

    def _send(self, attempt: Attempt, data: memoryview, due_s: float) -> int:
        self._until(lambda: self.room > 0, due_s, lambda: self.fault or self.deaf)
        sent = data[: self.room]
        self.room -= len(sent)
        self._backend.take(attempt, bytes(sent))
        return len(sent)

    def _until(self, ready: Callable[[], bool], due_s: float, fault: Callable[[], OSError | None]) -> None:
        while True:
            raised = OSError("closed here") if self.closed else fault()
            if raised is not None:
                raise raised
            if ready():
                return
            if self._backend.clock.now_s >= due_s:
                raise TimeoutError
            self.changed.clear()
            self.changed.wait(due_s - self._backend.clock.now_s)


class Pending:
    """A connection that is being opened."""

    def __init__(self, clock: Clock) -> None:
        self.told = Event(clock)
        self.accepted = False


class Backend:
    """The service behind all connections. `on_taken` is told of bytes before they count."""

    def __init__(self, dice: random.Random, clock: Clock, on_taken: Callable[[Attempt, int], None]) -> None:
        self.clock = clock
        self.attempts: list[Attempt] = []
        self.connections: list[Connection] = []
        self.pending: list[Pending] = []
        self.gentle = False
        """Breaks nothing."""
        self._random = dice
        self._on_taken = on_taken

    # --- the agent

    def connect(self, endpoint: Any, timeout_s: float, ca_file: str | None) -> Connection:
        """Stands for `dial.connect`."""
        pending = Pending(self.clock)
        self.pending.append(pending)
        try:
            if not pending.told.wait(timeout_s):
                raise TimeoutError
        finally:
            self.pending.remove(pending)
        if not pending.accepted:
            raise ConnectionRefusedError
        connection = Connection(self, self._random.choice([0, 1, 90, 1 << 20]))
        self.connections.append(connection)
        return connection

    def begin(self, connection: Connection, data: bytes) -> Attempt:
        found = _CALL.search(data)
        assert found is not None
        attempt = Attempt(len(self.attempts), int(found[1]))
        self.attempts.append(attempt)
        connection.attempt = attempt
        return attempt

    def take(self, attempt: Attempt, data: bytes) -> None:
        self._on_taken(attempt, len(data))
        attempt.feed(data)

    # --- steps

    def step(self) -> None:
        """Accept or refuse, read, answer, end or break something."""
        self.connections = [one for one in self.connections if not one.closed]
        if self.pending and self._random.random() < 0.5:
            pending = self._random.choice(self.pending)
            pending.accepted = self.gentle or self._random.random() < 0.9
            pending.told.set()
        elif self.connections:
            self._serve(self._random.choice(self.connections))

    def serve_all(self) -> None:
        """Accept, read and answer whatever there is."""
        for pending in self.pending:
            pending.accepted = True
            pending.told.set()
        for connection in self.connections:
            attempt = connection.attempt
            connection.room = 1 << 20
            if attempt is not None and attempt.whole and attempt.out is None:
                self._plan(attempt)
            if attempt is not None and attempt.out:
                self._answer(connection, attempt, attempt.out)
            connection.changed.set()

    def _serve(self, connection: Connection) -> None:
        dice, attempt = self._random.random(), connection.attempt
        if dice < 0.03 and (not self.gentle or connection.attempt is None or connection.attempt.answered):
            self._break(connection)
        elif dice < 0.3 or attempt is None or not attempt.head_seen:
            connection.room += self._random.choice([1, 30, 500, 1 << 20])
            connection.changed.set()
        elif attempt.out is None:
            if attempt.whole or dice < 0.4:
                self._plan(attempt)
        elif not attempt.answered:
            self._answer(connection, attempt, attempt.out)

    def _break(self, connection: Connection) -> None:
        attempt = connection.attempt
        kind = self._random.choice(["end", "end and deaf", "reset"])
        if kind == "reset":
            connection.fault = ConnectionResetError()
        connection.ended = True
        connection.deaf = BrokenPipeError() if kind == "end and deaf" else None
        if attempt is not None and not attempt.answered and kind != "reset":
            self._end_early(attempt)
        connection.changed.set()

    def _end_early(self, attempt: Attempt) -> None:
        """Of an answer without a length its end is whatever was sent."""
        out = attempt.out
        left = len(attempt.answer) if out is None else len(out)
        if attempt.until_close and out is not None and left <= len(attempt.answer):
            attempt.answer = attempt.answer[: len(attempt.answer) - left]
            self._answered(attempt)
        else:
            attempt.broken_off = True

    def _plan(self, attempt: Attempt) -> None:
        """What the answer will be, as bytes."""
        pick = self._random.choice
        attempt.status = pick([200, 201, 204, 304, 404, 500])
        bare = attempt.method == "HEAD" or attempt.status in (204, 304)
        body = b"" if bare else self._random.randbytes(pick([0, 3, 900, 4_000, 40_000]))
        kind = pick(["length", "length", "chunked", "close", "garbage"])
        head = pick(["", "", "HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n"])
        head += f"HTTP/1.1 {attempt.status} So\r\nx-attempt: {attempt.number}\r\n"
        head += pick(["", "connection: close\r\n"])
        attempt.answer = body
        if kind == "garbage" and not self.gentle and self._random.random() < 0.3:
            attempt.out, attempt.broken_off = bytearray(b"HTTP/1.1 2x0 no\r\n\r\n"), True
        elif kind == "chunked" and not bare:
            attempt.out = bytearray(f"{head}transfer-encoding: chunked\r\n\r\n".encode() + self._chunked(body))
        elif kind == "close" and not bare:
            attempt.until_close = True
            attempt.out = bytearray(f"{head}\r\n".encode() + body)
        else:
            length = "" if attempt.status == 204 else f"content-length: {len(body)}\r\n"
            attempt.out = bytearray(f"{head}{length}\r\n".encode() + body)

    def _chunked(self, body: bytes) -> bytes:
        size, out = self._random.choice([1, 400, 9_000]) if len(body) < 1_000 else 3_000, b""
        for start in range(0, len(body), size):
            piece = body[start : start + size]
            out += b"%x\r\n%b\r\n" % (len(piece), piece)
        return out + self._random.choice([b"0\r\n\r\n", b"0\r\ntrailer: x\r\n\r\n"])

    def _answer(self, connection: Connection, attempt: Attempt, out: bytearray) -> None:
        if not connection.ended:
            size = self._random.choice([1, 60, 2_000, 1 << 20])
            connection.inbox += out[:size]
            del out[:size]
            if not out and not attempt.broken_off:
                self._answered(attempt)
                connection.ended = connection.ended or attempt.until_close
            connection.changed.set()

    def _answered(self, attempt: Attempt) -> None:
        attempt.answered, attempt.answered_whole = True, attempt.whole

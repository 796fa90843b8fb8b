"""One request to an upstream and its response, repeated once where that cannot do harm."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from fastpath.upstream import AnswerError, AnswerNames, AnswerReader
from gateway.errors import (
    ClientDisconnected,
    GatewayError,
    UpstreamBroken,
    UpstreamError,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from gateway.routing.onward import HOP_BY_HOP
from gateway.upstream.connection import UpstreamConnection
from gateway.upstream.pool import Endpoint, Pool

REPEATABLE = frozenset({"GET", "HEAD", "OPTIONS"})
HELD_BYTES = 65_536
"""A response is held back until it is whole or so much of it is in hand: most failures are still a clean 502."""
SENT_WHOLE_BYTES = 65_536
_PIECE_BYTES = 65_536
_names = AnswerNames(HOP_BY_HOP | {"content-length", "x-request-id", "relay-source"})
_NOTHING_READ = AnswerReader(_names, False)
"""The reader of an exchange that has not sent anything; never fed."""


@dataclass(slots=True)
class Outgoing:
    """What is sent.

    Shapes: `head(host)` gives the head for an endpoint; `body` reads the caller's body piece by piece (`read_some`), or
    is the whole of it; `chunked` if its length is unknown.
    """

    method: str
    head: Callable[[str], bytes]
    body: Any
    chunked: bool

    @property
    def repeatable(self) -> bool:
        """Once written, may it be written again?"""
        return self.method in REPEATABLE and isinstance(self.body, bytes)


class Exchange:
    """Holds a borrowed connection from the first byte out to the last byte in.

    Units: `deadline_ns` ends everything; `max_bytes` bounds the response's content; `ended_ns` is when `run` returned,
    `queue_ns` how long it waited for a place.
    """

    __slots__ = (
        "_connection",
        "_deadline_ns",
        "_endpoint",
        "_held",
        "_max_bytes",
        "_pool",
        "_reader",
        "_received",
        "_watch",
        "ended_ns",
        "queue_ns",
    )

    def __init__(self, pool: Pool, deadline_ns: int, max_bytes: int, watch: Callable[..., None] | None) -> None:
        self._pool = pool
        self._deadline_ns = deadline_ns
        self._max_bytes = max_bytes
        self._watch = watch
        self._connection: UpstreamConnection | None = None
        self._endpoint: Endpoint | None = None
        self._reader: AnswerReader = _NOTHING_READ
        self._held = b""
        self._received = 0
        self.ended_ns = self.queue_ns = 0

    def run(self, outgoing: Outgoing, now_ns: int) -> AnswerReader:
        """Send, and return with the head of the response and its first content.

        Units: `now_ns` is the monotonic time.
        Raises: UpstreamUnavailable, UpstreamUnreachable, UpstreamTimeout, UpstreamBroken; errors of the caller's body.
        Yields to the hub: yes.
        """
        pool = self._pool
        pool.admit(now_ns)
        pool.budget.first_try()
        try:
            try:
                self._try(outgoing, None, now_ns)
            except (UpstreamUnreachable, UpstreamBroken) as error:
                if not self._may_repeat(error, outgoing):
                    raise
                self._try(outgoing, self._endpoint, time.monotonic_ns())
        except (UpstreamUnreachable, UpstreamBroken, UpstreamTimeout):
            pool.breaker.failed(time.monotonic_ns())
            raise
        except BaseException:
            pool.breaker.unknown()
            raise
        pool.breaker.succeeded()
        return self._reader

    def _may_repeat(self, error: UpstreamError, outgoing: Outgoing) -> bool:
        """Not a byte written, or an idempotent read without a byte of response (ARCHITECTURE, decision 8)."""
        if isinstance(error, UpstreamBroken) and not (outgoing.repeatable and not self._received):
            return False
        return time.monotonic_ns() < self._deadline_ns and self._pool.budget.take()

    def _try(self, outgoing: Outgoing, avoid: Endpoint | None, now_ns: int) -> None:
        self._endpoint = None
        pool = self._pool
        waits = not pool.has_place
        try:
            self._endpoint, connection = endpoint, self._connection = pool.borrow(now_ns, self._deadline_ns, avoid)
        finally:
            if waits:
                self.queue_ns += time.monotonic_ns() - now_ns
        self._reader = AnswerReader(_names, outgoing.method == "HEAD")
        self._received = 0
        if self._watch is not None:
            self._watch(connection.cancel)
        try:
            self._send(outgoing, endpoint.host, connection)
            self._read_head(connection)
        except BaseException as error:
            self._fail(error)
            raise
        self.ended_ns = time.monotonic_ns()
        if endpoint.resting_until_ns:
            endpoint.answered()
        if self._reader.done:
            self._release(self._reader.reusable, self.ended_ns)

    def _send(self, outgoing: Outgoing, host: str, connection: UpstreamConnection) -> None:
        """Raises: UpstreamUnreachable if not a byte left, UpstreamTimeout, errors of the caller's body."""
        head = outgoing.head(host)
        body = outgoing.body
        try:
            if isinstance(body, bytes):
                connection.send((head, body) if body else (head,), self._deadline_ns)
            else:
                connection.send((head,), self._deadline_ns)
                self._send_body(outgoing, connection)
        except OSError as error:
            if not connection.written:
                raise UpstreamUnreachable("The upstream closed the connection") from error
            # An upstream may answer before it has read everything: what it said, if anything, is read now.

    def _send_body(self, outgoing: Outgoing, connection: UpstreamConnection) -> None:
        read_some = outgoing.body.read_some
        while piece := read_some(_PIECE_BYTES):
            pieces = (b"%x\r\n" % len(piece), piece, b"\r\n") if outgoing.chunked else (piece,)
            connection.send(pieces, self._deadline_ns)
        if outgoing.chunked:
            connection.send((b"0\r\n\r\n",), self._deadline_ns)

    def _read_head(self, connection: UpstreamConnection) -> None:
        """Read until the response is whole or enough of it is held."""
        reader = self._reader
        deadline_ns = min(self._deadline_ns, time.monotonic_ns() + self._pool.response_ns)
        self._receive(connection, deadline_ns)
        self._held = reader.take()
        if not reader.done:
            self._hold(connection, deadline_ns)
        self._check_size(len(self._held))

    def _hold(self, connection: UpstreamConnection, deadline_ns: int) -> None:
        reader = self._reader
        held = [self._held]
        size = len(self._held)
        while not reader.done and not (reader.status and size >= HELD_BYTES):
            self._check_size(size)
            self._receive(connection, deadline_ns)
            piece = reader.take()
            if piece:
                held.append(piece)
                size += len(piece)
        self._held = b"".join(held)

    def _receive(self, connection: UpstreamConnection, deadline_ns: int) -> None:
        """Raises: UpstreamBroken, UpstreamTimeout, ClientDisconnected."""
        try:
            data = connection.receive(deadline_ns)
            if data:
                self._received += len(data)
                self._reader.feed(data)
            else:
                self._reader.end()
        except OSError as error:
            raise UpstreamBroken("The upstream broke the connection") from error
        except AnswerError as error:
            raise UpstreamBroken(str(error)) from error

    def _check_size(self, size: int) -> None:
        if size > self._max_bytes or (self._reader.content_length or 0) > self._max_bytes:
            raise UpstreamBroken("The upstream's answer is larger than this route allows")

    # --- the response's content

    @property
    def whole(self) -> bool:
        """Is all of the content in hand?"""
        return self._connection is None

    @property
    def held(self) -> bytes:
        return self._held

    def pieces(self) -> Iterator[bytes]:
        """The content, first what is held.

        Raises: UpstreamBroken or UpstreamTimeout in the middle: the transfer to the caller must be cut.
        Yields to the hub: yes.
        """
        try:
            size = len(self._held)
            yield self._held
            self._held = b""
            while self._connection is not None:
                self._receive(self._connection, self._deadline_ns)
                piece = self._reader.take()
                size += len(piece)
                self._check_size(size)
                self._finish_if_done()
                if piece:
                    yield piece
        except GeneratorExit:
            raise
        except BaseException as error:
            self._fail(error)
            raise
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Give up a response that is not read to its end: its connection is closed."""
        self._release(False)

    def _finish_if_done(self) -> None:
        if self._reader.done:
            self._release(self._reader.reusable, time.monotonic_ns())

    def _fail(self, error: BaseException) -> None:
        """Account for a failure and close the connection."""
        endpoint, connection = self._endpoint, self._connection
        self._release(False)
        if endpoint is None or connection is None or not isinstance(error, (UpstreamBroken, UpstreamTimeout)):
            return
        if connection.served and not self._received and isinstance(error, UpstreamBroken):
            return  # a kept connection that was closed just now says nothing about the endpoint
        endpoint.failed(time.monotonic_ns())

    def _release(self, keep: bool, now_ns: int = 0) -> None:
        connection, self._connection = self._connection, None
        if connection is None or self._endpoint is None:
            return
        if self._watch is not None:
            self._watch(None)
        self._pool.give_back(self._endpoint, connection, keep, now_ns)


def outcome(error: GatewayError | None) -> str:
    """The label an exchange is counted under."""
    if error is None:
        return "answered"
    return "caller-gone" if isinstance(error, ClientDisconnected) else error.code

"""`wsgi.input`: a request body that is whole or an error, never cut short in silence."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from fastpath.chunks import ChunkError, ChunkReader
from gateway.bodies import ReadInterrupted
from gateway.errors import BadFraming, BodyTooLarge
from gateway.http1.deadlines import NEVER

_PIECE_BYTES = 65_536
_UNLIMITED = 1 << 62


class Source(Protocol):
    """Where a body's bytes come from: the connection."""

    def receive_body(self, received_bytes: int, deadline_ns: int) -> bytes:
        """More bytes, at least one; `received_bytes` of the body have come so far.

        Units: `deadline_ns` monotonic nanoseconds, past which nobody waits whatever the limits of a body allow.
        Raises: BadFraming at the end of the stream, RequestTimeout, ClientDisconnected, ReadInterrupted.
        Yields to the hub: yes.
        """

    def interrupt_body(self) -> None:
        """Called from the hub: have the `receive_body` that waits, if one does, raise ReadInterrupted."""


class NoBody:
    """The body of a request that has none; shared by all of them."""

    finished = True

    def limit(self, max_bytes: int) -> None:
        """Nothing is never too large."""

    def until(self, deadline_ns: int) -> None:
        """Nothing is never late."""

    def read(self, size: int | None = -1) -> bytes:
        return b""

    def read_some(self, size: int = _PIECE_BYTES) -> bytes:
        return b""

    def readline(self, size: int | None = -1) -> bytes:
        return b""

    def readlines(self, hint: int = -1) -> list[bytes]:
        return []

    def __iter__(self) -> Iterator[bytes]:
        return iter(())


class Body:
    """A body framed by Content-Length or by chunks.

    Shapes: `pending` are bytes already received that follow the head; after the end, `unread` gives back those that
    belong to the next request.
    Raises: every read may raise BadFraming, BodyTooLarge, RequestTimeout or ClientDisconnected; after such an error
    the connection cannot be read on (`broken`). ReadInterrupted where `interrupt` ended a wait: the body may be read
    on, but as long as it is not, the connection cannot (`stalled`).
    """

    __slots__ = (
        "_chunks", "_deadline_ns", "_left", "_line", "_max", "_received", "_source", "broken", "pending", "stalled",
    )  # fmt: skip

    def __init__(self, source: Source, content_length: int, pending: bytes) -> None:
        self._source = source
        self._chunks = ChunkReader() if content_length < 0 else None
        self._left = content_length
        self._max = _UNLIMITED
        self._received = 0
        self._line = b""
        self._deadline_ns = NEVER
        self.pending = pending
        self.broken = self.stalled = False

    @property
    def finished(self) -> bool:
        """Has the last byte of the message been read off the connection?"""
        return self._chunks.done if self._chunks is not None else self._left == 0

    def limit(self, max_bytes: int) -> None:
        """Refuse a body longer than `max_bytes`: at once if it was announced, else when it is read.

        Raises: BodyTooLarge.
        """
        self._max = max_bytes
        if self._left > max_bytes:
            raise BodyTooLarge("The body is larger than this route takes", close=True)

    def until(self, deadline_ns: int) -> None:
        """Wait for no byte past `deadline_ns`, monotonic nanoseconds: a read then raises RequestTimeout."""
        self._deadline_ns = deadline_ns

    def interrupt(self) -> None:
        """Called from the hub: have the read that waits for the caller, if one does, raise ReadInterrupted."""
        self._source.interrupt_body()

    def read(self, size: int | None = -1) -> bytes:
        """`size` bytes, or fewer at the end of the body; -1 reads it whole.

        Yields to the hub: yes.
        """
        wanted = _UNLIMITED if size is None or size < 0 else size
        piece = self.read_some(min(wanted, _UNLIMITED))
        if len(piece) == wanted or not piece:
            return piece
        pieces = [piece]
        have = len(piece)
        while have < wanted:
            piece = self.read_some(wanted - have)
            if not piece:
                break
            pieces.append(piece)
            have += len(piece)
        return b"".join(pieces)

    def read_some(self, size: int = _PIECE_BYTES) -> bytes:
        """What is at hand, at least one byte, at most `size`; empty only at the end of the body.

        Yields to the hub: if nothing is at hand.
        """
        if self._line:
            piece, self._line = self._line[:size], self._line[size:]
            return piece
        if size == 0:
            return b""
        while not self.finished:
            if not self.pending:
                self.pending = self._receive()
            piece = self._take(size)
            if piece:
                self._received += len(piece)
                if self._received > self._max:
                    self.broken = True
                    raise BodyTooLarge("The body is larger than this route takes", close=True)
                return piece
        return b""

    def give_back(self, data: bytes) -> None:
        """Let what was read be read once more, before what follows it."""
        self._line = data + self._line

    def readline(self, size: int | None = -1) -> bytes:
        """One line, its end included.

        Yields to the hub: yes.
        """
        wanted = _UNLIMITED if size is None or size < 0 else size
        held = b""
        while True:
            end = held.find(b"\n") + 1
            if end or len(held) >= wanted:
                cut = min(end or wanted, wanted)
                self._line = held[cut:] + self._line
                return held[:cut]
            piece = self.read_some(_PIECE_BYTES)
            if not piece:
                return held
            held += piece

    def readlines(self, hint: int = -1) -> list[bytes]:
        return list(self)

    def __iter__(self) -> Iterator[bytes]:
        while line := self.readline():
            yield line

    def droppable(self, max_bytes: int) -> bool:
        """May what is left be dropped instead of ending the connection: is it short, or already here?"""
        if self.broken or self.stalled:
            return False
        if self._chunks is None:
            return self._left <= max_bytes
        try:
            while self.pending and max_bytes > 0 and not self._chunks.done:
                max_bytes -= len(self._take(max_bytes))
        except BadFraming:
            return False
        return self._chunks.done

    def discard(self, max_bytes: int) -> bool:
        """Read and drop what is left, if that is at most `max_bytes`; True if the connection can be used on.

        Yields to the hub: yes.
        """
        if self.broken or self.stalled or self._left > max_bytes:
            return False
        self._max = _UNLIMITED
        self._line = b""
        while not self.finished:
            piece = self.read_some()
            max_bytes -= len(piece)
            if max_bytes < 0:
                return False
        return True

    def _receive(self) -> bytes:
        try:
            data = self._source.receive_body(self._received, self._deadline_ns)
        except ReadInterrupted:
            self.stalled = True
            raise
        except BaseException:
            self.broken = True
            raise
        self.stalled = False
        return data

    def _take(self, size: int) -> bytes:
        """Content out of what is pending; empty if there was only framing."""
        pending = self.pending
        if self._chunks is None:
            piece = pending[: min(size, self._left)]
            self._left -= len(piece)
            self.pending = pending[len(piece) :]
            return piece
        try:
            piece, end = self._chunks.take(pending, 0, size)
        except ChunkError as error:
            self.broken = True
            raise BadFraming(str(error), close=True) from error
        self.pending = pending[end:]
        return piece

"""Response bodies that arrive in pieces, and what must happen when they have ended, however they end."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from gateway.errors import GatewayError


class ReadInterrupted(Exception):
    """Nobody needs the rest of a request's body: thrown into the greenlet that waits for it."""


class Body:
    """An iterable that releases what it holds exactly once, at `close`, even if nobody ever read from it.

    NOTE: a generator's `finally` does not run if the generator was never started, so it cannot promise that.
    """

    __slots__ = ("_pieces", "_release", "failure")

    def __init__(self, pieces: Iterator[bytes], release: Callable[[], None]) -> None:
        self._pieces = pieces
        self._release: Callable[[], None] | None = release
        self.failure: GatewayError | None = None
        """Why reading ended early, if it did."""

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        """Yields to the hub: as the pieces do."""
        try:
            return next(self._pieces)
        except GatewayError as error:
            self.failure = error
            raise

    def close(self) -> None:
        """Let go; the worker calls it after the last byte, or when the transfer was cut."""
        release, self._release = self._release, None
        if release is None:
            return
        close = getattr(self._pieces, "close", None)
        try:
            if close is not None:
                close()
        finally:
            release()


class ReadBody:
    """`wsgi.input` of a request whose body was read to be decided upon: the same bytes, once more."""

    finished = True

    def __init__(self, data: bytes) -> None:
        self._left = memoryview(data)

    def limit(self, max_bytes: int) -> None:
        """It was read under the route's limit."""

    def until(self, deadline_ns: int) -> None:
        """It is here."""

    def read(self, size: int | None = -1) -> bytes:
        size = len(self._left) if size is None or size < 0 else size
        piece, self._left = bytes(self._left[:size]), self._left[size:]
        return piece

    def read_some(self, size: int = 65_536) -> bytes:
        return self.read(size)

    def readline(self, size: int | None = -1) -> bytes:
        end = bytes(self._left).find(b"\n") + 1 or len(self._left)
        return self.read(end if size is None or size < 0 else min(size, end))

    def readlines(self, hint: int = -1) -> list[bytes]:
        return list(self)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.readline, b"")


def wait_until(body: Any, deadline_ns: int) -> None:
    """Have reads of `wsgi.input` wait for no byte past a point of monotonic time, where it waits at all."""
    until = getattr(body, "until", None)
    if until is not None:
        until(deadline_ns)


class Transfer:
    """An answer's body that tells, once, whether all of it was taken from it and sent."""

    __slots__ = ("_body", "_pieces", "_told", "_whole")

    def __init__(self, body: Iterable[bytes], told: Callable[[bool], None]) -> None:
        """Shapes: `told(whole)` is called when the worker is done with the answer, however it ended."""
        self._body = body
        self._pieces = iter(body)
        self._told: Callable[[bool], None] | None = told
        self._whole = False

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        """Yields to the hub: as the body does."""
        try:
            return next(self._pieces)
        except StopIteration:
            self._whole = True
            raise

    def close(self) -> None:
        """The last byte is out, or the transfer was cut."""
        told, self._told = self._told, None
        if told is None:
            return
        # The worker closes what it could not send while it handles the error.
        whole = self._whole and sys.exc_info()[0] is None
        close = getattr(self._body, "close", None)
        try:
            if close is not None:
                close()
        finally:
            told(whole)

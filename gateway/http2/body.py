"""`wsgi.input` of a stream."""

from __future__ import annotations

from typing import Protocol

from gateway.http1.body import Body, Source


class FrameSource(Source, Protocol):
    """Where the content of DATA frames comes from: the stream. `receive_body` is empty at the end."""

    @property
    def drained(self) -> bool:
        """Has the body ended, and has all of it been handed on?"""


class StreamBody(Body):
    """A body whose frames end it; Content-Length, where there is one, is held against it by the stream.

    Raises: see Body; the error of a body that broke comes after the content that had arrived.
    """

    __slots__ = ("_frames",)

    def __init__(self, frames: FrameSource, content_length: int) -> None:
        """`content_length` is 0 where none was announced."""
        super().__init__(frames, content_length, b"")
        self._frames = frames

    @property
    def finished(self) -> bool:
        return not self.pending and self._frames.drained

    def _take(self, size: int) -> bytes:
        piece, self.pending = self.pending[:size], self.pending[size:]
        return piece

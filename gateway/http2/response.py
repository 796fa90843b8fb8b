"""One response on its way into a stream: PEP 3333's side is that of HTTP/1.1, the rest is frames."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from fastpath.responses import BODY_CHUNKED, BODY_NONE, LengthMismatch, Response, encode_response

_OF_CONNECTION = frozenset({b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"})


class FrameSink(Protocol):
    """Where a response's frames go: the stream."""

    def send_head(self, fields: list[tuple[bytes, bytes]], end: bool) -> None:
        """Raises: OSError if the stream is gone."""

    def send_data(self, data: bytes, end: bool) -> None:
        """All of the data, as fast as the client takes it.

        Raises: OSError; DeadlinePassed if the client takes nothing.
        Yields to the hub: if the windows or the connection are full.
        """


class StreamResponse(Response):
    """The fields are checked and framed by the encoder of HTTP/1.1, and taken apart again.

    Shapes: `framing` as in Response; `complete` once END_STREAM is out.
    """

    __slots__ = ("_frames", "complete")

    def __init__(self, frames: FrameSink, date: bytes, head_only: bool) -> None:
        self._frames = frames
        self.complete = False
        self.begin(date, False, head_only, True)

    def send(self, result: Iterable[bytes]) -> None:
        """Send what the application returned.

        Raises: whatever iterating raises; LengthMismatch; OSError; ResponseError.
        """
        if type(result) is list and not self.head_sent:
            self._send_all(result[0] if len(result) == 1 else b"".join(result))
            return
        for piece in result:
            if piece:
                self.write(piece)
        self._finish()

    def write(self, piece: bytes) -> None:
        """Send a piece of the body, after the head if that is still to go."""
        if not isinstance(piece, bytes):
            raise TypeError("body pieces are bytes")
        if not self.head_sent:
            self._send_head(-1)
        if self.framing > 0:
            piece = piece[: self.framing]
            self.framing -= len(piece)
        elif self.framing != BODY_CHUNKED:
            return
        if piece:
            self._frames.send_data(piece, False)
            self.sent += len(piece)

    def _send_all(self, body: bytes) -> None:
        self._send_head(len(body), whole=True)
        if not self.complete:
            self._frames.send_data(body, True)
            self.complete = True
            self.framing = BODY_NONE
        if not self.head_only:
            self.sent = len(body)

    def _send_head(self, size: int, whole: bool = False) -> None:
        """Fields by the encoder of HTTP/1.1; `whole` says that nothing follows but `size` bytes."""
        if not self.status:
            raise AssertionError("the application did not call start_response")
        text, self.framing, _ = encode_response(
            self.status, self.fields, self.date, False, self.head_only, True, None, size
        )
        ends = self.framing == BODY_NONE or (whole and self.framing == 0)
        self._frames.send_head(fields_of(text), ends)
        self.head_sent = True
        self.complete = ends

    def _finish(self) -> None:
        if not self.head_sent:
            self._send_head(-1 if any(name.lower() == "content-length" for name, _ in self.fields) else 0)
        if self.framing > 0:
            raise LengthMismatch(f"{self.framing} bytes of the announced body are missing")
        if not self.complete:
            self._frames.send_data(b"", True)
            self.complete = True


def fields_of(text: bytes) -> list[tuple[bytes, bytes]]:
    """A response head of HTTP/1.1 as the fields of HTTP/2."""
    lines = text[:-4].split(b"\r\n")
    fields = [(b":status", lines[0][9:12])]
    for line in lines[1:]:
        name, _, value = line.partition(b":")
        name = name.lower()
        if name not in _OF_CONNECTION:
            fields.append((name, value.strip(b" \t")))
    return fields

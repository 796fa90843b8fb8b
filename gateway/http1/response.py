"""One response on its way out: the head once, then the body as the framing says."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Any, Protocol

from fastpath.responses import BODY_CHUNKED, BODY_NONE, BODY_TO_CLOSE, encode_response

ExcInfo = tuple[type[BaseException], BaseException, TracebackType] | tuple[None, None, None]


class Sink(Protocol):
    """Where a response's bytes go: the connection."""

    def send(self, pieces: Sequence[bytes]) -> None:
        """All of the pieces, in one system call where the socket takes them.

        Raises: OSError; DeadlinePassed if the client stops reading.
        Yields to the hub: if the socket's buffer is full.
        """


class LengthMismatch(RuntimeError):
    """The application gave fewer body bytes than it announced."""


class FileWrapper:
    """`wsgi.file_wrapper`: iterates over a file in blocks."""

    def __init__(self, file: Any, block_bytes: int = 65_536) -> None:
        self._read = file.read
        self._block_bytes = max(block_bytes, 65_536)
        self.close: Callable[[], None] = getattr(file, "close", lambda: None)

    def __iter__(self) -> FileWrapper:
        return self

    def __next__(self) -> bytes:
        block: bytes = self._read(self._block_bytes)
        if not block:
            raise StopIteration
        return block


class Response:
    """Reused for every response of a connection.

    Shapes: `framing` is the number of body bytes still owed, or one of the BODY_ constants.
    """

    __slots__ = (
        "_sink",
        "date",
        "fields",
        "framing",
        "head_only",
        "head_sent",
        "http10",
        "keep_alive",
        "sent",
        "status",
    )  # fmt: skip

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self.begin(b"", False, False, False)

    def begin(self, date: bytes, http10: bool, head_only: bool, keep_alive: bool) -> None:
        """Forget the response before and take what the new request decides."""
        self.date = date
        self.http10 = http10
        self.head_only = head_only
        self.keep_alive = keep_alive
        self.status = ""
        self.fields: list[tuple[str, str]] = []
        self.head_sent = False
        self.framing = BODY_NONE
        self.sent = 0

    def detach(self) -> None:
        """Let go of the connection that has ended."""
        del self._sink

    def start_response(
        self, status: str, fields: list[tuple[str, str]], exc_info: ExcInfo | None = None
    ) -> Callable[[bytes], None]:
        """PEP 3333's callable."""
        if exc_info is not None and self.head_sent and exc_info[1] is not None:
            raise exc_info[1].with_traceback(exc_info[2])
        if exc_info is None and self.status:
            raise AssertionError("start_response was called twice")
        self.status = status
        self.fields = fields
        return self.write

    def send(self, result: Iterable[bytes]) -> None:
        """Send what the application returned.

        Raises: whatever iterating raises; LengthMismatch; OSError; ResponseError.
        Yields to the hub: yes.
        """
        if type(result) is list and not self.head_sent:
            self._send_whole(result[0] if len(result) == 1 else b"".join(result))
            return
        for piece in result:
            if piece:
                self.write(piece)
        self._finish()

    def write(self, piece: bytes) -> None:
        """Send a piece of the body, after the head if that is still to go."""
        if not isinstance(piece, bytes):
            raise TypeError("body pieces are bytes")
        before: tuple[bytes, ...] = () if self.head_sent else (self._encode(None, -1),)
        if not piece:
            self._sink.send(before)
            return
        framing = self.framing
        if framing == BODY_CHUNKED:
            self._sink.send((*before, b"%x\r\n" % len(piece), piece, b"\r\n"))
        elif framing == BODY_NONE:
            self._sink.send(before)
            return
        elif framing == BODY_TO_CLOSE:
            self._sink.send((*before, piece))
        else:
            piece = piece[:framing]
            self.framing = framing - len(piece)
            self._sink.send((*before, piece))
        self.sent += len(piece)

    def _send_whole(self, body: bytes) -> None:
        head = self._encode(body, len(body))
        if self.framing > 0:
            self._sink.send((head, body))
            self.framing = 0
        else:
            self._sink.send((head,))
        if not self.head_only:
            self.sent = len(body)

    def _encode(self, body: bytes | None, size: int) -> bytes:
        if not self.status:
            raise AssertionError("the application did not call start_response")
        head, self.framing, self.keep_alive = encode_response(
            self.status, self.fields, self.date, self.http10, self.head_only, self.keep_alive, body, size
        )
        self.head_sent = True
        return head

    def _finish(self) -> None:
        if not self.head_sent:
            self._send_whole(b"") if not _announces_length(self.fields) else self._sink.send((self._encode(None, -1),))
        if self.framing == BODY_CHUNKED:
            self._sink.send((b"0\r\n\r\n",))
        if self.framing > 0:
            raise LengthMismatch(f"{self.framing} bytes of the announced body are missing")
        self.framing = BODY_NONE


def _announces_length(fields: list[tuple[str, str]]) -> bool:
    return any(name.lower() == "content-length" for name, _ in fields)

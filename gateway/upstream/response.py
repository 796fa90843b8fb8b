"""An upstream's response taken apart by llhttp (httptools): bytes in, head and content out. No I/O."""

from __future__ import annotations

import httptools

from gateway.errors import UpstreamBroken

MAX_HEAD_BYTES = 65_536
MAX_FIELDS = 200
_BODILESS = frozenset({204, 304})

Fields = list[tuple[str, str]]


class ResponseReader:
    """Reads one response; informational ones before it are skipped.

    Shapes: `status` is 0 until the head is whole; field names are lower case; `take()` gives content since the last
    call; `done` after the last byte of the message; `content_length` None if not announced.
    """

    __slots__ = (
        "_bodiless",
        "_head_bytes",
        "_head_only",
        "_in_head",
        "_parser",
        "_pieces",
        "_promised",
        "content_length",
        "done",
        "fields",
        "status",
        "surplus",
    )

    def __init__(self, head_only: bool) -> None:
        self._head_only = head_only
        self._parser = httptools.HttpResponseParser(self)
        self._pieces: list[bytes] = []
        self._head_bytes = 0
        self._in_head = True
        self._bodiless = False
        self._promised: int | None = None
        self.status = 0
        self.fields: Fields = []
        self.content_length: int | None = None
        self.done = False
        self.surplus = False

    def feed(self, data: bytes) -> None:
        """Raises: UpstreamBroken for what is not HTTP, over the limits, or framed in more than one way."""
        if self.done:
            self.surplus = True
            return
        if self._in_head:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if not self.done:
                raise UpstreamBroken("The upstream's answer is not HTTP") from error
            self.surplus = True
        if self._in_head and self._head_bytes > MAX_HEAD_BYTES:
            raise UpstreamBroken("The head of the upstream's answer is too large")

    def end(self) -> None:
        """The upstream closed the connection.

        Raises: UpstreamBroken unless the response is whole, or one that the end of the connection delimits.
        """
        if self.done:
            return
        if self.status == 0 or self._promised is not None or self._chunked():
            raise UpstreamBroken("The upstream's answer ended too early")
        self.done = True
        self.surplus = True

    def take(self) -> bytes:
        """Content read so far that was not taken yet."""
        pieces = self._pieces
        if not pieces:
            return b""
        self._pieces = []
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    @property
    def reusable(self) -> bool:
        """May the connection carry another request?"""
        return self.done and not self.surplus and not self._closes()

    # --- what the parser calls

    def on_message_begin(self) -> None:
        if self.done:
            self.surplus = True
        else:
            self.fields = []

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head or self.done:
            return
        if len(self.fields) >= MAX_FIELDS:
            raise UpstreamBroken("The upstream's answer has too many fields")
        self.fields.append((name.decode("latin-1").lower(), value.decode("latin-1").strip(" \t")))

    def on_headers_complete(self) -> None:
        if self.done:
            return
        status = self._parser.get_status_code()
        if status == 101 or status < 100:
            raise UpstreamBroken("The upstream answered with a protocol of its own")
        if status < 200:
            return
        self.status = status
        self._in_head = False
        self._frame(status)
        if self._bodiless:
            self.done = True

    def _frame(self, status: int) -> None:
        """Raises: UpstreamBroken for a transfer coding that is not ours to undo."""
        lengths = {value for name, value in self.fields if name == "content-length"}
        codings = [value.lower() for name, value in self.fields if name == "transfer-encoding"]
        if codings not in ([], ["chunked"]) or len(lengths) > 1 or (codings and lengths):
            raise UpstreamBroken("The upstream framed its answer in a way that is not served")
        if lengths:
            text = lengths.pop()
            if not text.isascii() or not text.isdigit():
                raise UpstreamBroken("The upstream announced a length that is no number")
            self.content_length = int(text)
        self._bodiless = self._head_only or status in _BODILESS
        self._promised = None if self._bodiless else self.content_length

    def on_body(self, data: bytes) -> None:
        if self._bodiless:
            self.surplus = True
        else:
            self._pieces.append(data)

    def on_message_complete(self) -> None:
        if self.status:
            self.done = True

    def _chunked(self) -> bool:
        return any(name == "transfer-encoding" for name, _ in self.fields)

    def _closes(self) -> bool:
        if self._parser.get_http_version() == "1.0":
            return True
        return any("close" in value.lower() for name, value in self.fields if name == "connection")

"""Reading one answer of the local service, without I/O: bytes in, head and body pieces out."""

from __future__ import annotations

import re
from dataclasses import dataclass

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from gateway.agent.fields import without_hop_by_hop
from gateway.relay.frames import MAX_FIELDS, MAX_HEADER_BYTES, Fields

_NAME = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,256}"
_NAMES = re.compile(rb"(?:%b\n)*%b" % (_NAME, _NAME)).fullmatch
_VALUES = re.compile(rb"[\t\n\x20-\x7e\x80-\xff]*").fullmatch
_DIGITS = re.compile(r"[0-9]{1,18}").fullmatch
MAX_SILENT_BYTES = 65_536
"""Of chunk extensions and trailers between two body bytes; they are read and dropped."""


class ResponseBroken(Exception):
    """The local service does not speak HTTP/1.1 here; the message names the rule, not what was received."""


@dataclass(frozen=True, slots=True)
class ResponseHead:
    """Shapes: `fields` are lower-case names with values, hop-by-hop ones and the length removed.

    Units: `length` bytes of body announced (to HEAD and by a 304: of the body that is not sent), None if not announced.
    """

    status: int
    fields: Fields
    length: int | None


class ResponseReader:
    """Feed it until `complete`; interim answers are skipped.

    `reusable` says whether another request may follow on the same connection.
    """

    def __init__(self, method: str) -> None:
        self._to_head = method == "HEAD"
        self._parser = HttpResponseParser(self)
        self._names: list[bytes] = []
        self._values: list[bytes] = []
        self._silent_bytes = 0
        self._pieces: list[bytes] = []
        self._keep_alive = False
        self._chunked = False
        self._fault = ""
        self.head: ResponseHead | None = None
        self.complete = False
        self.reusable = False

    def feed(self, data: bytes) -> list[bytes]:
        """Body pieces in the data, `head` being set before the first. Raises: ResponseBroken."""
        if self.complete:
            self.reusable = False
            return []
        try:
            self._parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade) as error:
            # What follows a complete answer is nobody's: the answer counts, the connection is not used again.
            self.reusable = False
            if not self.complete:
                raise ResponseBroken(self._fault or "syntax") from error
        if self.complete:
            del self._parser  # PERF: reader and parser hold each other; without this each answer is cyclic garbage
        pieces, self._pieces = self._pieces, []
        self._limit_silence(0 if pieces else len(data))
        return pieces

    def end_of_stream(self) -> None:
        """The peer closed: fine only for an answer whose end is the connection's. Raises: ResponseBroken."""
        self.reusable = False
        if self.complete:
            return
        if self.head is None or self.head.length is not None or self._chunked:
            raise ResponseBroken("truncated")
        self.complete = True

    def _limit_silence(self, silent: int) -> None:
        self._silent_bytes = self._silent_bytes + silent if silent else 0
        if not self.complete and self._silent_bytes > MAX_SILENT_BYTES:
            raise ResponseBroken("head too large")

    # --- called by the parser; what they raise surfaces as HttpParserError, so the reason is kept

    def on_message_begin(self) -> None:
        if self.complete:
            self.reusable = False
        if self.head is None:
            self._names, self._values = [], []

    def on_header(self, name: bytes, value: bytes) -> None:
        """NOTE: trailers come here too, when nobody looks any more. `feed` limits how much comes before the head."""
        self._names.append(name)
        self._values.append(value)

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if self.head is not None or 100 <= status < 200:
            return
        if not 200 <= status <= 599:
            self._refuse("status")
        fields = self._fields() if self._names else []
        length = self._framed_length(status, fields)
        self._keep_alive = self._parser.should_keep_alive()
        self.head = ResponseHead(status, without_hop_by_hop(fields), length)
        if self._to_head:
            self._finish()

    def _fields(self) -> Fields:
        """Lower-case names with their values, each byte of which becomes one character (ISO 8859-1), as in WSGI.

        PERF: `relay_open`: all names are looked at together, and all values; one by one it was a tenth of the agent's
        time.
        """
        names, values, count = b"\n".join(self._names), b"\n".join(self._values), len(self._names)
        if len(names) + len(values) + 2 * count + 2 > MAX_HEADER_BYTES or count > MAX_FIELDS:
            self._refuse("head too large")
        if not _NAMES(names) or not _VALUES(values):
            self._refuse("header field")
        own, texts = names.decode("ascii").lower().split("\n"), values.decode("latin-1").split("\n")
        if len(own) != count or len(texts) != count:
            self._refuse("header field")
        return [(name, text.strip(" \t")) for name, text in zip(own, texts, strict=True)]

    def on_body(self, piece: bytes) -> None:
        if self.complete:
            self.reusable = False  # body bytes after a HEAD answer, or after the end
        else:
            self._pieces.append(piece)

    def on_message_complete(self) -> None:
        if self.head is not None and not self.complete:
            self._finish()

    # ---

    def _finish(self) -> None:
        self.complete = True
        self.reusable = self._keep_alive

    def _framed_length(self, status: int, fields: Fields) -> int | None:
        lengths = [value for name, value in fields if name == "content-length"]
        raw = zip(fields, self._values, strict=True)
        codings = [value.rstrip(b" ").lower() for (name, _), value in raw if name == "transfer-encoding"]
        # SEC: to the parser a coding with a tab after it is another one, and what is chunked is then the body.
        if codings and codings != [b"chunked"]:
            self._refuse("transfer-encoding")
        self._chunked = bool(codings)
        if codings:
            if lengths:
                self._refuse("two framings")
            return None
        if len(lengths) > 1 or any(not _DIGITS(value) for value in lengths):
            self._refuse("content-length")
        return int(lengths[0]) if lengths and status != 204 else None

    def _refuse(self, fault: str) -> None:
        self._fault = fault
        raise ResponseBroken(fault)

"""The borders of frames in what a client sends, beside the state machine: how long one may take, and how many are
too many. Bytes and times in, no I/O."""

from __future__ import annotations

from enum import IntEnum

from gateway.http1.limits import SECOND_NS

PREFACE_BYTES = 24
HEAD_BYTES = 9
END_STREAM = 0x1
END_HEADERS = 0x4


class Kind(IntEnum):
    """Frame types that are told apart (RFC 9113, 6)."""

    DATA = 0
    HEADERS = 1
    RST_STREAM = 3
    WINDOW_UPDATE = 8
    CONTINUATION = 9


class TooManyFrames(Exception):
    """The client sends more frames that carry no request than any client has reason to."""


class FrameScanner:
    """Follows the borders of frames.

    Shapes: `block_bytes` is what the open header block has announced so far; `kind` is the last frame's.
    """

    def __init__(self) -> None:
        self._left = PREFACE_BYTES
        self._head = b""
        self._in_block = False
        self.block_bytes = 0
        self.kind = -1

    @property
    def inside(self) -> bool:
        """Has the client begun a frame, a header block or the preface that it has not finished?"""
        return self._left > 0 or self._head != b"" or self._in_block

    @property
    def inside_head(self) -> bool:
        """Has the client begun a request's header block that it has not finished?"""
        return self._in_block or (self._left > 0 and self.kind == Kind.HEADERS)

    def feed(self, data: bytes) -> list[tuple[int, int, int]]:
        """The frames whose heads the data completes, each as (type, flags, length)."""
        frames = []
        at = 0
        while at < len(data):
            if self._left:
                step = min(self._left, len(data) - at)
                self._left -= step
                at += step
                continue
            piece = data[at : at + HEAD_BYTES - len(self._head)]
            self._head += piece
            at += len(piece)
            if len(self._head) == HEAD_BYTES:
                frames.append(self._begin())
        return frames

    def _begin(self) -> tuple[int, int, int]:
        length, kind, flags = int.from_bytes(self._head[:3], "big"), self._head[3], self._head[4]
        self._head = b""
        self._left = length
        self.kind = kind
        if kind in (Kind.HEADERS, Kind.CONTINUATION):
            self.block_bytes = length + (self.block_bytes if kind == Kind.CONTINUATION else 0)
            self._in_block = not flags & END_HEADERS
        return kind, flags, length


class FrameBudget:
    """Bounds, in windows of ten seconds, what costs the gateway work and is no request.

    Frames that carry no request are PING, SETTINGS, PRIORITY, unknown ones, DATA without data, and more window updates
    than the sent bytes give reason for; every answer pays for a few. Aborted are streams that the client reset or made
    us reset, and heads that were refused (CVE-2023-44487, CVE-2025-8671).
    Source: gunicorn.http2.connection has the same figures.
    """

    WINDOW_NS = 10 * SECOND_NS
    MAX_BARE = 1_000
    MAX_ABORTED = 200
    BYTES_EACH_UPDATE = 256
    BARE_EACH_ANSWER = 4

    def __init__(self, now_ns: int, max_block_bytes: int) -> None:
        self._began_ns = now_ns
        self._max_block_bytes = max_block_bytes
        self._bare = 0
        self._aborted = 0
        self._updates = 0
        self._sent_bytes = 0
        self._answers = 0

    def take(self, frames: list[tuple[int, int, int]], block_bytes: int, now_ns: int) -> None:
        """Raises: TooManyFrames, also for a header block over its limit."""
        self._roll(now_ns)
        if block_bytes > self._max_block_bytes:
            raise TooManyFrames("a header block over the limit")
        for kind, flags, length in frames:
            if kind == Kind.WINDOW_UPDATE:
                self._updates += 1
            elif kind in (Kind.HEADERS, Kind.CONTINUATION, Kind.RST_STREAM) or (
                kind == Kind.DATA and (length or flags & END_STREAM)
            ):
                continue
            else:
                self._bare += 1
        most = self.MAX_BARE + self._answers * self.BARE_EACH_ANSWER
        if self._bare > most or self._updates > most + self._sent_bytes // self.BYTES_EACH_UPDATE:
            raise TooManyFrames("frames that carry no request")

    def abort(self, now_ns: int) -> None:
        """Count a stream that came to nothing. Raises: TooManyFrames."""
        self._roll(now_ns)
        self._aborted += 1
        if self._aborted > self.MAX_ABORTED:
            raise TooManyFrames("streams that come to nothing")

    def sent(self, size: int) -> None:
        """Body bytes sent give the client reason for window updates."""
        self._sent_bytes += size

    def answered(self) -> None:
        """Count a request that was answered whole."""
        self._answers += 1

    def _roll(self, now_ns: int) -> None:
        if now_ns - self._began_ns >= self.WINDOW_NS:
            self._began_ns = now_ns
            # NOTE: updates for what was sent just before the border may come after it.
            self._answers //= 2
            self._bare = self._aborted = self._updates = 0
            self._sent_bytes //= 2

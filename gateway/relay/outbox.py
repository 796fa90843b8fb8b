"""What a relay session has to send: control frames first, then streams in turn by bytes, never past their credit."""

from __future__ import annotations

import enum
from collections import deque
from typing import Final

from fastpath.frames import END_BODY, PREFIX_BYTES, pack_frame
from gateway.relay.frames import MAX_CREDIT, FrameType, ProtocolViolation
from gateway.relay.pieces import keep

TURN_BYTES: Final = 32_768
"""How much of one stream leaves before the next stream has its turn."""

LEAST_ROOM_BYTES: Final = 65_536
"""A queue with less room than for a piece of a body takes no new stream."""

MAX_CONTROL_FRAMES: Final = 1_024
"""SEC: answers that a peer can cause (PONG, RESET_ACK) without reading them are bounded."""


class Place(enum.Enum):
    IDLE = "has nothing to send"
    READY = "waits for its turn"
    BLOCKED = "waits for credit of its stream"
    STARVED = "waits for credit of the connection"
    GONE = "is finished or dropped"


class StreamQueue:
    """The unsent part of one stream: a head (REQ or RES), body bytes, the end of the body.

    Units: `credit` and `queued_bytes` bytes; `stuck_since_s` seconds, or None while it moves.
    """

    __slots__ = ("chunks", "credit", "end", "head", "offset", "place", "queued_bytes", "stream", "stuck_since_s")

    def __init__(self, stream: int, credit: int) -> None:
        self.stream = stream
        self.credit = credit
        self.head: tuple[int, int, bytes] | None = None
        self.chunks: deque[bytes] | None = None
        self.offset = 0
        self.queued_bytes = 0
        self.end = False
        self.place = Place.IDLE
        self.stuck_since_s: float | None = None

    def put(self, data: bytes) -> None:
        if self.chunks is None:
            self.chunks = deque()
        keep(self.chunks, data)
        self.queued_bytes += len(data)

    def take(self, size: int) -> bytes | memoryview:
        """Exactly `size` bytes from the front; at most `queued_bytes`."""
        self.queued_bytes -= size
        chunks = self.chunks
        if size == 0 or chunks is None:
            return b""
        if len(chunks[0]) - self.offset >= size:
            return self._take_first(chunks, size)
        parts = []
        while size:
            part = self._take_first(chunks, min(size, len(chunks[0]) - self.offset))
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def _take_first(self, chunks: deque[bytes], size: int) -> bytes | memoryview:
        first, start = chunks[0], self.offset
        if start + size == len(first):
            chunks.popleft()
            self.offset = 0
        else:
            self.offset = start + size
        return first if size == len(first) else memoryview(first)[start : start + size]


class Outbox:
    """Frames of one connection in the order in which they leave.

    Units: `credit` body bytes the connection may still send, `limit_bytes` of bodies it may hold: who puts them asks
    `takes_stream` or `has_room` before. `blocked_bytes` wait for credit of their own streams and stand in nobody's way:
    they do not count there. `wholes` are frames that are all that their stream sends,
    with the size of their body, by their stream: their credit is taken when they are put. After `pop`, `heads`, `ends`
    and `flushed` tell what left; whoever reads them clears them.
    """

    __slots__ = (
        "blocked_bytes",
        "control",
        "credit",
        "ends",
        "flushed",
        "heads",
        "limit_bytes",
        "max_frame",
        "queued_bytes",
        "queues",
        "ring",
        "starved",
        "wholes",
    )

    def __init__(self, credit: int, max_frame: int, limit_bytes: int) -> None:
        self.control: list[bytes] = []
        self.credit = credit
        self.max_frame = max_frame
        self.limit_bytes = limit_bytes
        self.queues: dict[int, StreamQueue] = {}
        self.ring: deque[StreamQueue | int] = deque()
        self.wholes: dict[int, tuple[bytes, int]] = {}
        self.starved: list[StreamQueue] = []
        self.queued_bytes = 0
        self.blocked_bytes = 0
        self.heads: list[int] = []
        self.ends: list[int] = []
        self.flushed: list[tuple[int, int]] = []

    def takes_stream(self, size: int) -> bool:
        """May a stream begin with so many body bytes? An empty queue takes any."""
        moving = self.queued_bytes - self.blocked_bytes
        return not moving or moving + max(size, LEAST_ROOM_BYTES) <= self.limit_bytes

    def has_room(self, size: int) -> bool:
        """May an open stream put so many? Half of the queue is for new ones: uploads wait before they are refused."""
        moving = self.queued_bytes - self.blocked_bytes
        return not moving or moving + size <= self.limit_bytes // 2

    def put_answer(self, frame: bytes) -> None:
        """A control frame that the peer caused.

        Raises: ProtocolViolation if it caused more of them than it reads.
        """
        self.check_answers()
        self.control.append(frame)

    def check_answers(self) -> None:
        """Is there room for one more control frame that the peer causes? Raises: ProtocolViolation."""
        if len(self.control) >= MAX_CONTROL_FRAMES:
            raise ProtocolViolation("flood", "more answers caused than read")

    def open(self, stream: int, credit: int) -> None:
        self.queues[stream] = StreamQueue(stream, credit)

    def put_whole(self, stream: int, frame: bytes) -> None:
        """PERF: `relay_small`: a request without a body waits its turn like any other, without a queue of its own."""
        self.wholes[stream] = frame, 0
        self.ring.append(stream)

    def put_whole_answer(self, stream: int, kind: int, header: bytes, body: bytes) -> bool:
        """Head and all of a body in one frame; False if that is not one turn, or there is no credit for it.

        PERF: `relay_open`: an answer that waits its turn as a request does, without its queue's steps.
        """
        queue, size = self.queues[stream], len(body)
        if size > min(queue.credit, self.credit, TURN_BYTES, self.max_frame - PREFIX_BYTES - len(header)):
            return False
        queue.credit -= size
        queue.queued_bytes += size
        self.credit -= size
        self.queued_bytes += size
        self.wholes[stream] = pack_frame(kind, END_BODY, stream, header, body), size
        self.ring.append(stream)
        return True

    def put_head(self, stream: int, kind: int, flags: int, header: bytes) -> None:
        queue = self.queues[stream]
        queue.head = (kind, flags, header)
        self._make_ready(queue)

    def put_body(self, stream: int, data: bytes, end: bool) -> None:
        queue = self.queues[stream]
        if data:
            queue.put(data)
            self.queued_bytes += len(data)
            if queue.place is Place.BLOCKED:
                self.blocked_bytes += len(data)
        queue.end = queue.end or end
        if queue.place is Place.IDLE and (data or end):
            self._make_ready(queue)

    def _make_ready(self, queue: StreamQueue) -> None:
        if queue.place is not Place.READY:
            if queue.place is Place.BLOCKED:
                self.blocked_bytes -= queue.queued_bytes
            queue.place = Place.READY
            self.ring.append(queue)

    def drop(self, stream: int) -> None:
        """Forget the stream and what it has not sent."""
        queue = self.queues.pop(stream, None)
        if queue is not None:
            if queue.place is Place.BLOCKED:
                self.blocked_bytes -= queue.queued_bytes
            queue.place = Place.GONE
            queue.chunks = None
            self.queued_bytes -= queue.queued_bytes
        if self.wholes:
            whole = self.wholes.pop(stream, None)
            if whole is not None:
                self.credit += whole[1]

    def add_credit(self, stream: int, credit: int) -> None:
        """Raises: ProtocolViolation over 2^31-1."""
        queue = self.queues.get(stream)
        if queue is None:
            return
        queue.credit += credit
        if queue.credit > MAX_CREDIT:
            raise ProtocolViolation("credit", "a stream's credit over 2^31-1")
        if queue.place is Place.BLOCKED:
            self._make_ready(queue)

    def add_connection_credit(self, credit: int) -> None:
        """Raises: ProtocolViolation over 2^31-1."""
        self.credit += credit
        if self.credit > MAX_CREDIT:
            raise ProtocolViolation("credit", "the connection's credit over 2^31-1")
        starved, self.starved = self.starved, []
        for queue in starved:
            if queue.place is Place.STARVED:
                self._make_ready(queue)

    def stuck_since_s(self) -> float | None:
        """When the stream that has waited longest for credit began to."""
        return min((q.stuck_since_s for q in self.queues.values() if q.stuck_since_s is not None), default=None)

    def stuck_for(self, stall_s: float, now_s: float) -> list[int]:
        """The streams that have waited so long for credit."""
        return [
            queue.stream
            for queue in self.queues.values()
            if queue.stuck_since_s is not None and queue.stuck_since_s + stall_s <= now_s
        ]

    def pop(self, budget_bytes: int, now_s: float) -> list[bytes]:
        """The next messages, about `budget_bytes` of them; all control frames are among them."""
        out, self.control = self.control, []
        taken = sum(map(len, out))
        while self.ring and taken < budget_bytes:
            queue = self.ring.popleft()
            if isinstance(queue, int):
                taken += self._pop_whole(queue, out)
                continue
            if queue.place is not Place.READY:
                continue
            frame = self._take_turn(queue)
            if frame is not None:
                out.append(frame)
                taken += len(frame)
            self._place(queue, frame is not None, now_s)
        return out

    def _pop_whole(self, stream: int, out: list[bytes]) -> int:
        whole = self.wholes.pop(stream, None)
        if whole is None:
            return 0
        frame, size = whole
        if size:
            self.queues[stream].queued_bytes -= size
            self.queued_bytes -= size
            self.flushed.append((stream, size))
        self.heads.append(stream)
        self.ends.append(stream)
        out.append(frame)
        return len(frame)

    def _take_turn(self, queue: StreamQueue) -> bytes | None:
        head = queue.head
        kind, flags, header = head if head is not None else (FrameType.DATA, 0, b"")
        room = min(TURN_BYTES, self.max_frame - PREFIX_BYTES - len(header))
        size = max(0, min(queue.queued_bytes, queue.credit, self.credit, room))
        end = queue.end and size == queue.queued_bytes
        if head is None and not size and not end:
            return None
        body = queue.take(size)
        if size:
            queue.credit -= size
            self.credit -= size
            self.queued_bytes -= size
            self.flushed.append((queue.stream, size))
        if head is not None:
            queue.head = None
            self.heads.append(queue.stream)
        if end:
            self.ends.append(queue.stream)
            queue.end = False
            flags |= END_BODY
        return pack_frame(kind, flags, queue.stream, header, body)

    def _place(self, queue: StreamQueue, moved: bool, now_s: float) -> None:
        if moved:
            queue.stuck_since_s = None
        if not queue.queued_bytes:
            queue.place = Place.IDLE
        elif not queue.credit:
            queue.place = Place.BLOCKED
            self.blocked_bytes += queue.queued_bytes
        elif not self.credit:
            queue.place = Place.STARVED
            self.starved.append(queue)
        else:
            self.ring.append(queue)
            return
        if queue.queued_bytes and queue.stuck_since_s is None:
            queue.stuck_since_s = now_s

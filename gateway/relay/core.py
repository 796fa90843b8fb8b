"""What both sides of a relay connection do: windows, turns, pings, deadlines, and one outcome for each stream."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Final

from gateway.errors import Delivery
from gateway.relay import events as ev
from gateway.relay import frames as fr
from gateway.relay.decoding import decode
from gateway.relay.events import Event
from gateway.relay.frames import GoAwayCode, ProtocolViolation, ResetCode
from gateway.relay.outbox import TURN_BYTES, Outbox
from gateway.relay.states import CONNECTION_ROWS, DELIVERY, LIVE, ROWS, Role, State, StreamState

NEVER: Final = float("inf")
WRITE_BYTES: Final = TURN_BYTES
"""About how much leaves in one write: a turn, for what is being written cannot be overtaken."""


Answer = tuple[int, fr.Response | None, bytes]
"""(stream, None, b"") for an ACK; (stream, head, body) for a whole answer, the stream's outcome."""


class NotSendable(Exception):
    """The session cannot start a stream now; `reason` is draining, closed, not-ready, streams or queue."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    @property
    def full(self) -> bool:
        """Would it take one as soon as others end?"""
        return self.reason in ("streams", "queue")


@dataclass(frozen=True, slots=True)
class Limits:
    """What this side offers; the lower of the two sides holds. `queue_bytes` is its own: of bodies that wait to leave.

    Units: windows and `max_frame` bytes, `*_s` seconds.
    """

    max_streams: int = 64
    stream_window: int = 262_144
    conn_window: int = 4_194_304
    queue_bytes: int = 4_194_304
    max_frame: int = fr.MAX_FRAME_BYTES
    hello_s: float = 5.0
    ping_s: float = 15.0
    suspect_s: float = 20.0
    dead_s: float = 35.0
    stall_s: float = 30.0
    sync_s: float = 60.0


class Stream:
    """One relayed request. `receive_credit` and the like are of the direction that this side receives.

    Units: `sent_s` when the request's head left this side, 0 before.
    """

    __slots__ = (
        "bodyless",
        "deadline_s",
        "expected",
        "go_due",
        "held",
        "id",
        "missing",
        "owed",
        "receive_credit",
        "received_end",
        "response_ended",
        "sent_end",
        "sent_s",
        "state",
        "unconsumed",
    )

    def __init__(self, stream: int, state: StreamState, window: int, deadline_s: float) -> None:
        self.id = stream
        self.state = state
        self.deadline_s = deadline_s
        self.receive_credit = window
        self.unconsumed = 0
        self.owed = 0
        self.expected: int | None = None
        self.bodyless = False
        self.received_end = False
        self.sent_end = False
        self.sent_s = 0.0
        self.response_ended = False
        self.held = False
        self.go_due = False
        self.missing = False

    @property
    def delivery(self) -> Delivery:
        """What is known of the unit having executed the request; nobody runs a held one."""
        if self.held and self.state is StreamState.SENT:
            return Delivery.NOT_DISPATCHED
        return DELIVERY[self.state]


class Session:
    """What both sides share. Use GatewaySession or UnitSession.

    The owner feeds `receive`, calls `tick` at `next_deadline_s`, writes what `data_to_send` returns, and closes the
    transport after SessionClosed. The connection's credit is given back once bytes are here, a stream's when its owner
    has consumed them, both with the next write: who leaves his own unread stops no other.

    Units: every `now_s` is seconds of one monotonic clock; `unread_bytes` what was received and not yet consumed.
    Shapes: `due` the streams, and 0 for the connection, that are owed so much that a WINDOW leaves with the next write.
    """

    role: ClassVar[Role]

    def __init__(self, limits: Limits, now_s: float, jitter: Callable[[], float] = random.random) -> None:
        self.limits = limits
        self.state = State.CONNECTING
        self.streams: dict[int, Stream] = {}
        self.outbox = Outbox(limits.conn_window, limits.max_frame, limits.queue_bytes)
        self.close_reason = ""
        self.rtt_s: float | None = None
        self.last_received_s = now_s
        self.max_streams = self._agreed_streams = limits.max_streams
        self.stream_window = limits.stream_window
        self.conn_window = limits.conn_window
        self.max_frame = limits.max_frame
        self.ping_s, self.suspect_s, self.dead_s = limits.ping_s, limits.suspect_s, limits.dead_s
        self.token_expires_s = NEVER
        self._jitter = jitter
        self._hello_by_s = now_s + limits.hello_s
        self._next_ping_s = NEVER
        self._next_sync_s = NEVER
        self._timed_ping: tuple[bytes, float] | None = None
        self._ping_count = 0
        self._last_stream = 0
        self._receive_credit = limits.conn_window
        self._owed = 0
        self.unread_bytes = 0
        self._unconsumed: dict[int, int] = {}
        self.due: dict[int, bool] = {}
        self._deadlines: list[tuple[float, int]] = []

    # --- what the owner asks

    @property
    def has_frames(self) -> bool:
        """Is there anything to write?"""
        outbox = self.outbox
        return bool(outbox.control or outbox.ring or self.due)

    @property
    def idle(self) -> bool:
        """No open stream and nothing to send: a draining connection may close."""
        return not self.streams and not self.has_frames

    @property
    def next_deadline_s(self) -> float:
        """When `tick` must run at the latest."""
        if self.state is State.CLOSED:
            return NEVER
        if self.state is State.CONNECTING:
            return self._hello_by_s
        due = min(self._next_ping_s, self._next_sync_s, self.token_expires_s, self._silence_deadline_s())
        if self._deadlines:
            due = min(due, self._deadlines[0][0])
        stuck_s = self.outbox.stuck_since_s()
        return due if stuck_s is None else min(due, stuck_s + self.limits.stall_s)

    @property
    def unanswered_ping_s(self) -> float | None:
        """When the oldest PING was sent that has no PONG."""
        return None if self._timed_ping is None else self._timed_ping[1]

    @property
    def last_stream(self) -> int:
        """The highest stream id so far."""
        return self._last_stream

    def _silence_deadline_s(self) -> float:
        wait_s = self.suspect_s if self.state is State.ACTIVE else self.dead_s
        return self.last_received_s + wait_s

    def queued_bytes(self, stream: int) -> int:
        """Body bytes of the stream that have not left yet; 0 if it is closed."""
        queue = self.outbox.queues.get(stream)
        return 0 if queue is None else queue.queued_bytes

    @property
    def buffered_bytes(self) -> int:
        """Body bytes in this process: not yet sent, or received and not yet taken."""
        return self.outbox.queued_bytes + self.unread_bytes

    def take_flushed(self) -> list[tuple[int, int]]:
        """The (stream, body bytes) that left since the last call: room for more."""
        flushed, self.outbox.flushed = self.outbox.flushed, []
        return flushed

    def data_to_send(self, now_s: float, budget_bytes: int = WRITE_BYTES) -> list[bytes]:
        """The next messages, in order. What is returned counts as sent, whatever becomes of the write."""
        outbox = self.outbox
        if self.due:
            self._grant()
        messages = outbox.pop(budget_bytes, now_s)
        if outbox.heads:
            heads, outbox.heads = outbox.heads, []
            for stream in heads:
                self._head_sent(stream, now_s)
        if outbox.ends:
            ends, outbox.ends = outbox.ends, []
            for stream in ends:
                self._end_sent(stream)
        return messages

    def _head_sent(self, stream: int, now_s: float) -> None:
        raise NotImplementedError

    def _end_sent(self, stream: int) -> None:
        raise NotImplementedError

    # --- what the owner does

    def send_data(self, stream: int, data: bytes, end: bool = False) -> bool:
        """Queue body bytes; False if the stream is gone (its outcome was or will be told)."""
        if stream not in self.outbox.queues or self.state is State.CLOSED:
            return False
        self.outbox.put_body(stream, data, end)
        return True

    def consumed(self, stream: int, size: int) -> None:
        """`size` received body bytes left the owner's memory: the peer may send as many more."""
        if self.state is State.CLOSED:
            return
        record = self.streams.get(stream)
        if record is None:
            # PERF: `relay_small`: nearly always a whole answer, read at once.
            left = self._unconsumed.pop(stream, 0)
            if left > size:
                self._unconsumed[stream] = left - size
                left = size
            self.unread_bytes -= left
            return
        size = min(size, record.unconsumed)
        record.unconsumed -= size
        self.unread_bytes -= size
        if record.received_end:
            return
        record.owed += size
        if record.owed * 2 >= self.stream_window:
            self.due[stream] = True

    def discard(self, stream: int) -> None:
        """Nobody will read what is left of a finished stream."""
        self.unread_bytes -= self._unconsumed.pop(stream, 0)

    def _spend(self, size: int) -> None:
        """Body bytes that arrived take the connection's credit, and are owed. Raises: ProtocolViolation."""
        self._receive_credit -= size
        if self._receive_credit < 0:
            raise ProtocolViolation("credit", "more than the connection's credit")
        self._owed += size
        if self._owed * 2 >= self.conn_window:
            self.due[0] = True

    def _grant(self) -> None:
        """Give back what is owed, now that it can leave.

        SEC: not before: who sends on without reading uses up his credit, and one WINDOW a stream is all that waits.
        """
        due, self.due = self.due, {}
        if due.pop(0, False):
            self._control(fr.Window(0, self._owed))
            self._receive_credit += self._owed
            self._owed = 0
        for stream in due:
            record = self.streams[stream]
            self._control(fr.Window(stream, record.owed))
            record.receive_credit += record.owed
            record.owed = 0

    def reset(self, stream: int, code: ResetCode, reason: str = "", dispatched: bool | None = None) -> Delivery | None:
        """End the stream from this side: its one outcome. None if it has already ended."""
        record = self.streams.get(stream)
        if record is None:
            return None
        delivery = record.delivery
        if record.state is not StreamState.QUEUED and self.state is not State.CLOSED:
            self._control(fr.Reset(stream, code, reason, dispatched))
        self._finish(record, StreamState.ABORTED)
        return delivery

    def go_away(self, code: GoAwayCode, why: str = "", retry_ms: int = 0, jitter_ms: int = 0) -> None:
        """Start no new streams; the open ones finish. Before the greetings are over there are none: that is the end."""
        if self.state in (State.DRAINING, State.CLOSED):
            return
        if self.state is State.CONNECTING:
            self.close(code, why, retry_ms, jitter_ms)
            return
        self._control(fr.GoAway(code, retry_ms, jitter_ms, why))
        self.state = State.DRAINING
        self.close_reason = why

    def close(self, code: GoAwayCode, reason: str, retry_ms: int = 0, jitter_ms: int = 0) -> None:
        """End the session now: a last GOAWAY, then nothing; streams are left to `fail_all`."""
        if self.state is State.CLOSED:
            return
        self.outbox.control.append(fr.encode(fr.GoAway(code, retry_ms, jitter_ms, reason)))
        self._shut(reason)

    def _shut(self, reason: str) -> None:
        self.state = State.CLOSED
        self.close_reason = reason
        self.due.clear()
        for stream in list(self.outbox.queues):
            self.outbox.drop(stream)
        self.outbox.wholes.clear()

    def fail_all(self) -> list[tuple[int, Delivery]]:
        """The connection is lost: the outcome of every open stream, each once."""
        failed = [(record.id, record.delivery) for record in self.streams.values() if not record.response_ended]
        if self.state is not State.CLOSED:
            self._shut("lost")
        self.streams.clear()
        self._unconsumed.clear()
        self.unread_bytes = 0
        self._deadlines.clear()
        return failed

    # --- time

    def tick(self, now_s: float) -> list[Event]:
        """What the passing of time causes."""
        if self.state is State.CLOSED:
            return []
        if self.state is State.CONNECTING:
            return self._expire("no-hello", GoAwayCode.PROTOCOL) if now_s >= self._hello_by_s else []
        # NOTE: compared as `next_deadline_s` computes them, or rounding would make a timer come too early and again.
        if now_s >= self.last_received_s + self.dead_s:
            self._shut("silent")
            return [ev.SessionClosed("silent", "no frame from the peer")]
        if now_s >= self.token_expires_s:
            self.token_expires_s = NEVER
            self.go_away(GoAwayCode.AUTH_EXPIRED, "token-expired")
        if self.state is State.ACTIVE and now_s >= self.last_received_s + self.suspect_s:
            self.state = State.SUSPECT
        self._tick_control(now_s)
        return self._tick_streams(now_s)

    def _expire(self, reason: str, code: GoAwayCode) -> list[Event]:
        self.close(code, reason)
        return [ev.SessionClosed(reason, "")]

    def _tick_control(self, now_s: float) -> None:
        if now_s >= self._next_ping_s:
            self._ping_count += 1
            opaque = self._ping_count.to_bytes(8, "big")
            if self._timed_ping is None:
                self._timed_ping = (opaque, now_s)
            self._control(fr.Ping(opaque))
            self._next_ping_s = now_s + self.ping_s * (0.8 + 0.4 * self._jitter())
        if now_s >= self._next_sync_s:
            self._control(fr.Sync([s for s, record in self.streams.items() if record.state is not StreamState.QUEUED]))
            self._next_sync_s = now_s + self.limits.sync_s

    def _tick_streams(self, now_s: float) -> list[Event]:
        events: list[Event] = []
        while self._deadlines and self._deadlines[0][0] <= now_s:
            _, stream = heapq.heappop(self._deadlines)
            self._abort(stream, ResetCode.DEADLINE, "deadline", events)
        for stream in self.outbox.stuck_for(self.limits.stall_s, now_s):
            self._abort(stream, ResetCode.FLOW_CONTROL, "no credit", events)
        return events

    def _abort(self, stream: int, code: ResetCode, reason: str, events: list[Event]) -> None:
        record = self.streams.get(stream)
        if record is None:
            return
        told = record.response_ended
        dispatched = record.state is not StreamState.SENT if self.role is Role.UNIT else None
        delivery = self.reset(stream, code, reason, dispatched)
        if delivery is not None and not told:
            events.append(ev.StreamAborted(stream, code, reason, delivery, remote=False))

    def _add_deadline(self, stream: int, deadline_s: float) -> None:
        heap = self._deadlines
        heapq.heappush(heap, (deadline_s, stream))
        if len(heap) > 64 and len(heap) > 4 * len(self.streams):
            self._deadlines = [entry for entry in heap if entry[1] in self.streams]
            heapq.heapify(self._deadlines)

    # --- arrivals

    def receive_answer(self, message: bytes, now_s: float) -> Answer | None:
        """An ACK or a whole answer as nearly every request causes them; None for all else, which `receive` takes."""
        return None

    def receive(self, message: bytes, now_s: float) -> list[Event]:
        """Take one message of the peer; a violation ends in GOAWAY(PROTOCOL) and SessionClosed."""
        if self.state is State.CLOSED:
            return []
        self.last_received_s = now_s
        if self.state is State.SUSPECT:
            self.state = State.ACTIVE
        events: list[Event] = []
        try:
            frame = self._decode(message, events)
            if frame is not None:
                if (self.role, type(frame), self.state) not in CONNECTION_ROWS:
                    raise ProtocolViolation("state", f"{type(frame).__name__} while {self.state.value}")
                getattr(self, _ARRIVALS[type(frame)])(frame, now_s, events)
        except ProtocolViolation as violation:
            events += self._violated(violation)
        return events

    def violate(self, code: str, detail: str) -> list[Event]:
        """The peer broke a rule below this protocol, with a text message for one."""
        return self._violated(ProtocolViolation(code, detail))

    def _violated(self, violation: ProtocolViolation) -> list[Event]:
        if self.state is State.CLOSED:
            return []
        self.close(GoAwayCode.PROTOCOL, "violation")
        return [ev.SessionClosed("violation", f"{violation.code}: {violation.detail}")]

    def _decode(self, message: bytes, events: list[Event]) -> fr.Frame | None:
        try:
            return decode(message, self.max_frame)
        except ProtocolViolation as violation:
            if not violation.stream or self.state not in LIVE:
                raise
            self._refuse_stream(violation, message, events)
            return None

    def _refuse_stream(self, violation: ProtocolViolation, message: bytes, events: list[Event]) -> None:
        """Reset one stream for a field or status that HTTP forbids; its body bytes still count."""
        raise NotImplementedError

    def _arrive_window(self, frame: fr.Window, now_s: float, events: list[Event]) -> None:
        if frame.stream == 0:
            self.outbox.add_connection_credit(frame.credit)
        elif self._advance(frame) is not None:
            self.outbox.add_credit(frame.stream, frame.credit)

    def _arrive_data(self, frame: fr.Data, now_s: float, events: list[Event]) -> None:
        record = self._advance(frame)
        if record is None:
            self._spend(len(frame.body))
            return
        if record.received_end:
            raise ProtocolViolation("state", "a body that goes on after its end")
        if not self._take_body(record, frame.body, frame.end, events):
            return
        if record.response_ended:
            self.consumed(frame.stream, len(frame.body))
        else:
            events.append(ev.DataReceived(frame.stream, frame.body, frame.end))
        if frame.end:
            self._received_end(record)

    def _arrive_ping(self, frame: fr.Ping, now_s: float, events: list[Event]) -> None:
        self._answer(fr.Pong(frame.opaque))

    def _arrive_pong(self, frame: fr.Pong, now_s: float, events: list[Event]) -> None:
        if self._timed_ping is not None and frame.opaque == self._timed_ping[0]:
            self.rtt_s = now_s - self._timed_ping[1]
            self._timed_ping = None

    def _arrive_goaway(self, frame: fr.GoAway, now_s: float, events: list[Event]) -> None:
        if self.state is not State.CONNECTING:
            self.state = State.DRAINING
        events.append(ev.GoAwayReceived(frame.code, frame.retry_ms, frame.jitter_ms, frame.why))

    def _arrive_sync(self, frame: fr.Sync, now_s: float, events: list[Event]) -> None:
        # NOTE: frames cross on the wire, so a stream is reset only when two lists running lack it.
        known = set(frame.streams)
        for record in list(self.streams.values()):
            if record.id in known or record.state is StreamState.QUEUED:
                record.missing = False
            elif record.missing:
                self._abort(record.id, ResetCode.INTERNAL, "unknown to the peer", events)
            else:
                record.missing = True

    def _arrive_reset(self, frame: fr.Reset, now_s: float, events: list[Event]) -> None:
        raise NotImplementedError

    # --- parts of an arrival

    def _advance(self, frame: fr.Frame) -> Stream | None:
        """The frame's stream in its next state, or None if the stream has ended here and the frame is merely late."""
        stream: int = frame.stream  # type: ignore[union-attr]
        record = self.streams.get(stream)
        if record is None:
            if stream > self._last_stream:
                raise ProtocolViolation("stream", "a stream that was never opened")
            return None
        following = ROWS.get((self.role, type(frame), record.state))
        if following is None:
            raise ProtocolViolation("state", f"{type(frame).__name__} on a stream that is {record.state.value}")
        if following is not StreamState.ABORTED:
            record.state = following
        return record

    def _take_body(self, record: Stream, body: bytes, end: bool, events: list[Event]) -> bool:
        """Count body bytes against the windows and the announced length; False if that ended the stream."""
        size = len(body)
        if size:
            self._spend(size)
            record.receive_credit -= size
            if record.receive_credit < 0:
                raise ProtocolViolation("credit", "more than the stream's credit")
            record.unconsumed += size
            self.unread_bytes += size
        # NOTE: body bytes where HTTP has none are counted like others; whoever writes the answer drops them.
        if record.expected is not None and not record.bodyless:
            record.expected -= size
            if record.expected < 0 or (end and record.expected):
                self._abort(record.id, ResetCode.PROTOCOL, "a body of another length", events)
                return False
        return True

    def _received_end(self, record: Stream) -> None:
        raise NotImplementedError

    def _finish(self, record: Stream, state: StreamState) -> None:
        """Forget the stream: what it has not sent is dropped, what its owner has not read only of one that failed."""
        record.state = state
        del self.streams[record.id]
        self.outbox.drop(record.id)
        if self.due:
            self.due.pop(record.id, None)
        if record.unconsumed:
            if state is StreamState.DONE:
                self._unconsumed[record.id] = record.unconsumed
            else:
                self.unread_bytes -= record.unconsumed

    def _fit(self, header: bytes) -> bytes:
        """Raises: frames.Oversize for a header that fills a frame: the lower of both sides' maxima holds."""
        if len(header) > self.max_frame - fr.PREFIX_BYTES:
            raise fr.Oversize("a header over the negotiated frame")
        return header

    def _control(self, frame: fr.Frame) -> None:
        self.outbox.control.append(fr.encode(frame))

    def _answer(self, frame: fr.Frame) -> None:
        self.outbox.put_answer(fr.encode(frame))

    def _activate(self, peer: fr.Hello | fr.Welcome, now_s: float) -> None:
        """The lower of the two sides holds from here on."""
        limits = self.limits
        self.stream_window = min(limits.stream_window, peer.stream_window)
        self.conn_window = min(limits.conn_window, peer.conn_window)
        self.max_frame = min(limits.max_frame, peer.max_frame)
        # SYNC lists all of them in one frame.
        listable = (self.max_frame - fr.PREFIX_BYTES) // 4
        self.max_streams = self._agreed_streams = min(limits.max_streams, peer.max_streams, listable)
        self.outbox.credit = self._receive_credit = self.conn_window
        self.outbox.max_frame = self.max_frame
        self.state = State.ACTIVE
        self._next_ping_s = now_s + self.ping_s * (0.8 + 0.4 * self._jitter())
        self._next_sync_s = now_s + self.limits.sync_s


_ARRIVALS: Final[dict[type, str]] = {
    fr.Hello: "_arrive_hello",
    fr.Welcome: "_arrive_welcome",
    fr.RequestFrame: "_arrive_request",
    fr.Ack: "_arrive_ack",
    fr.ResponseFrame: "_arrive_response",
    fr.Data: "_arrive_data",
    fr.Window: "_arrive_window",
    fr.Reset: "_arrive_reset",
    fr.ResetAck: "_arrive_reset_ack",
    fr.Go: "_arrive_go",
    fr.Ping: "_arrive_ping",
    fr.Pong: "_arrive_pong",
    fr.GoAway: "_arrive_goaway",
    fr.Token: "_arrive_token",
    fr.TokenOk: "_arrive_token_ok",
    fr.Sync: "_arrive_sync",
    fr.Lease: "_arrive_lease",
}

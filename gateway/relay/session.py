"""A relay connection as a state machine: messages in, events out, messages to send. No socket, no clock, no thread.

`GatewaySession` asks, `UnitSession` answers; what both do is in `core`, the states and the one table of legal arrivals
in `states`, what leaves and in which order in `outbox`.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

from fastpath.frames import END_BODY, HOLD, pack_frame
from fastpath.heads import decode_answer
from gateway.errors import Delivery
from gateway.relay import events as ev
from gateway.relay import frames as fr
from gateway.relay.core import NEVER, WRITE_BYTES, Answer, Limits, NotSendable, Session, Stream
from gateway.relay.events import Event
from gateway.relay.frames import ProtocolViolation, ResetCode
from gateway.relay.passed import SessionState
from gateway.relay.states import ROWS, Role, State, StreamState

__all__ = [
    "NEVER",
    "WRITE_BYTES",
    "GatewaySession",
    "Limits",
    "NotSendable",
    "Role",
    "Session",
    "State",
    "StreamState",
    "UnitSession",
]

_BEFORE_DISPATCH: Final = frozenset({ResetCode.REFUSED, ResetCode.UPSTREAM_CONNECT, ResetCode.SHED})

_REQ: Final = int(fr.FrameType.REQ)

_AFTER_ACK: Final = {s: then for (role, kind, s), then in ROWS.items() if (role, kind) == (Role.GATEWAY, fr.Ack)}
_AFTER_RESPONSE: Final = frozenset(s for role, kind, s in ROWS if (role, kind) == (Role.GATEWAY, fr.ResponseFrame))
"""The table's rows for them."""

DEADLINE_GRACE_S: Final = 1.0


class GatewaySession(Session):
    """The side that asks: the worker that holds a unit's connection."""

    role = Role.GATEWAY

    def welcome(self, welcome: fr.Welcome, now_s: float, hello: fr.Hello) -> None:
        """Answer HELLO; `welcome` says the limits of this side."""
        self._control(welcome)
        self._activate(hello, now_s)

    def state_to_pass(self) -> SessionState | None:
        """What another process needs to go on with it; None while anything is open, or bytes were not consumed."""
        if self.state not in (State.ACTIVE, State.SUSPECT) or not self.idle or self._unconsumed:
            return None
        ping = self._timed_ping
        return SessionState(
            agreed_streams=self._agreed_streams,
            max_streams=self.max_streams,
            stream_window=self.stream_window,
            conn_window=self.conn_window,
            max_frame=self.max_frame,
            credit=self.outbox.credit,
            owed=self._owed,
            last_stream=self._last_stream,
            ping_s=self.ping_s,
            suspect_s=self.suspect_s,
            dead_s=self.dead_s,
            last_received_s=self.last_received_s,
            next_ping_s=self._next_ping_s,
            next_sync_s=self._next_sync_s,
            token_expires_s=self.token_expires_s,
            ping_count=self._ping_count,
            timed_ping=None if ping is None else (int.from_bytes(ping[0], "big"), ping[1]),
            rtt_s=self.rtt_s,
        )

    @classmethod
    def resumed(cls, limits: Limits, state: SessionState) -> GatewaySession:
        """Go on where another process let go; what the two sides have agreed upon holds, not `limits`."""
        session = cls(limits, state.last_received_s)
        session._agreed_streams, session.max_streams = state.agreed_streams, state.max_streams
        session.stream_window, session.conn_window = state.stream_window, state.conn_window
        session.max_frame = session.outbox.max_frame = state.max_frame
        session.outbox.credit = state.credit
        session._owed, session._receive_credit = state.owed, state.conn_window - state.owed
        session._last_stream = state.last_stream
        session.ping_s, session.suspect_s, session.dead_s = state.ping_s, state.suspect_s, state.dead_s
        session._hello_by_s = NEVER
        session._next_ping_s, session._next_sync_s = state.next_ping_s, state.next_sync_s
        session.token_expires_s = state.token_expires_s
        session._ping_count = state.ping_count
        if state.timed_ping is not None:
            session._timed_ping = (state.timed_ping[0].to_bytes(8, "big"), state.timed_ping[1])
        session.rtt_s = state.rtt_s
        session.state = State.ACTIVE
        return session

    @property
    def available(self) -> bool:
        """May a stream be started now?"""
        return self.state in (State.ACTIVE, State.SUSPECT) and len(self.streams) < self.max_streams

    def send_request(self, request: fr.Request, deadline_s: float, body: bytes = b"", end: bool = True) -> int:
        """Start a stream; its id. Units: `deadline_s` a point of the session's clock.

        Raises: NotSendable, frames.Oversize.
        """
        if self.state not in (State.ACTIVE, State.SUSPECT):
            raise NotSendable("not-ready" if self.state is State.CONNECTING else self.state.value)
        if len(self.streams) >= self.max_streams:
            raise NotSendable("streams")
        outbox = self.outbox
        if outbox.queued_bytes and not outbox.takes_stream(len(body)):
            raise NotSendable("queue")
        if self._last_stream >= fr.MAX_STREAM - 2:
            self.go_away(fr.GoAwayCode.DRAIN, "stream-ids-spent")
            raise NotSendable("draining")
        header = self._fit(fr.encode_request_header(request))
        self._last_stream = stream = self._last_stream + 2 if self._last_stream else 1
        record = Stream(stream, StreamState.QUEUED, self.stream_window, deadline_s)
        record.bodyless = request.method == "HEAD"
        record.held = request.hold
        self.streams[stream] = record
        self._add_deadline(stream, deadline_s)
        if end and not body and not request.hold:
            outbox.put_whole(stream, pack_frame(_REQ, END_BODY, stream, header))
            return stream
        outbox.open(stream, self.stream_window)
        outbox.put_head(stream, fr.FrameType.REQ, HOLD if request.hold else 0, header)
        outbox.put_body(stream, body, end)
        return stream

    def send_go(self, stream: int) -> None:
        """Release a held request."""
        record = self.streams.get(stream)
        if record is None or not record.held:
            return
        record.held = False
        if record.state is StreamState.QUEUED:
            # Control frames overtake: GO would arrive before its request.
            record.go_due = True
        else:
            self._control(fr.Go(stream))

    def accept_token(self, exp: int, expires_s: float) -> None:
        """Units: `exp` seconds since 1970, `expires_s` the same point on the session's clock."""
        self.token_expires_s = expires_s
        self._control(fr.TokenOk(exp))

    def receive(self, message: bytes, now_s: float) -> list[Event]:
        """See Session."""
        answer = self.receive_answer(message, now_s)
        if answer is None:
            return super().receive(message, now_s)
        stream, response, body = answer
        return [ev.Acked(stream) if response is None else ev.ResponseReceived(stream, response, body, True)]

    def receive_answer(self, message: bytes, now_s: float) -> Answer | None:
        """See Session. PERF: `relay_small`: of these every request causes two; as events they cost 1 us more each."""
        if self.state is not State.ACTIVE:
            return None
        decoded = decode_answer(message, self.max_frame)
        if decoded is None:
            return None
        answer = self._take_ack(decoded[0]) if len(decoded) == 1 else self._take_whole(*decoded)
        if answer is not None:
            self.last_received_s = now_s
        return answer

    def _take_ack(self, stream: int) -> Answer | None:
        """None if it is not plainly legal: then it goes the long way."""
        record = self.streams.get(stream)
        following = None if record is None or record.held else _AFTER_ACK.get(record.state)
        if record is None or following is None:
            return None
        record.state = following
        return stream, None, b""

    def _take_whole(
        self,
        stream: int,
        status: int,
        fields: fr.Fields,
        length: int | None,
        upstream_ms: int,
        body: bytes,
        end: bool,
    ) -> Answer | None:
        """None if the answer is not plainly legal and whole, as `_take_ack`."""
        record = self.streams.get(stream)
        size = len(body)
        if record is None or not end or not record.sent_end or record.state not in _AFTER_RESPONSE:
            return None
        if record.bodyless or status in (204, 304) or (length is not None and length != size):
            return None
        if size > record.receive_credit or size > self._receive_credit:
            return None
        self._spend(size)
        record.unconsumed += size
        self.unread_bytes += size
        self._finish(record, StreamState.DONE)
        return stream, fr.Response(status, fields, length, upstream_ms), body

    def _head_sent(self, stream: int, now_s: float) -> None:
        record = self.streams.get(stream)
        if record is not None and record.state is StreamState.QUEUED:
            record.state = StreamState.SENT
            record.sent_s = now_s
            if record.go_due:
                self._control(fr.Go(stream))

    def _end_sent(self, stream: int) -> None:
        record = self.streams.get(stream)
        if record is not None:
            record.sent_end = True

    def _received_end(self, record: Stream) -> None:
        record.received_end = True
        if not record.sent_end:
            # The answer is whole although the request is not: the unit need not wait for the rest.
            self._control(fr.Reset(record.id, ResetCode.CANCEL, "answered", True))
        self._finish(record, StreamState.DONE)

    def _refuse_stream(self, violation: ProtocolViolation, message: bytes, events: list[Event]) -> None:
        record = self.streams.get(violation.stream)
        if violation.stream > self._last_stream:
            raise violation
        if record is not None and (self.role, fr.ResponseFrame, record.state) not in ROWS:
            raise ProtocolViolation("state", f"ResponseFrame on a stream that is {record.state.value}")
        self._spend(_body_bytes(message))
        self._abort(violation.stream, ResetCode.PROTOCOL, violation.detail, events)

    def _arrive_hello(self, frame: fr.Hello, now_s: float, events: list[Event]) -> None:
        if self._next_ping_s != NEVER or self._hello_by_s == NEVER:
            raise ProtocolViolation("state", "a second HELLO")
        self._hello_by_s = NEVER
        events.append(ev.HelloReceived(frame))

    def _arrive_ack(self, frame: fr.Ack, now_s: float, events: list[Event]) -> None:
        record = self._advance(frame)
        if record is None:
            return
        if record.held:
            # SEC: a unit that does not keep this rule may have run it.
            record.held = False
            raise ProtocolViolation("state", "an ACK of a held request before GO")
        events.append(ev.Acked(frame.stream))

    def _arrive_response(self, frame: fr.ResponseFrame, now_s: float, events: list[Event]) -> None:
        record = self._advance(frame)
        if record is None:
            self._spend(len(frame.body))
            return
        record.expected = frame.response.length
        record.bodyless = record.bodyless or frame.response.status in (204, 304)
        if not self._take_body(record, frame.body, frame.end, events):
            return
        events.append(ev.ResponseReceived(frame.stream, frame.response, frame.body, frame.end))
        if frame.end:
            self._received_end(record)

    def _arrive_reset(self, frame: fr.Reset, now_s: float, events: list[Event]) -> None:
        record = self._advance(frame)
        if record is None:
            return
        delivery = record.delivery
        if delivery is Delivery.UNKNOWN or (record.held and frame.dispatched):
            delivery = _told_delivery(frame)
        elif delivery is Delivery.DISPATCHED and frame.dispatched is False and frame.code in _BEFORE_DISPATCH:
            # ACK says that the service may see the request; by now the unit knows that it took no byte of it.
            delivery = Delivery.NOT_DISPATCHED
        self._finish(record, StreamState.ABORTED)
        events.append(ev.StreamAborted(frame.stream, frame.code, frame.reason, delivery, remote=True))

    def _arrive_reset_ack(self, frame: fr.ResetAck, now_s: float, events: list[Event]) -> None:
        if frame.stream > self._last_stream:
            raise ProtocolViolation("stream", "a stream that was never opened")
        events.append(ev.ResetAcked(frame.stream, frame.dispatched))

    def _arrive_token(self, frame: fr.Token, now_s: float, events: list[Event]) -> None:
        self.outbox.check_answers()
        events.append(ev.TokenReceived(frame.token))

    def _arrive_lease(self, frame: fr.Lease, now_s: float, events: list[Event]) -> None:
        self.max_streams = min(self._agreed_streams, frame.max_streams)


class UnitSession(Session):
    """The side that answers: the agent at a unit. HELLO is the first thing it has to send."""

    role = Role.UNIT

    def __init__(
        self, limits: Limits, now_s: float, hello: fr.Hello, jitter: Callable[[], float] = random.random
    ) -> None:
        super().__init__(limits, now_s, jitter)
        self._control(hello)

    def send_ack(self, stream: int) -> bool:
        """Say, before its first byte is written, that the local service may see the request; False if it is gone."""
        record = self.streams.get(stream)
        if record is None:
            return False
        if record.state is not StreamState.SENT or record.held:
            raise RuntimeError("an ACK that the stream's state does not allow")
        record.state = StreamState.ACCEPTED
        self._control(fr.Ack(stream))
        return True

    def send_response(self, stream: int, response: fr.Response, body: bytes = b"", end: bool = False) -> bool:
        """The answer's head; `send_data` goes on with its body. False if the stream is gone.

        Raises: frames.Oversize.
        """
        record = self.streams.get(stream)
        if record is None:
            return False
        if record.state is not StreamState.ACCEPTED:
            raise RuntimeError("a response that the stream's state does not allow")
        header = self._fit(fr.encode_response_header(response))
        record.state = StreamState.STREAMING
        if not end or not self.outbox.put_whole_answer(stream, fr.FrameType.RES, header, body):
            self.outbox.put_head(stream, fr.FrameType.RES, 0, header)
            self.outbox.put_body(stream, body, end)
        return True

    def renew_token(self, token: str) -> None:
        """Send a fresh token before the old one runs out. Raises: frames.Oversize."""
        frame = fr.encode(fr.Token(token))
        self._fit(frame[fr.PREFIX_BYTES :])
        self.outbox.control.append(frame)

    def send_lease(self, max_streams: int) -> None:
        """How many streams this unit takes at once from now on."""
        self._control(fr.Lease(max_streams))

    def _head_sent(self, stream: int, now_s: float) -> None:
        return

    def _end_sent(self, stream: int) -> None:
        record = self.streams.get(stream)
        if record is None:
            return
        record.response_ended = True
        # Whoever answered is done with the request, read or not.
        self.unread_bytes -= record.unconsumed
        record.unconsumed = 0
        if record.received_end:
            self._finish(record, StreamState.DONE)

    def _received_end(self, record: Stream) -> None:
        record.received_end = True
        if record.response_ended:
            self._finish(record, StreamState.DONE)

    def _refuse_stream(self, violation: ProtocolViolation, message: bytes, events: list[Event]) -> None:
        if violation.stream <= self._last_stream:
            raise violation
        self._last_stream = violation.stream
        self._spend(_body_bytes(message))
        self._answer(fr.Reset(violation.stream, ResetCode.PROTOCOL, violation.detail, False))

    def _arrive_welcome(self, frame: fr.Welcome, now_s: float, events: list[Event]) -> None:
        self.ping_s = frame.ping_ms / 1000
        self.dead_s = frame.dead_ms / 1000
        self.suspect_s = min(self.suspect_s, self.dead_s)
        self._activate(frame, now_s)
        events.append(ev.WelcomeReceived(frame))

    def _arrive_request(self, frame: fr.RequestFrame, now_s: float, events: list[Event]) -> None:
        if frame.stream <= self._last_stream:
            raise ProtocolViolation("stream", "a stream id that does not ascend")
        self._last_stream = frame.stream
        if self.state is State.DRAINING or len(self.streams) >= self.max_streams:
            self._spend(len(frame.body))
            reason = "draining" if self.state is State.DRAINING else "streams"
            self._answer(fr.Reset(frame.stream, ResetCode.REFUSED, reason, False))
            return
        # The gateway keeps the deadline; this side ends what a lost RESET would leave.
        deadline_s = now_s + frame.request.deadline_ms / 1000 + DEADLINE_GRACE_S
        record = Stream(frame.stream, StreamState.SENT, self.stream_window, deadline_s)
        record.expected = frame.request.length
        record.held = frame.request.hold
        self.streams[frame.stream] = record
        self.outbox.open(frame.stream, self.stream_window)
        if not self._take_body(record, frame.body, frame.end, events):
            events.clear()
            return
        self._add_deadline(frame.stream, deadline_s)
        events.append(ev.RequestReceived(frame.stream, frame.request, frame.body, frame.end))
        if frame.end:
            self._received_end(record)

    def _arrive_go(self, frame: fr.Go, now_s: float, events: list[Event]) -> None:
        record = self._advance(frame)
        if record is None:
            return
        if not record.held:
            raise ProtocolViolation("state", "GO for a request that is not held")
        record.held = False
        events.append(ev.GoReceived(frame.stream))

    def _arrive_reset(self, frame: fr.Reset, now_s: float, events: list[Event]) -> None:
        record = self._advance(frame)
        if record is None:
            return
        dispatched = record.state is not StreamState.SENT
        if not record.response_ended:
            delivery = record.delivery
            events.append(ev.StreamAborted(frame.stream, frame.code, frame.reason, delivery, remote=True))
        self._finish(record, StreamState.ABORTED)
        self._answer(fr.ResetAck(frame.stream, dispatched))

    def _arrive_token_ok(self, frame: fr.TokenOk, now_s: float, events: list[Event]) -> None:
        events.append(ev.TokenAccepted(frame.exp))


def _told_delivery(frame: fr.Reset) -> Delivery:
    """What a RESET before any ACK says of the request."""
    if frame.dispatched is None:
        return Delivery.NOT_DISPATCHED if frame.code in _BEFORE_DISPATCH else Delivery.UNKNOWN
    return Delivery.DISPATCHED if frame.dispatched else Delivery.NOT_DISPATCHED


def _body_bytes(message: bytes) -> int:
    return len(message) - fr.PREFIX_BYTES - int.from_bytes(message[8:12], "big")

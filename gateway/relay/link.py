"""A session joined to a socket: one greenlet reads, one writes, one timer ticks; nobody else touches the socket."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

import gevent

from gateway.errors import Delivery
from gateway.relay import events as ev
from gateway.relay.buffers import Buffers
from gateway.relay.core import NEVER, NotSendable, Session
from gateway.relay.frames import Request, ResetCode, Response
from gateway.relay.readable import PassedOn
from gateway.relay.session import GatewaySession
from gateway.relay.states import State

LOST: Final = 0x100
DROPPED: Final = 0x101
"""Reset codes of this machine's own: the unit's connection ended; a worker had no room for what nobody took of the
stream. Between workers they travel in RESET."""

CLOSE_GRACE_S: Final = 2.0
"""How long a closing link may take to write what is left and to hear the peer's close."""

WRITES_AT_ONCE: Final = 8
"""Writes of about 32 KiB that the hub makes by itself before others have their turn."""

_OPEN: Final = (State.ACTIVE, State.SUSPECT)


TURN_COST: Final = 262_144
MESSAGE_COST: Final = 2_048
"""A reader lets others run after so many bytes, a message counting as 2 KiB more: about a millisecond's work."""

NEXT_TURN_S: Final = 1e-6
"""A timer comes after the hub has looked at its sockets; sleeping for nothing does not, while callbacks wait."""

WRITES_A_TURN: Final = 8
"""After so many writes of 32 KiB a writer whose socket takes everything lets others run."""


class Carrier(Protocol):
    """Whole messages over a stream socket."""

    def read(self) -> list[bytes] | None:
        """The next messages, None at the end. Yields to the hub: yes. Raises: OSError, CarrierFault."""

    def write(self, messages: list[bytes]) -> None:
        """Yields to the hub: yes. Raises: OSError."""

    def write_now(self, messages: list[bytes]) -> bool:
        """What the socket takes at once; False if a rest is kept for the next `write`. Raises: OSError."""

    def has_replies(self) -> bool:
        """Has the carrier something of its own to write?"""

    def say_goodbye(self, code: int, reason: str) -> None:
        """Write what the carrier's close needs. Yields to the hub: yes. Raises: OSError."""

    def linger(self) -> None:
        """Throw away what still arrives, until the end. Yields to the hub: yes. Raises: OSError."""

    def abort(self) -> None:
        """Make every read and write of the socket end at once."""

    def close(self) -> None: ...


class CarrierFault(Exception):
    """The peer broke the carrier's own rules; `close_code` is what it is told."""

    def __init__(self, close_code: int, detail: str) -> None:
        super().__init__(detail)
        self.close_code = close_code


@dataclass(slots=True)
class Failure:
    """The outcome of a stream that has no whole answer. `lost`: its connection ended."""

    code: int
    reason: str
    delivery: Delivery
    lost: bool = False


class Sink(Protocol):
    """Who is told what becomes of one stream; its methods run inside the link and may not block."""

    def on_ack(self) -> None: ...
    def on_response(self, response: Response, body: bytes, end: bool) -> None: ...
    def on_data(self, body: bytes, end: bool) -> None: ...
    def on_failed(self, failure: Failure) -> None: ...
    def on_flushed(self, size: int) -> None: ...
    def on_room(self) -> None: ...


class Link:
    """One peer. `run` is the reader; it returns when the connection has ended.

    PERF: `relay_small`: what all callers of one turn of the hub have to send leaves in one write, made from the hub
    itself; a writer greenlet takes over where the socket is full or the link ends, and is there only as long as it has
    something to write: an idle link is one greenlet.
    Shapes: `lost_reason` is a word for why it ended, "" while it lives; `passed_on`: another process has it now;
    `_crowd` the open streams that stand in line for room, and the bytes that each wants room for.
    """

    def __init__(
        self,
        session: Session,
        carrier: Carrier,
        clock: Callable[[], float] = time.monotonic,
        buffers: Buffers | None = None,
    ) -> None:
        self.session = session
        self.carrier = carrier
        self.clock = clock
        self.buffers = buffers if buffers is not None else Buffers()
        self.sinks: dict[int, Sink] = {}
        self._crowd: dict[int, int] = {}
        self._telling = False
        self.lost_reason = ""
        self.ended = False
        self.passed_on = False
        self._writer: Any = None
        self._loop = gevent.get_hub().loop
        self._flush_due = False
        self._writing = False
        self._timer: Any = None
        self._timer_due_s = NEVER
        self._farewell: tuple[int, str] | None = None

    # --- life

    def run(self) -> None:
        """Read until the connection ends, then fail what is open, or until it is passed on. Yields to the hub: yes."""
        if self.session.has_frames or self.carrier.has_replies():
            self._send_soon()
        self._schedule()
        try:
            self._read_loop()
        finally:
            if not self.passed_on:
                self._wind_up()

    def _wind_up(self) -> None:
        self._end("lost")
        self._wake_writer()
        self._writer.join(timeout=CLOSE_GRACE_S)
        self._writer.kill()
        self._stop_timer()
        self.carrier.close()

    def _read_loop(self) -> None:
        turn = 0
        receive_answer = self.session.receive_answer
        try:
            while True:
                messages = self.carrier.read()
                if messages is None:
                    return
                now_s = self.clock()
                for message in messages:
                    answer = receive_answer(message, now_s)
                    if answer is None:
                        self._handle(self.session.receive(message, now_s))
                    else:
                        self._pass_on(*answer)
                    turn += len(message) + MESSAGE_COST
                    if turn >= TURN_COST:
                        # NOTE: reading does not yield while bytes are there, and a peer may see to it that they are.
                        turn = 0
                        if self.session.has_frames:
                            self._send_soon()
                        gevent.sleep(NEXT_TURN_S)
                if self.session.has_frames or self.carrier.has_replies():
                    self._send_soon()
                self.on_read()
                self._close_if_drained()
        except CarrierFault as fault:
            self._refuse(fault)
        except (OSError, PassedOn):
            pass

    def _refuse(self, fault: CarrierFault) -> None:
        self._bid_farewell(fault.close_code, str(fault))
        self._handle(self.session.violate("carrier", str(fault)))
        with contextlib.suppress(OSError):
            # NOTE: closing with unread bytes would send RST, and the peer would not see why.
            self.carrier.linger()

    def _write_loop(self) -> None:
        session, carrier = self.session, self.carrier
        turn = 0
        try:
            while True:
                messages = session.data_to_send(self.clock())
                if messages or carrier.has_replies():
                    carrier.write(messages)
                    self._tell_flushed()
                    self._close_if_drained()
                    turn += 1
                    if turn % WRITES_A_TURN == 0:
                        gevent.sleep(NEXT_TURN_S)
                elif self._farewell is not None:
                    carrier.say_goodbye(*self._farewell)
                    return
                elif self.ended:
                    return
                else:
                    self._writer = None
                    self._writing = False
                    self._tell_room()
                    return
        except OSError:
            carrier.abort()

    def _wake_writer(self) -> None:
        """There may be something for the writer greenlet: to write or to end."""
        if self._writer is None:
            self._writing = True
            self._writer = gevent.spawn(self._write_loop)

    def _send_soon(self) -> None:
        """Write what there is once the hub has run whoever is ready now."""
        if not self._flush_due:
            self._flush_due = True
            self._loop.run_callback(self._flush)

    def _flush(self) -> None:
        """Called from the hub: may not wait. Whatever it leaves is the writer greenlet's."""
        self._flush_due = False
        if self._writing:
            return
        if self._farewell is None and not self.ended and self.session.state in _OPEN:
            try:
                if self._write_now():
                    return
            except OSError:
                self.carrier.abort()
                return
        self._wake_writer()

    def _write_now(self) -> bool:
        """False if there is more than the socket or one turn takes; what is under way is then the greenlet's."""
        session, carrier = self.session, self.carrier
        for _ in range(WRITES_AT_ONCE):
            if not session.has_frames and not carrier.has_replies():
                return True
            whole = carrier.write_now(session.data_to_send(self.clock()))
            # NOTE: without a byte that left there is more room, too, once a stream has no credit of its own.
            if session.outbox.flushed or self._crowd:
                self._tell_flushed()
            if not whole:
                # NOTE: nothing may overtake the rest that the carrier keeps.
                self._writing = True
                break
        return False

    def _tell_flushed(self) -> None:
        for stream, size in self.session.take_flushed():
            sink = self.sinks.get(stream)
            if sink is not None:
                sink.on_flushed(size)
        if self._crowd:
            self._tell_room()

    def _tell_room(self) -> None:
        """Who stands in line is told in turn, the next once the first has taken his room."""
        crowd, outbox = self._crowd, self.session.outbox
        if self._telling:
            return
        self._telling = True
        try:
            while crowd:
                stream = next(iter(crowd))
                if not outbox.has_room(crowd[stream]):
                    return
                self.sinks[stream].on_room()
                if next(iter(crowd), None) == stream:
                    # Its greenlet takes it as soon as it runs.
                    return
        finally:
            self._telling = False

    def _part_with(self, stream: int) -> Sink | None:
        """The sink of a stream that has ended, which stands in no line any more."""
        if self._crowd:
            self._crowd.pop(stream, None)
        return self.sinks.pop(stream, None)

    def poke(self) -> None:
        """There may be something to write, or an earlier deadline."""
        if self.session.has_frames:
            self._send_soon()

    def close(self, code: int, reason: str) -> None:
        """End the link: what is queued is written, then the carrier closes. `code`: of the carrier."""
        self._bid_farewell(code, reason)
        self._end(reason)

    def _bid_farewell(self, code: int, reason: str) -> None:
        # NOTE: a word of ours would stand amid what the next owner says.
        if self._farewell is None and not self.passed_on:
            self._farewell = (code, reason)
            self._wake_writer()
            gevent.spawn_later(CLOSE_GRACE_S, self.carrier.abort)

    def _close_if_drained(self) -> None:
        """A draining connection without streams ends, if this side may end it; a closed session ends in any case."""
        if self.session.state is State.CLOSED and not self.ended:
            self.close(1001, self.session.close_reason)
        if self.session.state is State.DRAINING and self.session.idle and self.may_close_idle():
            self.close(1001, self.session.close_reason or "drained")

    def may_close_idle(self) -> bool:
        return True

    def _end(self, reason: str) -> None:
        if self.ended:
            return
        self.ended = True
        self.lost_reason = self.lost_reason or self.session.close_reason or reason
        self._crowd.clear()
        for stream, delivery in self.session.fail_all():
            sink = self.sinks.pop(stream, None)
            if sink is not None:
                sink.on_failed(Failure(LOST, self.lost_reason, delivery, lost=True))
        self.on_ended()
        self._wake_writer()

    @property
    def at_rest(self) -> bool:
        """Is it alive, and nobody about to write or to close?"""
        return not (self.ended or self._flush_due or self._writing or self._writer is not None or self._farewell)

    def _let_go(self) -> None:
        """Another process has it, and nothing of it was open: forget it without a word to the peer."""
        self.passed_on = self.ended = True
        self.session.fail_all()
        self._stop_timer()

    def on_read(self) -> None:
        """Messages came, and what they say has been passed on."""

    def on_ended(self) -> None:
        """The connection is over and its streams have failed."""

    # --- time

    def _schedule(self) -> None:
        due_s = self.session.next_deadline_s
        if due_s == NEVER or self.ended:
            return
        self._stop_timer()
        self._timer_due_s = due_s
        self._timer = gevent.get_hub().loop.timer(max(0.0, due_s - self.clock()))
        self._timer.start(self._on_timer)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.stop()
            self._timer.close()
            self._timer = None
        self._timer_due_s = NEVER

    def _on_timer(self) -> None:
        self._timer_due_s = NEVER
        self._handle(self.session.tick(self.clock()))
        self._send_soon()
        self._schedule()

    # --- streams

    def start(self, request: Request, deadline_s: float, sink: Sink, body: bytes, end: bool) -> int:
        """Send a request; what becomes of it is told to `sink`. Raises: NotSendable, frames.Oversize."""
        session = self.session
        if not isinstance(session, GatewaySession) or self.ended:
            raise NotSendable("closed")
        stream = session.send_request(request, deadline_s, body, end)
        self.sinks[stream] = sink
        if deadline_s < self._timer_due_s:
            self._schedule()
        self._send_soon()
        if body:
            self.buffers.arrived(len(body))
        return stream

    def has_room(self, stream: int, size: int) -> bool:
        """May the stream put so many body bytes now? True if it is gone, too: `send_data` says so.

        Else it stands in line, first come, first served, until it puts them or ends: `on_room` has it ask again.
        """
        crowd = self._crowd
        if not size or stream not in self.sinks:
            return True
        if (not crowd or next(iter(crowd)) == stream) and self.session.outbox.has_room(size):
            return True
        crowd[stream] = size
        return False

    def send_data(self, stream: int, data: bytes, end: bool) -> bool:
        """For whom `has_room` has said so. False if the stream is gone."""
        sent = self.session.send_data(stream, data, end)
        if self._crowd:
            self._crowd.pop(stream, None)
            self._tell_room()
        self._send_soon()
        self.buffers.arrived(len(data))
        return sent

    def go(self, stream: int) -> None:
        """Release a held request."""
        if isinstance(self.session, GatewaySession):
            self.session.send_go(stream)
            self.poke()

    def consumed(self, stream: int, size: int) -> None:
        """`size` body bytes of the stream left this process."""
        session = self.session
        session.consumed(stream, size)
        if session.has_frames:
            self._send_soon()

    def reset(self, stream: int, code: ResetCode, reason: str = "", dispatched: bool | None = None) -> Delivery | None:
        """End the stream from this side; None if it has ended already. Its sink is not told."""
        self._part_with(stream)
        self.session.discard(stream)
        delivery = self.session.reset(stream, code, reason, dispatched)
        if self._crowd:
            self._tell_room()
        self.poke()
        return delivery

    # --- events

    def _pass_on(self, stream: int, response: Response | None, body: bytes) -> None:
        """An ACK or a whole answer."""
        if response is None:
            sink = self.sinks.get(stream)
            if sink is not None:
                sink.on_ack()
            return
        # NOTE: its request has left whole: it stands in no line.
        sink = self.sinks.pop(stream, None)
        if sink is not None:
            sink.on_response(response, body, True)
        else:
            self.session.consumed(stream, len(body))

    def _handle(self, events: list[ev.Event]) -> None:
        for event in events:
            handler = _EVENTS.get(type(event))
            if handler is not None:
                getattr(self, handler)(event)
        if self._crowd:
            self._tell_room()

    def _on_ack(self, event: ev.Acked) -> None:
        sink = self.sinks.get(event.stream)
        if sink is not None:
            sink.on_ack()

    def _on_response(self, event: ev.ResponseReceived) -> None:
        sink = self._part_with(event.stream) if event.end else self.sinks.get(event.stream)
        if sink is not None:
            sink.on_response(event.response, event.body, event.end)
            self.buffers.arrived(len(event.body))
        else:
            self.session.consumed(event.stream, len(event.body))

    def _on_data(self, event: ev.DataReceived) -> None:
        sink = self._part_with(event.stream) if event.end else self.sinks.get(event.stream)
        if sink is not None:
            sink.on_data(event.body, event.end)
            self.buffers.arrived(len(event.body))
        else:
            self.session.consumed(event.stream, len(event.body))

    def _on_aborted(self, event: ev.StreamAborted) -> None:
        sink = self._part_with(event.stream)
        if sink is not None:
            lost = event.remote and event.code == LOST
            sink.on_failed(Failure(event.code, event.reason, event.delivery, lost))

    def _on_closed(self, event: ev.SessionClosed) -> None:
        self.lost_reason = self.lost_reason or event.reason
        self._end(event.reason)
        if event.reason == "silent":
            self.carrier.abort()
        else:
            self._bid_farewell(1002 if event.reason == "violation" else 1001, event.reason)

    def _on_hello(self, event: ev.HelloReceived) -> None: ...

    def _on_welcome(self, event: ev.WelcomeReceived) -> None: ...

    def _on_request(self, event: ev.RequestReceived) -> None: ...

    def _on_go(self, event: ev.GoReceived) -> None: ...

    def _on_goaway(self, event: ev.GoAwayReceived) -> None: ...

    def _on_token(self, event: ev.TokenReceived) -> None: ...


_EVENTS: Final = {
    ev.Acked: "_on_ack",
    ev.ResponseReceived: "_on_response",
    ev.DataReceived: "_on_data",
    ev.StreamAborted: "_on_aborted",
    ev.SessionClosed: "_on_closed",
    ev.HelloReceived: "_on_hello",
    ev.WelcomeReceived: "_on_welcome",
    ev.RequestReceived: "_on_request",
    ev.GoReceived: "_on_go",
    ev.GoAwayReceived: "_on_goaway",
    ev.TokenReceived: "_on_token",
}


def quietly_shut(sock: Any) -> None:
    """End both directions of a socket, whatever its state."""
    with contextlib.suppress(OSError):
        sock.shutdown(2)

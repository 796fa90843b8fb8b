"""A gateway's and a unit's session joined by two byte pipes; a seed rules callers, local service and network.

No socket, no clock: time is a number that a step may add to, the pipes carry WebSocket frames a few bytes at a time,
and everything that an owner may do to a session is a step. What must never happen is asserted where it would be seen.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from fastpath.frames import OP_BINARY, Decoder, encode_frame
from gateway.errors import Delivery
from gateway.relay import events as ev
from gateway.relay import frames as fr
from gateway.relay.core import Limits, NotSendable, Session
from gateway.relay.frames import GoAwayCode, ResetCode
from gateway.relay.outbox import Place
from gateway.relay.session import GatewaySession, UnitSession
from gateway.relay.states import State, StreamState

MAX_FRAME = 2_048
FINE = {"silent", "no-hello"}
"""Why a session of honest peers may end by itself."""


class Call:
    """One accepted request. `sent` is what its caller has handed over, `outcomes` what he was told."""

    def __init__(self, body: bytes, deadline_s: float, hold: bool, head: bool) -> None:
        self.body = body
        self.sent = 0
        self.deadline_s = deadline_s
        self.hold = hold
        self.head = head
        self.received = bytearray()
        self.outcomes: list[tuple[str, Delivery | None]] = []


class Served:
    """What the unit's local service knows of a request: `ran` once a byte of it was written there."""

    def __init__(self) -> None:
        self.arrived = bytearray()
        self.whole = False
        self.ran = False
        self.answer: bytes | None = None
        self.given = 0


class World:
    """`step` does one random thing; `finish` ends the connection or lets all that is open come to its end."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now_s = 0.0
        self.limits = self._limits()
        self.gateway: Any = GatewaySession(self.limits, 0.0, self.random.random)
        offer = self._limits()
        self.unit: Any = UnitSession(offer, 0.0, _hello(offer), self.random.random)
        self.agreed = (
            min(self.limits.stream_window, offer.stream_window),
            min(self.limits.conn_window, offer.conn_window),
        )
        self.pipes = {"down": bytearray(), "up": bytearray()}
        self.decoders = {
            "down": Decoder(masked=False, max_bytes=MAX_FRAME),
            "up": Decoder(masked=True, max_bytes=MAX_FRAME),
        }
        self.calls: dict[int, Call] = {}
        self.served: dict[int, Served] = {}
        self.held: dict[str, dict[int, int]] = {"gateway": {}, "unit": {}}
        self.over = False
        self.moves = 0
        while self.random.random() < 0.98 and State.CONNECTING in (self.gateway.state, self.unit.state):
            self.write()
            self.carry()

    def _limits(self) -> Limits:
        pick = self.random.choice
        return Limits(
            max_streams=pick([1, 2, 8]),
            stream_window=pick([1, 64, 1_000]),
            conn_window=pick([1, 100, 3_000]),
            max_frame=pick([1_024, MAX_FRAME]),
        )

    # --- steps

    def step(self) -> None:
        steps: list[Callable[[], None]] = [self.write, self.carry] * 5
        steps += [self.serve, self.serve, self.serve, self.call, self.upload, self.consume, self.consume]
        steps += [self.wait, self.cancel, self.go, self.rarely, self.hand_over]
        self.random.choice(steps)()
        # Whoever closes ends the connection for both.
        self.over = self.over or State.CLOSED in (self.gateway.state, self.unit.state)
        self.check()

    def hand_over(self) -> None:
        """Another worker goes on, if nothing is under way at this one; what is under way on the wire reaches it."""
        state = self.gateway.state_to_pass()
        if state is not None and self.decoders["up"].between_messages:
            self.gateway = GatewaySession.resumed(Limits(), state)
            self.gateway._jitter = self.random.random
            self.decoders["up"] = Decoder(masked=True, max_bytes=MAX_FRAME)
            self.moves += 1

    def rarely(self) -> None:
        """What happens once in a connection's life."""
        if self.random.random() > 0.06:
            return
        unit, gateway = self.unit, self.gateway
        things: list[Callable[[], object]] = [
            lambda: gateway.go_away(GoAwayCode.DRAIN, "draining", 10, 10),
            lambda: unit.go_away(GoAwayCode.DRAIN, "leaving"),
            lambda: self._shift(61.0),
        ]
        if unit.state is not State.CONNECTING:
            things += [lambda: unit.renew_token("a.b.c"), lambda: unit.send_lease(self.random.choice([0, 1, 9]))] * 3
        self.random.choice(things)()

    def call(self) -> None:
        pick = self.random.choice
        body = self.random.randbytes(pick([0, 0, 10, 500, 5_000]))
        head = not body and pick([True, False])
        known, hold = pick([True, False]), pick([True, False, False])
        request = fr.Request("id", "HEAD" if head else "POST", "/x", [], len(body) if known else None, hold=hold)
        deadline_s = self.now_s + pick([1, 20, 120])
        request.deadline_ms = round((deadline_s - self.now_s) * 1000)
        first = pick([len(body), 0, len(body) // 2])
        try:
            stream = self.gateway.send_request(request, deadline_s, body[:first], first == len(body))
        except NotSendable:
            return
        assert stream not in self.calls
        call = self.calls[stream] = Call(body, deadline_s, hold, head)
        call.sent = first

    def upload(self) -> None:
        """A caller hands over more of his body."""
        for stream in self._pick(self.gateway.streams):
            call = self.calls[stream]
            if call.sent < len(call.body):
                piece = call.body[call.sent : call.sent + self.random.choice([1, 300, 9_000])]
                call.sent += len(piece)
                assert self.gateway.send_data(stream, piece, call.sent == len(call.body))

    def go(self) -> None:
        for stream in self._pick(self.gateway.streams):
            self.gateway.send_go(stream)

    def cancel(self) -> None:
        for stream in self._pick(self.gateway.streams) if self.random.random() < 0.2 else ():
            self._tell(stream, "cancelled", self.gateway.reset(stream, ResetCode.CANCEL))
            self.gateway.discard(stream)

    def write(self) -> None:
        session, name, mask = self.random.choice([(self.gateway, "down", None), (self.unit, "up", b"mask")])
        for message in session.data_to_send(self.now_s, self.random.choice([1, 500, 65_536])):
            assert len(message) <= MAX_FRAME
            self.pipes[name] += encode_frame(OP_BINARY, message, mask)
        session.take_flushed()
        for stream in [s for s in self.held["unit"] if _answered(self.unit, s)]:
            del self.held["unit"][stream]

    def carry(self) -> None:
        """Some bytes arrive."""
        name = self.random.choice(["down", "up"])
        self.arrive(name, self.random.choice([1, 7, 100, 10_000]))

    def arrive(self, name: str, size: int) -> None:
        pipe, target = self.pipes[name], self.unit if name == "down" else self.gateway
        data = bytes(pipe[:size])
        del pipe[:size]
        for _, message in self.decoders[name].feed(data):
            self.take(target.receive(message, self.now_s), target)

    def wait(self) -> None:
        self._shift(self.random.choice([0.001, 0.1, 1.0, 6.0]))

    def _shift(self, by_s: float) -> None:
        """Time passes; both owners keep their timers."""
        end_s = self.now_s + by_s
        while not self.over:
            due_s = min(self.gateway.next_deadline_s, self.unit.next_deadline_s)
            if due_s > end_s:
                break
            self.now_s = max(self.now_s, due_s)
            for session in (self.gateway, self.unit):
                if session.next_deadline_s <= self.now_s:
                    before_s = session.next_deadline_s
                    self.take(session.tick(self.now_s), session)
                    assert session.next_deadline_s > self.now_s or session.next_deadline_s > before_s, (
                        "a timer that spins"
                    )
        self.now_s = max(self.now_s, end_s)

    def serve(self) -> None:
        """The unit's local service, or the agent before it, does something with one request."""
        for stream in self._pick(self.unit.streams):
            record, served = self.unit.streams[stream], self.served[stream]
            if record.state is StreamState.SENT:
                self._begin(stream, record, served)
            elif record.state is StreamState.ACCEPTED:
                self._answer(stream, served)
            elif not record.response_ended:
                self._continue(stream, served)

    def _begin(self, stream: int, record: Any, served: Served) -> None:
        if self.random.random() < 0.1:
            self._reset(stream, self.random.choice([ResetCode.REFUSED, ResetCode.SHED, ResetCode.INTERNAL]), False)
        elif not record.held:
            assert self.unit.send_ack(stream)
            if self.random.random() < 0.1:
                self._reset(stream, ResetCode.UPSTREAM_CONNECT, False)
            else:
                served.ran = True

    def _answer(self, stream: int, served: Served) -> None:
        if self.random.random() < 0.05:
            self._reset(stream, self.random.choice([ResetCode.UPSTREAM_TIMEOUT, ResetCode.REFUSED]), None)
            return
        pick = self.random.choice
        body = b"" if self.calls[stream].head else self.random.randbytes(pick([0, 3, 900, 4_000]))
        served.answer, served.given = body, pick([len(body), 0])
        response = fr.Response(200, [], pick([None, len(body)]))
        whole = served.given == len(body)
        assert self.unit.send_response(stream, response, body[: served.given], whole)

    def _continue(self, stream: int, served: Served) -> None:
        if self.random.random() < 0.02:
            self._reset(stream, ResetCode.UPSTREAM_PROTOCOL, True)
        elif served.answer is not None and served.given < len(served.answer):
            piece = served.answer[served.given : served.given + self.random.choice([1, 700, 9_000])]
            served.given += len(piece)
            assert self.unit.send_data(stream, piece, served.given == len(served.answer))

    def _reset(self, stream: int, code: ResetCode, dispatched: bool | None) -> None:
        self.unit.reset(stream, code, "", dispatched)
        self.held["unit"].pop(stream, None)

    def consume(self) -> None:
        """A caller's socket or the local service takes some bytes."""
        side, session = self.random.choice([("gateway", self.gateway), ("unit", self.unit)])
        held = self.held[side]
        for stream in self._pick(held):
            size = self.random.randint(1, held[stream])
            held[stream] -= size
            if not held[stream]:
                del held[stream]
            session.consumed(stream, size)

    def _pick(self, streams: dict[int, Any]) -> list[int]:
        return [self.random.choice(sorted(streams))] if streams else []

    # --- events

    def take(self, events: list[ev.Event], session: Session) -> None:
        for event in events:
            if isinstance(event, ev.SessionClosed):
                assert event.reason in FINE, event
                self.over = True
            elif session is self.unit:
                self._take_at_unit(event)
            else:
                self._take_at_gateway(event)

    def _take_at_gateway(self, event: ev.Event) -> None:
        match event:
            case ev.HelloReceived(hello):
                self.gateway.welcome(_welcome(self.limits), self.now_s, hello)
                if self.random.random() < 0.1:
                    self.gateway.token_expires_s = self.now_s + 30
            case ev.TokenReceived():
                self.gateway.accept_token(1, self.now_s + 60)
            case ev.ResponseReceived(stream, _, body, end) | ev.DataReceived(stream, body, end):
                self.calls[stream].received += body
                self._hold("gateway", stream, len(body))
                if end:
                    self._tell(stream, "answered", None)
            case ev.StreamAborted(stream, _, _, delivery):
                self._tell(stream, "failed", delivery)

    def _take_at_unit(self, event: ev.Event) -> None:
        match event:
            case ev.RequestReceived(stream, request, body, end):
                assert stream not in self.served
                assert request.hold <= self.calls[stream].hold
                self.served[stream] = Served()
                self._arrive(stream, body, end)
            case ev.DataReceived(stream, body, end):
                self._arrive(stream, body, end)
            case ev.StreamAborted(stream):
                self.held["unit"].pop(stream, None)

    def _arrive(self, stream: int, body: bytes, end: bool) -> None:
        served = self.served[stream]
        served.arrived += body
        self._hold("unit", stream, len(body))
        if end:
            assert bytes(served.arrived) == self.calls[stream].body
            served.whole = True

    def _hold(self, side: str, stream: int, size: int) -> None:
        if size:
            self.held[side][stream] = self.held[side].get(stream, 0) + size

    def _tell(self, stream: int, outcome: str, delivery: Delivery | None) -> None:
        if outcome != "answered":
            assert delivery is not None
            self.held["gateway"].pop(stream, None)
        self.calls[stream].outcomes.append((outcome, delivery))

    # --- what holds at every moment

    def check(self) -> None:
        stream_window, conn_window = self.agreed
        for side, session in (("gateway", self.gateway), ("unit", self.unit)):
            held = self.held[side]
            assert all(size <= stream_window for size in held.values())
            if session.state not in (State.CLOSED, State.CONNECTING):
                assert session._receive_credit + session._owed == session.conn_window, "credit that waits for a reader"
                assert session.unread_bytes == sum(held.values())
            assert len(session.streams) <= self.limits.max_streams
            assert set(session.outbox.queues) <= set(session.streams)
            queues = session.outbox.queues.values()
            assert session.outbox.queued_bytes == sum(q.queued_bytes for q in queues)
            assert session.outbox.blocked_bytes == sum(q.queued_bytes for q in queues if q.place is Place.BLOCKED)
            # Windows bound what is on its way, whatever waits before them.
        for pipe in self.pipes.values():
            assert len(pipe) <= conn_window + 200_000
        for stream, call in self.calls.items():
            assert (not call.outcomes) == (stream in self.gateway.streams)
            # A timer is a step of its own, so a deadline is told in the very moment it passes.
            assert call.outcomes or self.over or call.deadline_s > self.now_s or self.gateway.state is State.CLOSED

    # --- the end

    def finish(self, cut: bool) -> None:
        """Cut the connection here, or let everything run to its end first."""
        if not cut:
            self._run_out()
        for session in (self.gateway, self.unit):
            for stream, delivery in session.fail_all():
                if session is self.gateway:
                    self._tell(stream, "lost", delivery)
            assert session.fail_all() == []
            assert not session.streams
            assert not session.outbox.queues
        self.check_outcomes()

    def _run_out(self) -> None:
        for _ in range(20_000):
            if not (self.gateway.streams or self.unit.streams or any(self.pipes.values())) or self.over:
                break
            self.random.choice([self.write, self.carry, self.serve, self.consume, self.upload, self.go])()
            if self.random.random() < 0.02:
                self.wait()
            self.check()
        live = {self.gateway.state, self.unit.state} <= {State.ACTIVE, State.SUSPECT, State.DRAINING}
        if not self.over and live:
            assert not self.gateway.streams
            assert not self.unit.streams
            self._check_credit()

    def _check_credit(self) -> None:
        """Nothing leaked: what is not granted is owed."""
        for _ in range(100_000):
            busy = any(self.held.values()) or any(self.pipes.values())
            if not busy and not self.gateway.has_frames and not self.unit.has_frames:
                break
            self.consume()
            self.write()
            self.carry()
        else:
            raise AssertionError("the pipes never run dry")
        for sender, receiver in ((self.gateway, self.unit), (self.unit, self.gateway)):
            assert sender.outbox.credit + receiver._owed == sender.conn_window
            assert sender.outbox.credit == receiver._receive_credit
            assert sender.buffered_bytes == receiver.buffered_bytes == 0

    def check_outcomes(self) -> None:
        for stream, call in self.calls.items():
            assert len(call.outcomes) == 1, (stream, call.outcomes)
            outcome, delivery = call.outcomes[0]
            served = self.served.get(stream)
            ran = served is not None and served.ran
            if outcome == "answered":
                assert served is not None
                assert bytes(call.received) == served.answer
            elif delivery is Delivery.NOT_DISPATCHED:
                assert not ran, (stream, outcome)
            elif delivery in (Delivery.DISPATCHED, Delivery.RESPONSE_STARTED):
                assert stream in self.served


def _answered(unit: UnitSession, stream: int) -> bool:
    record = unit.streams.get(stream)
    return record is None or record.response_ended


def _hello(limits: Limits) -> fr.Hello:
    return fr.Hello("sim", "one", 0, [], limits.max_streams, limits.stream_window, limits.conn_window, limits.max_frame)


def _welcome(limits: Limits) -> fr.Welcome:
    return fr.Welcome(
        "c", 1, "", 0, [], limits.max_streams, limits.stream_window, limits.conn_window, limits.max_frame,
        round(limits.ping_s * 1000), round(limits.dead_s * 1000),
    )  # fmt: skip

"""The whole agent behind its link in one simulated world: callers, gateway, network, local service and disk by a seed.

What runs of the agent is real: `Link.run` with its two greenlets, exchanges, services, pool, ledger. Its socket, its
clock, the connections to the local service and the moment at which the disk is done are the world's. What must never
happen is asserted where it would be seen.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import gevent

from fastpath.frames import OP_BINARY, OP_CLOSE, OP_PING, encode_close, encode_frame
from gateway.agent.endpoint import Endpoint
from gateway.agent.ledger import Ledger
from gateway.agent.ledger_store import LedgerUnavailable
from gateway.agent.services import Services, ServiceSettings
from gateway.agent.settings import AgentSettings
from gateway.errors import Delivery
from gateway.relay import events as ev
from gateway.relay import frames as fr
from gateway.relay.core import Limits, NotSendable
from gateway.relay.frames import GoAwayCode, RefusalReason, ResetCode
from gateway.relay.states import State, StreamState
from tests.agent.simulated_checks import Checked
from tests.agent.simulated_lane import MAX_FRAME, Call, Lane
from tests.agent.simulated_service import Attempt, Backend
from tests.agent.virtual import EPOCH_S, Clock, Event, patched, settle

FOREVER_S = 400.0
"""Longer than any deadline of a request."""
ALLOWED_ERRORS = {"ledger_unavailable", "answer_not_kept"}


class Identity:
    def token(self, now_s: float) -> str:
        return "a.b.c"


class World(Checked):
    """`step` does one random thing; `finish` ends it, one way or another. Use it in a `with` statement."""

    def __init__(self, seed: int, ledger: Ledger, keys: str) -> None:
        """`keys` makes the seed's idempotency keys its own: the ledger is shared by all worlds."""
        self.random = random.Random(seed)
        self.clock = Clock()
        self.faults: list[object] = []
        self.trace: list[tuple[object, ...]] = []
        self.backend = Backend(self.random, self.clock, self._on_taken)
        self.disk: list[Event] = []
        self.lanes: list[Lane] = []
        self._open: list[Lane] = []
        self.calls: list[Call] = []
        self.by_key: dict[str, list[Attempt]] = {}
        self.ledger = ledger
        ledger.now = self.clock.time
        self._keys = [f"{keys}-0"]
        self.backend.gentle = self._gentle = self.random.random() < 0.4
        self._doubt = False
        """Was anything of the ledger lost, so that it must say of a key that its outcome is unknown?"""
        self._stack = ExitStack()

    def __enter__(self) -> World:
        pick = self.random.choice
        self._stack.enter_context(
            patched(
                self.clock, self.faults, link__ROOM_BYTES=pick([1, 1_000, 32_768]), ledger__in_thread=self._in_thread,
                local_service__connect=self.backend.connect, local_service__LocalConnection=lambda sock: sock,
            )
        )  # fmt: skip
        self.settings = self._settings()
        self._start_agent(self.ledger if pick([True, True, True, False]) else None)
        self.dial()
        return self

    def _start_agent(self, ledger: Ledger | None) -> None:
        self.services = Services(self.settings, ledger)
        self.services.on_full = lambda full: [lane.link.lease(full) for lane in self._live()]
        for service in self._every_service():
            service.pool._clock = self.clock.monotonic

    def __exit__(self, *error: object) -> None:
        gevent.killall([lane.greenlet for lane in self.lanes], block=False)
        self._kill_exchanges()
        self._rest()
        self._stack.close()

    def _kill_exchanges(self) -> None:
        gevent.killall([greenlet for lane in self.lanes for _, greenlet in lane.started.values()], block=False)

    def _settings(self) -> AgentSettings:
        pick, endpoint = self.random.choice, Endpoint(False, "service", 80, "")
        services = tuple(
            ServiceSettings(
                endpoint, prefix, max_concurrent=pick([1, 8, 64]), deadline_s=pick([None, 3.0]),
                request_max_bytes=pick([400, 1 << 20]), response_max_bytes=pick([5_000, 1 << 20]),
            )
            for prefix in ("/a", "")
        )  # fmt: skip
        return AgentSettings(endpoint, Identity(), services, max_streams=pick([1, 8, 16]))  # type: ignore[arg-type]

    def _live(self) -> list[Lane]:
        return [lane for lane in self._open if not lane.over]

    # --- what the agent is given

    def _in_thread(self, work: Callable[[], Any]) -> Any:
        """The work is done at once or later, and whoever wants it is told later."""
        turn, early = Event(self.clock), self.random.random() < 0.5
        result = work() if early else None
        self.disk.append(turn)
        turn.wait()
        if not early and not self._gentle and self.random.random() < 0.04:
            self._doubt = True
            raise LedgerUnavailable("injected")
        return result if early else work()

    def debug(self, event: str, **fields: object) -> None:
        """Stands for the log."""

    info = warning = debug

    def error(self, event: str, **fields: object) -> None:
        if event not in ALLOWED_ERRORS:
            self.faults.append((event, fields))

    # --- steps

    def step(self) -> None:
        """Sometimes several things happen before anybody in the agent has run."""
        for _ in range(self.random.choice([1, 1, 1, 2, 4])):
            steps: list[Callable[[], None]] = [self.write, self.carry_down, self.carry_up] * 6
            steps += [self.backend.step] * 12 + [self.sync] * 5 + [self.call] * 2 + [self.upload, self.consume] * 2
            self.random.choice([*steps, self.wait, self.cancel, self.go, self.rarely])()
        settle()
        self.check()

    def dial(self) -> None:
        pick = self.random.choice
        narrow = self.random.random() < 0.3
        limits = Limits(
            max_streams=pick([1, 8, 16]), stream_window=pick([1, 200] if narrow else [2_000, 50_000]),
            conn_window=pick([1, 400] if narrow else [3_000, 90_000]), max_frame=pick([1_024, MAX_FRAME]),
        )  # fmt: skip
        lane = Lane(self, limits, pick([30, 900, 1 << 20, 1 << 20]))
        self.lanes.append(lane)
        self._open.append(lane)
        quickly = self.random.random() < 0.8
        while quickly and State.CONNECTING in (lane.gateway.state, lane.unit.state) and not lane.over:
            settle()
            self._write(lane, 65_536)
            self.carried_down(lane, 1_000)
            settle()
            self.deliver(lane, 1_000)

    def rarely(self) -> None:
        lanes = self._live()
        if self.random.random() > (0.05 if self._gentle else 0.2):
            return
        if len(lanes) < 2 and self.random.random() < 0.5:
            self.dial()
        elif lanes:
            self._disturb(self.random.choice(lanes))

    def _disturb(self, lane: Lane) -> None:
        gateway, wire = lane.gateway, lane.wire
        things: list[Callable[[], object]] = [
            lambda: self.cut(lane), lambda: self.cut(lane, ConnectionResetError()), self.crash, wire.go_deaf,
            lambda: gateway.go_away(GoAwayCode.DRAIN, "draining", 10, 10), lambda: lane.link.leave("leaving"),
            lambda: self.shift(6.0), lambda: self.shift(61.0),
            lambda: self._write_raw(lane, encode_frame(OP_PING, b"there?")),
            lambda: gateway.state is not State.CLOSED and self._write_raw(lane, encode_close(1000)),
        ]  # fmt: skip
        self.random.choice(things)()

    def crash(self) -> None:
        """The agent's process dies, whatever it was doing, and a new one starts with the same ledger."""
        self.note("crash")
        self._doubt = True
        settle()
        worker, self.ledger._worker = self.ledger._worker, gevent.Greenlet()
        if worker is not None:
            worker.kill(block=False)
        self._kill_exchanges()
        for lane in self._live():
            self.cut(lane, ConnectionResetError())
        settle()
        # What the dying say to the ledger was never said.
        self.ledger._queue.clear()
        self.ledger._running.clear()
        self.ledger._worker = None
        self.disk.clear()
        self.services.close()
        self._start_agent(self.services.ledger)

    def call(self) -> None:
        lane = self._lane()
        if lane is None:
            self.dial()
        else:
            self.ask(lane, self._new_call())

    def ask(self, lane: Lane, call: Call) -> None:
        body, whole = call.body, call.sent == len(call.body)
        try:
            stream = lane.gateway.send_request(call.request, call.deadline_s, body[: call.sent], whole)
        except NotSendable:
            return
        assert stream not in lane.calls
        self.calls.append(call)
        lane.calls[stream] = call
        self.note("call", call.number, call.request.method, len(body), call.request.hold)

    def _new_call(self) -> Call:
        """A key has one body and target, but for callers who use it for something else."""
        pick, number = self.random.choice, len(self.calls)
        if self.random.random() < 0.2:
            self._keys.append(f"{self._keys[0]}-{number}")
        key = pick([None, *self._keys[-2:]])
        body = pick([b"", b"", b"x", self.random.randbytes(pick([10, 500, 5_000]))])
        if key is not None and self.random.random() < 0.8:
            body = b"the same"
        method = "POST" if body else pick(["GET", "HEAD", "POST"])
        target = "/a/x" if key is not None and self.random.random() < 0.9 else pick(["/a/x", "/x"])
        request = fr.Request("id", method, target, [("x-call", str(number))], pick([len(body), None]))
        request.hold, request.idempotency = pick([True, False, False, False]), key
        call = Call(number, request, body, self.clock.now_s + pick([2, 20, 120]))
        request.deadline_ms = round((call.deadline_s - self.clock.now_s) * 1000)
        call.sent = pick([len(body), len(body), 0, len(body) // 2])
        return call

    def _lane(self) -> Lane | None:
        lanes = self._live()
        return self.random.choice(lanes) if lanes else None

    def _stream(self) -> tuple[Lane, int] | None:
        lane = self._lane()
        return (lane, self.random.choice(sorted(lane.gateway.streams))) if lane and lane.gateway.streams else None

    def upload(self) -> None:
        if found := self._stream():
            lane, stream = found
            call = lane.calls[stream]
            if call.sent < len(call.body):
                piece = call.body[call.sent : call.sent + self.random.choice([1, 300, 9_000])]
                call.sent += len(piece)
                assert lane.gateway.send_data(stream, piece, call.sent == len(call.body)) or lane.over

    def go(self) -> None:
        if found := self._stream():
            found[0].calls[found[1]].released = True
            found[0].gateway.send_go(found[1])

    def cancel(self) -> None:
        if (found := self._stream()) and self.random.random() < (0.05 if self._gentle else 0.2):
            lane, stream = found
            self._tell(lane, stream, "cancelled", lane.gateway.reset(stream, ResetCode.CANCEL))
            lane.gateway.discard(stream)

    def consume(self) -> None:
        """A caller's socket takes some bytes."""
        lane = self._lane()
        if lane and lane.held:
            stream = self.random.choice(sorted(lane.held))
            size = self.random.randint(1, lane.held[stream])
            lane.held[stream] -= size
            if not lane.held[stream]:
                del lane.held[stream]
            lane.gateway.consumed(stream, size)

    def sync(self) -> None:
        """The disk is done with what the ledger asked."""
        if self.disk:
            self.disk.pop(0).set()

    # --- the network

    def write(self) -> None:
        if lane := self._lane():
            self._write(lane, self.random.choice([1, 500, 65_536]))

    def _write(self, lane: Lane, budget_bytes: int) -> None:
        for message in lane.gateway.data_to_send(self.clock.now_s, budget_bytes):
            assert len(message) <= MAX_FRAME
            lane.wire.down += encode_frame(OP_BINARY, message)
        lane.gateway.take_flushed()

    def _write_raw(self, lane: Lane, data: bytes) -> None:
        lane.wire.down += data

    def carry_down(self) -> None:
        if lane := self._lane():
            self.carried_down(lane, self.random.choice([1, 60, 900, 10_000]))

    def carried_down(self, lane: Lane, size: int) -> None:
        """Some bytes reach the unit."""
        lane.wire.arrive(size)

    def carry_up(self) -> None:
        if lane := self._lane():
            self.deliver(lane, self.random.choice([1, 60, 900, 10_000]))

    def deliver(self, lane: Lane, size: int) -> None:
        """Some bytes reach the gateway, or the end behind them."""
        for opcode, message in lane.decoder.feed(lane.wire.take(size)):
            if opcode == OP_BINARY and not lane.over:
                self._take(lane, lane.gateway.receive(message, self.clock.now_s))
            elif opcode == OP_CLOSE:
                self.cut(lane)
        assert lane.decoder.error is None
        if not lane.wire.up and lane.wire.shut:
            self.cut(lane)

    def cut(self, lane: Lane, fault: OSError | None = None) -> None:
        """The connection is lost, for both: every stream has its outcome now."""
        if lane.over:
            return
        self.note("cut", self.lanes.index(lane))
        lane.over = True
        lane.wire.cut(fault)
        for stream, delivery in lane.gateway.fail_all():
            self._tell(lane, stream, "lost", delivery)
        assert lane.gateway.fail_all() == []
        lane.held.clear()

    # --- time

    def wait(self) -> None:
        self.shift(self.random.choice([0.001, 0.006, 0.05, 0.2, 1.0]))

    def shift(self, by_s: float) -> None:
        """Time passes, from one thing that is due to the next."""
        end_s = self.clock.now_s + by_s
        for _ in range(20_000):
            due_s = min([self.clock.next_due_s, *(lane.gateway.next_deadline_s for lane in self._live())])
            if due_s > end_s:
                break
            self.clock.now_s = max(self.clock.now_s, due_s)
            self.clock.fire()
            for lane in self._live():
                if lane.gateway.next_deadline_s <= self.clock.now_s:
                    self._take(lane, lane.gateway.tick(self.clock.now_s))
            settle()
        else:
            raise AssertionError("timers that spin")
        self.clock.now_s = max(self.clock.now_s, end_s)

    # --- what the gateway is told

    def _take(self, lane: Lane, events: list[ev.Event]) -> None:
        for event in events:
            match event:
                case ev.SessionClosed(reason, detail):
                    assert reason in ("silent", "no-hello"), (reason, detail)
                    self.cut(lane)
                case ev.HelloReceived(hello):
                    self._welcome(lane, hello)
                case ev.TokenReceived():
                    lane.gateway.accept_token(round(EPOCH_S + self.clock.now_s) + 60, self.clock.now_s + 60)
                case ev.ResponseReceived(stream, response, body, end):
                    lane.calls[stream].head = response
                    self._receive(lane, stream, body, end)
                case ev.DataReceived(stream, body, end):
                    self._receive(lane, stream, body, end)
                case ev.StreamAborted(stream, code, reason, delivery):
                    self._tell(lane, stream, f"failed {code} {reason}", delivery)
                case ev.ResetAcked(stream, dispatched) if not dispatched:
                    self._deny(lane.calls[stream])

    def _welcome(self, lane: Lane, hello: fr.Hello) -> None:
        limits, expires_s = lane.limits, self.random.choice([0, 0, 30])
        welcome = fr.Welcome(
            "c", 1, "", 0, [], limits.max_streams, limits.stream_window, limits.conn_window, limits.max_frame,
            round(limits.ping_s * 1000), round(limits.dead_s * 1000),
        )  # fmt: skip
        if expires_s:
            welcome.token_exp = round(EPOCH_S + self.clock.now_s) + expires_s
            lane.gateway.token_expires_s = self.clock.now_s + expires_s
        lane.gateway.welcome(welcome, self.clock.now_s, hello)

    def _receive(self, lane: Lane, stream: int, body: bytes, end: bool) -> None:
        call = lane.calls[stream]
        call.received += body
        if body:
            lane.held[stream] = lane.held.get(stream, 0) + len(body)
        if end:
            self._tell(lane, stream, "answered", None)

    def _tell(self, lane: Lane, stream: int, outcome: str, delivery: Delivery | None) -> None:
        call = lane.calls[stream]
        self.note(outcome, call.number, delivery, len(call.received))
        call.outcomes.append((outcome, delivery))
        assert len(call.outcomes) == 1, call.outcomes
        if outcome == "answered":
            self._check_answer(call)
            return
        assert delivery is not None
        lane.held.pop(stream, None)
        if delivery is Delivery.NOT_DISPATCHED:
            self._deny(call)
        elif delivery is not Delivery.UNKNOWN:
            assert call.released
        if call.request.idempotency is not None:
            self._check_refusal(call, outcome.split()[-1])

    def _deny(self, call: Call) -> None:
        assert not any(attempt.taken for attempt in call.attempts), f"call {call.number} was dispatched"
        call.not_dispatched = True

    def _check_refusal(self, call: Call, reason: str) -> None:
        """Of a key the ledger says nothing worse than what is true."""
        key, request = call.request.idempotency or "", call.request
        others = [other for other in self.calls if other.request.idempotency == key and other is not call]
        if reason == RefusalReason.OUTCOME_UNKNOWN and not self._doubt:
            assert self.by_key.get(key), "the service saw nothing under this key"
            assert not any(other.outcomes and other.outcomes[0][0] == "answered" for other in others), "it is known"
        if reason == RefusalReason.KEY_REUSED:
            own = (request.method, request.target, call.body)
            assert any((other.request.method, other.request.target, other.body) != own for other in others)

    def _check_answer(self, call: Call) -> None:
        """It is what the service said to this call, or to the first of its key."""
        head, key = call.head, call.request.idempotency
        assert head is not None
        found = [attempt for attempt in (self.by_key[key or ""] if call.replayed else call.attempts) if attempt.taken]
        assert len(found) == 1
        attempt = found[0]
        assert attempt.answered, f"call {call.number} has an answer that nobody gave whole"
        assert (head.status, bytes(call.received)) == (attempt.status, attempt.answer)
        assert ("x-attempt", str(attempt.number)) in head.fields
        if call.replayed:
            first = self.calls[attempt.call]
            assert first is not call
            assert first.request.target == call.request.target
            assert first.body == call.body or not attempt.answered_whole, "another request's answer"

    # --- what the service is given

    def _on_taken(self, attempt: Attempt, size: int) -> None:
        call = self.calls[attempt.call]
        if not attempt.taken:
            try:
                self._begun(attempt, call)
            except AssertionError as error:
                self.faults.append(f"call {call.number}: {error}")  # or the agent would make a RESET of it
        self.note("taken", call.number, attempt.number, size)

    def _begun(self, attempt: Attempt, call: Call) -> None:
        assert call.released, "a held request was dispatched"
        assert not call.not_dispatched, "dispatched after all"
        assert not call.attempts, "dispatched twice"
        call.attempts.append(attempt)
        for lane in self.lanes:
            for stream in [stream for stream, one in lane.calls.items() if one is call]:
                record = lane.unit.streams.get(stream)
                assert record is None or record.state is not StreamState.SENT, "before its ACK"
        key = call.request.idempotency
        if key is not None and self.services.ledger is not None:
            assert not self.by_key.get(key), "one key ran twice"
            self.by_key[key] = [attempt]

    def note(self, *what: object) -> None:
        self.trace.append((round(self.clock.now_s, 6), *what))

    # --- the end

    def finish(self, how: str) -> None:
        """`cut` here, or go on to the `end`, or with a service that does nothing more (`hang`)."""
        if how != "cut":
            self._run_out(how)
        for lane in self.lanes:
            self.cut(lane)
        settle()
        self.check()
        self._rest()
        self.shift(FOREVER_S)
        self._rest()
        self.check()
        self._check_over()

    def _run_out(self, how: str) -> None:
        steps = [self.write, self.carry_down, self.carry_up] * 3 + [self.sync, self.consume, self.upload, self.go]
        steps += [self.backend.step] * 4 if how == "end" else [self.wait]
        for _ in range(20_000):
            if not any(lane.gateway.streams or lane.unit.streams for lane in self._live()):
                break
            self.random.choice(steps)()
            if self.random.random() < 0.04:
                self.wait()
            settle()
            self.check()
        else:
            raise AssertionError("a stream that never ends")
        for lane in self._live():
            self._check_credit(lane)

    def _check_credit(self, lane: Lane) -> None:
        """Nothing leaked: what is not granted is owed."""
        for _ in range(100_000):
            wire, unit, gateway = lane.wire, lane.unit, lane.gateway
            busy = lane.held or wire.up or wire.down or wire.here or gateway.has_frames or unit.has_frames
            if lane.over or not busy:
                break
            self.random.choice([self.consume, self.write, self.carry_down, self.carry_up])()
            settle()
        else:
            raise AssertionError("the wires never run dry")
        if lane.over or State.CONNECTING in (lane.gateway.state, lane.unit.state):
            return
        for sender, receiver in ((lane.gateway, lane.unit), (lane.unit, lane.gateway)):
            assert sender.outbox.credit + receiver._owed == sender.conn_window, "credit that was lost"
            assert sender.outbox.credit == receiver._receive_credit

    def _rest(self) -> None:
        """The disk gets done with everything."""
        settle()
        while self.disk:
            self.sync()
            settle()

    def _check_over(self) -> None:
        assert all(len(call.outcomes) == 1 for call in self.calls)
        assert all(lane.greenlet.ready() and lane.link.outcome.ready() for lane in self.lanes)
        assert not self._exchanges(), "an exchange that never ends"
        assert not self.services.detached
        assert not self.backend.pending
        assert not self.ledger._running
        assert self.ledger._worker is None

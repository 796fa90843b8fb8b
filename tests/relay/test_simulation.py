"""The unit link without I/O: random schedules, a cut at every byte and step, every frame in every state, noise."""

from __future__ import annotations

import copy
import os
import random
from collections import Counter

import pytest

from fastpath.frames import pack_aux, pack_frame
from gateway.relay import events as ev
from gateway.relay import frames as fr
from gateway.relay.core import Limits, Stream
from gateway.relay.session import GatewaySession, UnitSession
from gateway.relay.states import CONNECTION_ROWS, LIVE, ROWS, Role, State, StreamState
from tests.relay.simulation import MAX_FRAME, World

SEEDS = int(os.environ.get("CAREGATE_SIMULATIONS", "900"))
"""How many schedules; hundreds of thousands by hand, seconds' worth in CI."""
BLOCKS = 6


def run(world: World, steps: int) -> World:
    for _ in range(steps):
        if world.over:
            break
        world.step()
    return world


@pytest.mark.parametrize("cut", [True, False], ids=["cut", "to-the-end"])
@pytest.mark.parametrize("block", range(BLOCKS))
def test_random_schedules(block, cut):
    """Each accepted request has exactly one outcome, no stream outlives its connection, windows are kept."""
    outcomes: Counter[str] = Counter()
    moves = 0
    for seed in range(block, SEEDS // 2, BLOCKS):
        world = World(seed * 2 + cut)
        try:
            run(world, world.random.randint(1, 600)).finish(cut)
        except AssertionError as error:
            raise AssertionError(f"seed {seed * 2 + cut}") from error
        outcomes.update(told for call in world.calls.values() for told, _ in call.outcomes)
        moves += world.moves
    assert set(outcomes) >= {"answered", "failed", "cancelled"}
    assert moves > SEEDS // 10
    assert outcomes["answered"] > SEEDS // 60


class CutWorld(World):
    """The same schedule, but the connection ends after so many bytes have arrived."""

    left_bytes = 1 << 60
    arrived_bytes = 0

    def arrive(self, name: str, size: int) -> None:
        if self.over:
            return
        size = min(size, len(self.pipes[name]), self.left_bytes)
        super().arrive(name, size)
        self.arrived_bytes += size
        self.left_bytes -= size
        self.over = self.over or self.left_bytes == 0


def cut_world(seed: int, left_bytes: int) -> CutWorld:
    # Before the greetings, which are carried as a world begins.
    kind = type("Cut", (CutWorld,), {"left_bytes": left_bytes})
    return kind(seed)


EVERY_BYTE = [seed for seed in range(40) if 700 < run(cut_world(seed, 1 << 60), 140).arrived_bytes < 2_600][
    : SEEDS // 200
]


@pytest.mark.parametrize("seed", EVERY_BYTE)
def test_cut_at_every_byte(seed):
    whole = run(cut_world(seed, 1 << 60), 140)
    assert whole.calls
    for left in range(1, whole.arrived_bytes):
        world = run(cut_world(seed, left), 140)
        world.finish(cut=True)
        assert world.over


@pytest.mark.parametrize("seed", range(SEEDS // 120))
def test_cut_at_every_step(seed):
    for steps in range(120):
        run(World(seed), steps).finish(cut=True)


# --- every frame in every state: a row of the one table, or a violation


LIMITS = Limits(max_streams=8, stream_window=1_000, conn_window=3_000, max_frame=MAX_FRAME)
REQUEST = fr.Request("id", "POST", "/x", [])
RECEIVED = {
    fr.Hello: fr.Hello("a", "b"),
    fr.Welcome: fr.Welcome("c", 1),
    fr.RequestFrame: fr.RequestFrame(5, REQUEST, b"x"),
    fr.Ack: fr.Ack(3),
    fr.ResponseFrame: fr.ResponseFrame(3, fr.Response(200, []), b"x"),
    fr.Data: fr.Data(3, b"x"),
    fr.Window: fr.Window(3, 10),
    fr.Reset: fr.Reset(3, 1, "", True),
    fr.ResetAck: fr.ResetAck(3, True),
    fr.Go: fr.Go(3),
    fr.Ping: fr.Ping(b"12345678"),
    fr.Pong: fr.Pong(b"12345678"),
    fr.GoAway: fr.GoAway(0),
    fr.Token: fr.Token("t"),
    fr.TokenOk: fr.TokenOk(1),
    fr.Sync: fr.Sync([1, 3]),
    fr.Lease: fr.Lease(1),
}
OF_A_STREAM = (fr.Ack, fr.ResponseFrame, fr.Data, fr.Window, fr.Reset, fr.Go)


def session_in(role: Role, state: State, stream: StreamState | None):
    """A session in that state; stream 1 is over, 3 is in `stream`."""
    session = GatewaySession(LIMITS, 0.0) if role is Role.GATEWAY else UnitSession(LIMITS, 0.0, fr.Hello("a", "b"))
    if state is not State.CONNECTING:
        session._activate(RECEIVED[fr.Hello if role is Role.GATEWAY else fr.Welcome], 0.0)
        session._last_stream = 3
    session.state = state
    if stream is not None:
        record = session.streams[3] = Stream(3, stream, 1_000, 30.0)
        record.held = role is Role.UNIT and stream is StreamState.SENT
        session.outbox.open(3, 1_000)
    return session


def legal(role: Role, kind: type, state: State, stream: StreamState | None) -> bool:
    if (role, kind, state) not in CONNECTION_ROWS:
        return False
    if kind not in OF_A_STREAM:
        return True
    # What comes late for a stream that is over is no fault.
    return stream is None or (role, kind, stream) in ROWS


STREAM_STATES = [None, StreamState.QUEUED, StreamState.SENT, StreamState.ACCEPTED, StreamState.STREAMING]


@pytest.mark.parametrize("kind", RECEIVED, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("role", Role, ids=lambda role: role.value)
def test_every_frame_in_every_state(role, kind):
    for state in (State.CONNECTING, *LIVE):
        for stream in STREAM_STATES if state is not State.CONNECTING else [None]:
            session = session_in(role, state, stream)
            if kind is fr.Ack and stream is StreamState.SENT:
                session.streams[3].held = False
            events = session.receive(fr.encode(RECEIVED[kind]), 1.0)
            closed = [event for event in events if isinstance(event, ev.SessionClosed)]
            where = f"{kind.__name__} to {role.value}, {state.value}, stream {stream and stream.value}"
            assert bool(closed) is not legal(role, kind, state, stream), where
            if closed:
                assert session.state is State.CLOSED, where
                assert closed[0].detail.startswith("state: "), where
                assert session.data_to_send(1.0)[-1] == fr.encode(fr.GoAway(4, 0, 0, "violation")), where


def test_a_closed_session_hears_nothing():
    for role in Role:
        for frame in RECEIVED.values():
            session = session_in(role, State.ACTIVE, StreamState.SENT)
            session.close(fr.GoAwayCode.DRAIN, "over")
            assert session.receive(fr.encode(frame), 1.0) == []
            assert session.tick(99.0) == []


@pytest.mark.parametrize("block", range(4))
def test_a_peer_that_sends_anything(block):
    """Nothing but a violation ends a session, and whatever came, each stream has one outcome."""
    for seed in range(block, SEEDS // 2, 4):
        dice = random.Random(seed)
        gateway = session_in(Role.GATEWAY, State.ACTIVE, None)
        told: Counter[int] = Counter()
        accepted = []
        for _ in range(40):
            if gateway.available and dice.random() < 0.3:
                accepted.append(gateway.send_request(fr.Request("i", "GET", "/", [], hold=dice.random() < 0.2), 30.0))
                gateway.data_to_send(0.0)
            for event in gateway.receive(_anything(dice), dice.random()):
                if isinstance(event, ev.StreamAborted) or getattr(event, "end", False):
                    told[event.stream] += 1
        left = [record.delivery for record in gateway.streams.values()]
        assert [delivery for _, delivery in gateway.fail_all()] == left
        assert len(accepted) == len(told) + len(left)
        assert set(told.values()) <= {1}


def _anything(dice: random.Random) -> bytes:
    stream = dice.choice([0, 5, 7, 9, 11, 13])
    if dice.random() < 0.02:
        return dice.randbytes(dice.randint(0, 40))
    frame = copy.copy(dice.choice([*RECEIVED.values()]))
    if hasattr(frame, "stream") and stream:
        frame.stream = stream
    if dice.random() < 0.03:
        return pack_frame(dice.randrange(256), dice.randrange(16), stream, dice.choice([b"", b"{}"]), dice.randbytes(4))
    if dice.random() < 0.03:
        return pack_aux(0x15, 0, stream, dice.randrange(400), b'{"reason":"","dispatched":false}')
    # Mostly what a unit may say, or every session would be over at once.
    if dice.random() < 0.9:
        stream = stream or 5
        body, end = dice.randbytes(dice.choice([0, 1, 400])), dice.random() < 0.3
        answers = [fr.Ack(stream), fr.ResponseFrame(stream, fr.Response(200, [], dice.choice([None, 3])), body, end)]
        frame = dice.choice([*answers, fr.Data(stream, body, end), fr.Window(0, 9), fr.Sync([stream]), fr.Lease(4)])
    return fr.encode(frame)

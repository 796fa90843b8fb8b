"""The real agent in simulated worlds: random schedules, cut at every byte and at every step, the same each time."""

from __future__ import annotations

import os
from collections import Counter
from itertools import count

import pytest

from gateway.agent.ledger import Ledger
from gateway.agent.log import Log
from gateway.agent.settings import LedgerSettings
from gateway.relay.frames import Request
from tests.agent.simulation import Call, World
from tests.agent.virtual import settle

SEEDS = int(os.environ.get("CAREGATE_AGENT_SIMULATIONS", "150"))
"""How many schedules; tens of thousands by hand, seconds' worth in CI."""
BLOCKS = 3
KEYS = count()


@pytest.fixture(scope="module")
def ledger(tmp_path_factory):
    made = Ledger(LedgerSettings(tmp_path_factory.mktemp("ledger"), answer_max_bytes=2_000), Log("error"))
    assert made.open()
    # What a loss of power leaves is not looked at here.
    made._store._database.execute("PRAGMA synchronous = OFF")
    yield made
    made.close()


def run(seed, ledger, steps=None, how=None, kind=World):
    """A world that has ended."""
    with kind(seed, ledger, f"{next(KEYS)}") as world:
        try:
            for _ in range(steps if steps is not None else world.random.randint(1, 500)):
                world.step()
            world.finish(how or world.random.choice(["cut", "end", "hang"]))
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error
    return world


@pytest.mark.parametrize("block", range(BLOCKS))
def test_random_schedules(block, ledger):
    """Each accepted request has exactly one outcome, nothing outlives its stream, windows are kept."""
    outcomes: Counter[str] = Counter()
    for seed in range(block, SEEDS, BLOCKS):
        world = run(seed, ledger)
        outcomes.update(told.split()[0] for call in world.calls for told, _ in call.outcomes)
        outcomes["replayed"] += sum(call.replayed for call in world.calls)
        outcomes["crashed"] += ("crash",) in {noted[1:] for noted in world.trace}
    assert {told for told, count in outcomes.items() if count} >= {
        "answered", "failed", "cancelled", "lost", "replayed", "crashed",
    }  # fmt: skip


def test_the_same_seed_gives_the_same_trace(ledger):
    first, again = ([run(seed, ledger, 200, "end").trace for seed in range(8)] for _ in range(2))
    assert first == again
    assert sum(map(len, first)) > 100


@pytest.mark.parametrize("seed", range(SEEDS // 75))
def test_cut_at_every_step(seed, ledger):
    for steps in range(150):
        run(seed, ledger, steps, "cut")


class Script(World):
    """Three requests, one after the other; the first connection is lost when so many of its bytes have arrived."""

    ASKED = (("POST", b"the same", True), ("POST", b"the same", True), ("GET", b"", False))

    def __init__(self, seed, ledger, keys, left_bytes):
        super().__init__(seed, ledger, keys)
        self.left_bytes = left_bytes
        self.arrived_bytes = 0
        self.greeting_bytes = 0

    def _count(self, lane, size):
        if lane is self.lanes[0] and not lane.over:
            size = min(size, self.left_bytes)
            self.arrived_bytes += size
            self.left_bytes -= size
        return size

    def carried_down(self, lane, size):
        super().carried_down(lane, self._count(lane, min(size, len(lane.wire.down))))
        self._cut_if_spent()

    def deliver(self, lane, size):
        super().deliver(lane, self._count(lane, min(size, len(lane.wire.up))))
        self._cut_if_spent()

    def _cut_if_spent(self):
        if not self.left_bytes:
            self.cut(self.lanes[0])

    def play(self):
        for method, body, keyed in self.ASKED:
            if self._lane() is None:
                self.dial()
            self.pump()
            self.greeting_bytes = self.greeting_bytes or self.arrived_bytes
            number = len(self.calls)
            request = Request("id", method, "/x", [("x-call", str(number))], len(body), 20_000)
            request.hold, request.idempotency = keyed, self._keys[0] if keyed else None
            call = Call(number, request, body, self.clock.now_s + 20)
            call.sent = len(body) // 2
            if lane := self._lane():
                self.ask(lane, call)
            self.pump()
        self.finish("cut")

    def pump(self):
        """All that happens without a loss of time."""
        for _ in range(20):
            for lane in self._live():
                self._write(lane, 1 << 20)
                self.carried_down(lane, 1 << 20)
                settle()
                self.deliver(lane, 1 << 20)
            for step in (self.upload, self.go, self.consume, self.sync, self.backend.serve_all):
                step()
                settle()
            self.check()
            busy = any(lane.gateway.has_frames or lane.unit.has_frames or lane.wire.up for lane in self._live())
            if not (busy or self.disk or self.backend.pending):
                break


def play(seed, ledger, left_bytes):
    with Script(seed, ledger, f"{next(KEYS)}", left_bytes) as world:
        world.play()
    return world


def plain(world):
    """All three were answered, the second by the ledger, on a connection that carried little more than they need."""
    answered = [call.outcomes[0][0] == "answered" and call.replayed for call in world.calls]
    told = [outcome for call in world.calls for outcome, _ in call.outcomes]
    return answered == [False, True, False] and told == ["answered"] * 3 and world.arrived_bytes < 1_300


def test_cut_at_every_byte(ledger):
    seed, whole = next((seed, world) for seed in range(200) if plain(world := play(seed, ledger, 1 << 60)))
    outcomes = Counter()
    for left in [*range(1, whole.greeting_bytes, 8), *range(whole.greeting_bytes, whole.arrived_bytes)]:
        world = play(seed, ledger, left)
        assert world.lanes[0].over
        outcomes.update(f"{told} {delivery}" for call in world.calls for told, delivery in call.outcomes)
    assert set(outcomes) >= {"answered None", "lost unknown", "lost dispatched", "lost not_dispatched"}

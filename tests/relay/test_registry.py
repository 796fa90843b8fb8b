"""Which units are connected: epochs, siblings, and what is remembered of those that left."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from gateway.relay.connection import UnitConnection
from gateway.relay.events import GoAwayReceived
from gateway.relay.registry import MOVING, Membership, Registry, own_word
from gateway.relay.states import State


class Connection:
    """As much of a UnitConnection as the registry looks at."""

    def __init__(self, registry, unit="u", conn="c1", seat=("i", 0), state=State.ACTIVE):
        self.unit, self.conn, self.seat = unit, conn, seat
        self.epoch = registry.next_epoch()
        self.replaced = False
        self.session = SimpleNamespace(state=state, streams={}, close_reason="", buffered_bytes=10)

    def replace(self):
        self.replaced = True


@pytest.fixture
def told():
    return []


@pytest.fixture
def registry(told):
    return Registry(lambda event, unit, details: told.append((event, unit)), now=lambda: 1_700_000_000.0)


def member(registry, conn="r1", unit="u", instance="i", index=0):
    return Membership(unit, conn, registry.next_epoch(), instance, index)


def test_up_and_down_once(registry, told):
    one, two = Connection(registry, conn="1", seat=("i", 0)), Connection(registry, conn="2", seat=("i", 1))
    registry.register(one)
    registry.register(two)
    registry.unregister(one, "lost")
    registry.unregister(one, "lost")
    assert registry.connected("u")
    registry.unregister(two, "silent")
    assert not registry.connected("u")
    assert told == [
        ("connection.up", "u"),
        ("unit.up", "u"),
        ("connection.up", "u"),
        ("connection.down", "u"),
        ("connection.down", "u"),
        ("unit.down", "u"),
    ]
    assert (registry.why("u"), registry.last_seen("u")) == ("silent", "2023-11-14T22:13:20Z")


def test_a_late_close_of_an_old_connection_never_removes_a_new_one(registry):
    old, new = Connection(registry, conn="same"), Connection(registry, conn="same")
    registry.register(old)
    registry.register(new)
    assert old.replaced
    registry.unregister(old, "late")
    assert registry.local("u") == [new]


def test_an_older_one_never_replaces_a_newer_one(registry):
    older, newer = Connection(registry, conn="1"), Connection(registry, conn="2")
    registry.register(newer)
    registry.register(older)
    assert not newer.replaced


def test_epochs_ascend(registry):
    epochs = [registry.next_epoch() for _ in range(1_000)]
    assert epochs == sorted(set(epochs))


def test_a_siblings_units_go_with_its_link(registry, told):
    first, second = object(), object()
    registry.add_remote(first, member(registry, "r1"))
    registry.add_remote(first, member(registry, "r2", index=1))
    registry.add_remote(second, member(registry, "r3", index=2))
    registry.add_remote(first, member(registry, "r4", unit="other"))
    assert registry.remote("u") == [first, second]
    registry.drop_link(first, "worker-lost")
    assert registry.remote("u") == [second]
    assert not registry.connected("other")
    assert registry.why("other") == "worker-lost"
    registry.remove_remote(second, "u", "r3", "lost")
    registry.remove_remote(second, "u", "r3", "lost")
    assert told.count(("unit.down", "u")) == 1


def test_a_newer_connection_at_a_sibling_replaces_ours(registry):
    ours = Connection(registry)
    registry.register(ours)
    registry.add_remote(object(), Membership("u", "r", ours.epoch - 1, "i", 0))
    assert not ours.replaced
    registry.add_remote(object(), Membership("u", "r", ours.epoch + 1, "i", 1))
    assert not ours.replaced
    registry.add_remote(object(), Membership("u", "r", ours.epoch + 1, "i", 0))
    assert ours.replaced


def test_what_counts(registry):
    registry.register(Connection(registry, conn="1", seat=("a", 0)))
    registry.register(Connection(registry, conn="2", seat=("b", 0), state=State.DRAINING))
    registry.register(Connection(registry, conn="3", seat=("c", 0), state=State.SUSPECT))
    registry.add_remote(object(), member(registry))
    assert registry.count("u") == 2
    assert registry.count("nobody") == 0
    assert registry.buffers.held_bytes() == 30


def test_announcements(registry):
    announced = []
    registry.announce = lambda connection, up, why: announced.append((connection.conn, up, why))
    connection = Connection(registry)
    registry.register(connection)
    connection.session.close_reason = "draining"
    registry.retire(connection)
    registry.unregister(connection, "lost")
    assert announced == [("c1", True, ""), ("c1", False, "draining"), ("c1", False, "lost")]


def test_what_a_sibling_remembers_counts_if_it_is_newer(registry):
    assert (registry.why("u"), registry.last_seen("u")) == ("never-connected", None)
    registry.recall("u", 100.0, "silent")
    registry.recall("u", 50.0, "older")
    assert (registry.why("u"), registry.last_seen("u")) == ("silent", "1970-01-01T00:01:40Z")


@pytest.mark.parametrize("text", [MOVING, "replaced", "patient Anna left", "x" * 200])
def test_what_a_unit_says_as_it_leaves_is_for_its_operators_alone(registry, text):
    """Not for callers and logs, and it cannot pass for a word that the gateway acts upon."""
    connection = Connection(registry)
    registry.register(connection)
    UnitConnection._on_goaway(connection, GoAwayReceived(0, 0, 0, text))
    registry.unregister(connection, connection.session.close_reason)
    kept = registry.farewells()["u"].why
    assert kept == f"unit: {text}"[:64]
    assert registry.why("u") == own_word(kept) == "unit-left"


def test_a_unit_that_says_nothing_left(registry):
    connection = Connection(registry)
    UnitConnection._on_goaway(connection, GoAwayReceived(0, 0, 0, ""))
    assert connection.session.close_reason == "unit-left"

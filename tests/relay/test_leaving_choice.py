"""Which sibling a leaving worker gives a connection to, and whom it asks to dial again; no process, no socket."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from gateway.relay import leaving as module
from gateway.relay.leaving import Leaving


class Connection:
    """One at rest that a sibling may take, unless it is under TLS or never at rest."""

    def __init__(self, unit="hospital", *, plain=True, rests=True):
        self.unit, self.token, self.stays, self.passed_on = unit, "token", True, False
        self.carrier = SimpleNamespace(is_plain=plain)
        self.session = SimpleNamespace(idle=False)
        self.rests = plain and rests
        self.asked_s = None

    def to_pass(self):
        return "live" if self.rests and not self.passed_on else None

    def let_go(self):
        self.passed_on = True

    def drain(self, *_, **__):
        self.stays, self.asked_s = False, time.monotonic()


@dataclass(frozen=True)
class Link:
    name: str
    began_s: float = 0.0


class Site:
    """A worker's connections and its siblings, by name: how many they have, which units; `full` takes nothing."""

    def __init__(self, connections, siblings, *, holders=(), full=()):
        self.connections, self.full, self.tried = set(connections), set(full), []
        links = {name: Link(name) for name in siblings}
        fabric = SimpleNamespace(takers=list(links.values()))
        registry = SimpleNamespace(
            loads=lambda: Counter({links[name]: load for name, load in siblings.items()}),
            remote=lambda unit: [links[name] for name in holders],
        )
        self.leaving = Leaving(self.connections, self, fabric, registry)

    def reach(self, name):
        return True

    def pass_live(self, name, unit, token, carrier, live):
        self.tried.append(name)
        return name not in self.full

    def run(self, limit_s):
        began_s = time.monotonic()
        self.leaving.run(limit_s, 1e6, 0.0)
        return began_s


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(module, "SETTLE_S", 0.0)
    monkeypatch.setattr(module, "STEP_S", 0.005)


def test_a_sibling_that_is_full_is_not_asked_again_in_the_same_step():
    site = Site([Connection() for _ in range(4)], {"a": 0, "b": 7}, full={"a"})
    site.leaving._pass_on(site.leaving._places(0.0))
    assert site.tried[0] == "a"
    assert site.tried[1:] == ["b"] * 3


def test_one_that_holds_none_of_the_unit_comes_before_one_with_fewer_connections():
    site = Site([Connection()], {"empty": 0, "apart": 9}, holders={"empty"})
    site.leaving._pass_on(site.leaving._places(0.0))
    assert site.tried == ["apart"]


def test_under_tls_nobody_is_waited_for():
    tls, resting, busy = Connection(plain=False), Connection(), Connection(rests=False)
    leaving = Site([tls, resting, busy], {"a": 0}).leaving
    assert leaving._to_ask(busy=False, everybody=False) == [tls]
    assert set(leaving._to_ask(busy=True, everybody=False)) == {tls, busy}
    assert set(leaving._to_ask(busy=False, everybody=True)) == {tls, resting, busy}


def test_without_a_sibling_all_are_asked_to_dial_again_at_once():
    one = Connection()
    began_s = Site([one], {}).run(0.4)
    assert one.asked_s - began_s < 0.2


def test_one_that_nobody_takes_is_asked_after_half_of_the_time():
    one = Connection()
    site = Site([one], {"a": 0}, full={"a"})
    began_s = site.run(0.4)
    assert one.asked_s - began_s >= 0.2
    assert len(site.tried) > 1

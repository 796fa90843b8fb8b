"""A worker leaves: its units' connections go to a sibling as they are, and a unit notices nothing."""

from __future__ import annotations

import time
from collections import Counter

import gevent
import pytest
from gevent import socket

from fastpath.frames import OP_BINARY, encode_frame
from gateway.config.snapshot import CompiledUnit
from gateway.errors import Delivery
from gateway.relay import frames as fr
from gateway.relay.core import NotSendable
from gateway.relay.handover import Handover
from gateway.relay.registry import MOVING
from gateway.relay.service import RESET_BEFORE_END_S


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("gateway.relay.leaving.SETTLE_S", 0.0)
    monkeypatch.setattr("gateway.relay.leaving.STEP_S", 0.005)


@pytest.fixture
def workers(rig):
    """Builds workers that all know each other."""

    def build(number, **timing):
        made = [rig.worker(**timing) for _ in range(number)]
        rig.until(lambda: all(len(worker.relay.fabric.takers) == number - 1 for worker in made))
        return made

    return build


def leave(worker):
    """All of it, as at the end of a worker's life."""
    gevent.spawn(worker.relay.drain).get(timeout=5)
    assert not worker.relay._connections


def the(worker, unit="hospital"):
    (connection,) = worker.relay.registry.local(unit)
    return connection


def settled(rig, holder, others, unit="hospital"):
    """Everybody knows that the unit is at `holder` and nowhere else."""
    rig.until(lambda: holder.relay.registry.local(unit))
    name = holder.relay.fabric.name
    rig.until(lambda: all([x.name for x in o.relay.registry.remote(unit)] == [name] for o in others))


def test_a_unit_is_served_over_the_same_connection_by_one_worker_after_another(rig, workers):
    first, *following = everybody = workers(4)
    unit = rig.unit(first)
    # Its ACK and its answer leave apart: with Nagle's algorithm hardly a moment would be without a request.
    unit.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    told = the(first).describe()
    asked = []
    stop = gevent.event.Event()

    def ask(worker):
        while not stop.is_set():
            answer = rig.fetch(worker.port, "GET", "/units/hospital/a")
            asked.append((answer.status, answer.body))
            gevent.sleep(0.02)

    callers = [gevent.spawn(ask, worker) for worker in everybody]
    holder = first
    for _ in following:
        before = len(asked)
        leave(holder)
        holder = next(worker for worker in everybody if worker.relay.registry.local("hospital"))
        rig.until(lambda before=before: len(asked) > before + 8)
    stop.set()
    gevent.joinall(callers, timeout=5, raise_error=True)
    assert Counter(asked) == {(200, b"/a"): len(asked)}
    now = the(holder).describe()
    assert {name: now[name] for name in ("conn", "epoch", "instance", "index", "agent", "since", "kid")} == {
        name: told[name] for name in ("conn", "epoch", "instance", "index", "agent", "since", "kid")
    }
    assert len(unit.bodies) == len(asked), "nothing ran twice"
    assert (unit.goaway, unit.close, unit.over.is_set()) == (None, None, False)


@pytest.mark.parametrize(("says", "delivery"), [("nothing", "unknown"), ("ack", "dispatched")])
def test_what_outlives_the_drain_is_answered_before_the_grace_ends(rig, workers, says, delivery):
    limit_s = 0.3
    grace_s = RESET_BEFORE_END_S + limit_s
    leaving, other = workers(2, drain_grace_s=grace_s)

    def hang(unit, event):
        if says == "ack":
            unit.ack(event.stream)

    unit = rig.unit(leaving, hang)
    rig.until(lambda: other.relay.registry.connected("hospital"))
    calls = [gevent.spawn(rig.fetch, worker.port, "POST", "/units/hospital/a", b"1") for worker in (leaving, other)]
    rig.until(lambda: len(unit.bodies) == 2 and rig.states() == {"accepted" if says == "ack" else "sent"})
    began_s = time.monotonic()
    drained = gevent.spawn(leaving.relay.drain)
    for answer in (call.get(timeout=grace_s) for call in calls):
        problem = answer.problem
        assert (answer.status, problem["type"]) == (502, "urn:caregate:problem:unit-disconnected")
        assert problem["delivery"] == delivery
    assert limit_s <= time.monotonic() - began_s < grace_s
    drained.get(timeout=grace_s)
    assert (unit.goaway.code, unit.goaway.why) == (fr.GoAwayCode.DRAIN, MOVING)


def test_nobody_is_told_that_the_unit_was_away(rig, workers):
    first, second, third = workers(3)
    seen = []
    for worker in (first, second, third):
        worker.relay.observe = lambda event, unit, details, worker=worker: seen.append((worker, event))
    rig.unit(first)
    settled(rig, first, (second, third))
    assert (first, "connection.up") in seen
    seen.clear()
    lines = [list(worker.events) for worker in (first, second, third)]
    leave(first)
    holder = second if second.relay.registry.local("hospital") else third
    settled(rig, holder, {second, third} - {holder})
    # A sibling may see a unit come of which it has forgotten that it moved: that is told to nobody.
    told = [(worker, event) for worker, event in seen if event != "unit.up"]
    assert told == [(first, "connection.passed"), (holder, "connection.taken")]
    assert [list(worker.events) for worker in (first, second, third)] == lines
    holder.relay.registry.local("hospital")[0].shut(fr.GoAwayCode.DRAIN, "end")
    rig.until(lambda: (holder, "connection.down") in seen and (holder, "unit.down") in seen)


def test_each_worker_counts_what_it_holds(rig, workers):
    class Metrics:
        def __init__(self):
            self.held, self.events = 0.0, Counter()

        def inc(self, name, labels, value=1.0):
            if labels:
                self.events[labels] += 1
            else:
                self.held += value

    first, second = workers(2)
    for worker in (first, second):
        worker.relay._metrics = Metrics()
    unit = rig.unit(first)
    leave(first)
    settled(rig, second, ())
    assert (first.relay._metrics.held, second.relay._metrics.held) == (0.0, 1.0)
    unit.cut()
    rig.until(lambda: second.relay._metrics.held == 0.0)
    assert first.relay._metrics.events == {("up",): 1, ("passed",): 1}
    assert second.relay._metrics.events == {("down",): 1}


def test_new_workers_are_preferred_and_those_that_hold_none_of_the_unit(rig, workers):
    leaving, old, new, other = workers(4)
    for link in leaving.relay.fabric._asking:
        if link.name in (new.relay.fabric.name, other.relay.fabric.name):
            link.began_s += 1_000.0
    leaving.relay._began_s += 500.0
    rig.unit(other, index=1)
    rig.until(lambda: leaving.relay.registry.remote("hospital"))
    rig.unit(leaving)
    leave(leaving)
    rig.until(lambda: new.relay.registry.local("hospital"))
    assert [len(worker.relay.registry.local("hospital")) for worker in (old, new, other)] == [0, 1, 1]


def test_rather_beside_another_of_the_unit_than_away(rig, workers):
    leaving, other = workers(2)
    units = rig.unit(other, index=1), rig.unit(leaving, index=0)
    rig.until(lambda: [len(w.relay.registry.local("hospital")) for w in (leaving, other)] == [1, 1])
    leave(leaving)
    rig.until(lambda: len(other.relay.registry.local("hospital")) == 2)
    assert [unit.goaway for unit in units] == [None, None]


def test_many_are_spread_evenly(rig, workers):
    leaving, *others = workers(3)
    leaving.relay._free_siblings = lambda unit_id: []
    rig.holder.swap(rig.make_snapshot(hospital=CompiledUnit("hospital", "Hospital", True, 20, None)))
    for number in range(12):
        rig.unit(leaving, instance=f"i{number}")
    assert len(leaving.relay._connections) == 12
    leave(leaving)
    rig.until(lambda: [len(worker.relay.registry.local("hospital")) for worker in others] == [6, 6])


# --- what cannot be handed over


def test_a_message_that_has_come_in_part_is_waited_for(rig, workers):
    leaving, other = workers(2)
    unit = rig.unit(leaving)
    ping = encode_frame(OP_BINARY, fr.encode(fr.Ping(b"12345678")), b"abcd")
    unit.sock.sendall(ping[:9])
    connection = the(leaving)
    rig.until(lambda: connection.carrier._decoder.pending_bytes)
    assert connection.to_pass() is None
    drain = gevent.spawn(leaving.relay.drain)
    gevent.sleep(0.02)
    assert not other.relay.registry.local("hospital")
    unit.sock.sendall(ping[9:])
    settled(rig, other, ())
    drain.get(timeout=5)
    assert rig.fetch(other.port, "GET", "/units/hospital/a").body == b"/a"
    assert unit.goaway is None


def test_the_first_fragment_of_a_message_is_part_of_it_though_it_is_empty(rig, workers):
    leaving, _ = workers(2)
    unit = rig.unit(leaving)
    connection = the(leaving)
    rig.until(lambda: connection.to_pass() is not None)
    unit.sock.sendall(encode_frame(OP_BINARY, b"", b"abcd", fin=False))
    rig.until(lambda: connection.to_pass() is None)
    assert connection.carrier._decoder.pending_bytes == 0
    unit.sock.sendall(encode_frame(0, fr.encode(fr.Ping(b"12345678")), b"abcd"))
    rig.until(lambda: connection.to_pass() is not None)


def test_what_comes_meanwhile_is_read_by_the_next_worker(rig, workers):
    """The bytes are in the kernel when the connection is handed over: the ping is answered all the same."""
    leaving, other = workers(2)
    unit = rig.unit(leaving)
    connection = the(leaving)
    rig.until(lambda: connection.to_pass() is not None)
    unit.sock.sendall(encode_frame(OP_BINARY, fr.encode(fr.Ping(b"12345678")), b"abcd"))
    assert leaving.relay.handover.reach(other.relay.handover.name)
    live = connection.to_pass()
    assert leaving.relay.handover.pass_live(
        other.relay.handover.name, "hospital", connection.token, connection.carrier, live
    )
    connection.let_go()
    settled(rig, other, ())
    rig.until(lambda: the(other).session.last_received_s > live.session.last_received_s)
    rig.until(lambda: not leaving.relay._connections)


def test_one_with_open_streams_is_asked_to_dial_again_after_a_while_and_finishes(rig, workers):
    leaving, other = workers(2)
    go = []
    unit, call = rig.busy(leaving, go)
    drain = gevent.spawn(leaving.relay.drain)
    rig.until(lambda: unit.goaway)
    assert (unit.goaway.code, unit.goaway.why) == (fr.GoAwayCode.DRAIN, MOVING)
    assert not other.relay.registry.local("hospital")
    go.append(1)
    assert call.get(timeout=3).body == b"whole"
    unit.cut()
    drain.get(timeout=3)


def test_one_whose_streams_end_soon_is_handed_over_then(rig, workers):
    leaving, other = workers(2)
    go = []
    unit, call = rig.busy(leaving, go)
    drain = gevent.spawn(leaving.relay.drain)
    gevent.sleep(0.02)
    go.append(1)
    assert call.get(timeout=3).body == b"whole"
    drain.get(timeout=3)
    settled(rig, other, ())
    assert unit.goaway is None


@pytest.mark.parametrize("why", ["no sibling takes", "under TLS", "an older version"])
def test_the_others_are_asked_to_dial_again_at_once(rig, workers, why):
    leaving, other = workers(2)
    unit = rig.unit(leaving)
    if why == "no sibling takes":
        other.relay.handover.stop()
    elif why == "under TLS":
        the(leaving).carrier._readable.close()
        the(leaving).carrier._readable = None
    else:
        for link in leaving.relay.fabric._asking:
            link.takes_live = False
    gevent.spawn(leaving.relay.drain)
    rig.until(lambda: the(leaving).retired)
    if why != "under TLS":
        rig.until(lambda: unit.goaway)
    assert not other.relay.registry.local("hospital")


def test_a_sibling_that_does_not_keep_up_is_asked_again(rig, workers, monkeypatch):
    leaving, other = workers(2)
    unit = rig.unit(leaving)
    full = iter([True] * 3)
    pass_live = Handover.pass_live

    def fill_up(self, *arguments):
        return False if next(full, False) else pass_live(self, *arguments)

    monkeypatch.setattr(Handover, "pass_live", fill_up)
    leave(leaving)
    settled(rig, other, ())
    assert next(full, None) is None
    assert unit.goaway is None


# --- what happened meanwhile


def test_a_caller_waits_while_it_is_under_way(rig, workers):
    """Neither worker has it for a moment: nobody is told that the unit is away, and nothing is sent to the old one."""
    leaving, other, third = workers(3)
    arrive = gevent.event.Event()
    for worker in (other, third):
        receive = worker.relay._receive
        worker.relay.handover._receive = lambda *given, receive=receive: (arrive.wait(), receive(*given))
    unit = rig.unit(leaving)
    rig.until(lambda: third.relay.registry.connected("hospital") and other.relay.registry.connected("hospital"))
    stale = the(leaving)
    leave(leaving)
    callers = [gevent.spawn(rig.fetch, w.port, "POST", "/units/hospital/a", b"x") for w in (leaving, other, third)]
    gevent.sleep(0.02)
    assert not any(caller.ready() for caller in callers)
    stale.shut(fr.GoAwayCode.DRAIN, "stopping")
    with pytest.raises(NotSendable):
        stale.start(rig.Request("i", "GET", "/", []), time.monotonic() + 1, None, b"", True)
    arrive.set()
    assert [caller.get(timeout=3).status for caller in callers] == [200] * 3
    assert len(unit.bodies) == 3
    assert (unit.goaway, unit.close) == (None, None)


def test_a_request_that_reaches_the_old_worker_is_sent_to_the_new_one(rig, workers, monkeypatch):
    """The sibling has not read yet that the connection is gone: it certainly was not dispatched."""
    leaving, other, third = workers(3)
    unit = rig.unit(leaving)
    settled(rig, leaving, (other, third))
    leave(leaving)
    rig.until(lambda: any(worker.relay.registry.local("hospital") for worker in (other, third)))
    holder, asker = (other, third) if other.relay.registry.local("hospital") else (third, other)
    rig.until(lambda: asker.relay.registry.connected("hospital"))
    failures = []
    dispatcher = asker.relay.unit_resource._dispatcher
    may_repeat = dispatcher._may_repeat

    def note(call, failure):
        failures.append(failure)
        return may_repeat(call, failure)

    monkeypatch.setattr(dispatcher, "_may_repeat", note)
    monkeypatch.setattr(dispatcher, "_candidates", _first(dispatcher, asker, leaving))
    assert rig.fetch(asker.port, "POST", "/units/hospital/a", b"x").body == b"x"
    assert [failure.delivery for failure in failures] == [Delivery.NOT_DISPATCHED]
    assert len(unit.bodies) == 1
    assert the(holder).session.last_stream == 1


def _first(dispatcher, asker, stale):
    """As `_candidates` before the news has come: the worker that left first."""
    candidates = type(dispatcher)._candidates

    def found(unit, avoid):
        (link,) = [x for x in asker.relay.fabric._asking if x.name == stale.relay.fabric.name]
        return [(link, True)] if avoid is None else candidates(dispatcher, unit, avoid)

    return found


REFUSED = {
    "removed": lambda rig, other: rig.holder.swap(
        rig.make_snapshot(clinic=CompiledUnit("clinic", "Clinic", True, 1, None))
    ),
    "disabled": lambda rig, other: rig.holder.swap(
        rig.make_snapshot(hospital=CompiledUnit("hospital", "Hospital", False, 2, None))
    ),
    "key": lambda rig, other: setattr(other.relay, "refuses", lambda unit, kid: "key-revoked"),
    "token": lambda rig, other: setattr(other.relay, "revoked", lambda unit, jti, issued_s: bool(jti)),
}


@pytest.mark.parametrize("what", REFUSED)
@pytest.mark.parametrize("when", ["on its way", "afterwards"])
def test_one_that_must_not_be_any_more_is_ended_by_the_next_worker(rig, workers, what, when):
    leaving, other = workers(2)
    arrive = gevent.event.Event()
    receive = other.relay._receive
    other.relay.handover._receive = lambda *given: (arrive.wait(), receive(*given))
    unit = rig.unit(leaving)
    leave(leaving)
    if when == "afterwards":
        arrive.set()
        settled(rig, other, ())
    REFUSED[what](rig, other)
    arrive.set()
    other.relay.enforce()
    assert unit.over.wait(3)
    assert unit.goaway.code == (fr.GoAwayCode.AUTH_EXPIRED if what == "token" else fr.GoAwayCode.UNIT_DISABLED)
    unit.cut()
    rig.until(lambda: not other.relay._connections)
    assert not other.relay.registry.connected("hospital")


def test_its_token_is_renewed_and_runs_out_at_the_next_worker(rig, workers):
    leaving, other = workers(2)
    unit = rig.unit(leaving, token=rig.unit_token(exp=int(time.time()) + 60))
    leave(leaving)
    settled(rig, other, ())
    session = the(other).session
    assert 0 < session.token_expires_s - time.monotonic() <= 60
    unit.session.renew_token(rig.unit_token(exp=int(time.time()) + 200))
    unit.poke()
    rig.until(lambda: session.token_expires_s - time.monotonic() > 100)
    session.token_expires_s = time.monotonic() + 0.01
    the(other)._schedule()
    assert unit.over.wait(3)
    assert unit.goaway.code == fr.GoAwayCode.AUTH_EXPIRED


def test_pings_go_on(rig, workers):
    leaving, other = workers(2, relay_ping_ms=20, relay_dead_ms=2_000)
    rig.unit(leaving)
    leave(leaving)
    settled(rig, other, ())
    session = the(other).session
    count = session._ping_count
    rig.until(lambda: session._ping_count > count + 3 and session.rtt_s is not None)


def test_one_whose_seat_has_been_taken_meanwhile_is_replaced(rig, workers):
    leaving, other = workers(2)
    arrive = gevent.event.Event()
    receive = other.relay._receive
    other.relay.handover._receive = lambda *given: (arrive.wait(), receive(*given))
    old = rig.unit(leaving)
    leave(leaving)
    new = rig.unit(other)
    arrive.set()
    rig.until(lambda: old.goaway)
    assert old.goaway.code == fr.GoAwayCode.REPLACED
    rig.until(lambda: len(other.relay.registry.local("hospital")) == 1)
    assert rig.fetch(other.port, "GET", "/units/hospital/a").body == b"/a"
    assert new.goaway is None

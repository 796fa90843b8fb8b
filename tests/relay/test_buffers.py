"""What a worker holds of bodies is counted wherever it is; where it is too much, no new large one is taken."""

from __future__ import annotations

import http.client
from types import SimpleNamespace

import gevent
import pytest
from gevent import socket

from gateway.relay.buffers import Buffers
from gateway.relay.exchange import EARLY_BYTES
from gateway.relay.request import KEEP_BYTES
from tests.relay.conftest import Answer

SLACK_BYTES = 66_000
"""A piece that is on its way."""


@pytest.fixture(params=["here", "through-sibling"])
def gateway(rig, request):
    """(worker that holds the unit, worker that is asked, the unit, its link); a target that begins with /quick is
    answered, others as the test says."""
    holder = rig.worker()
    asked = holder if request.param == "here" else rig.worker()
    seen = {}

    def script(unit, event):
        unit.ack(event.stream)
        if event.request.target.startswith("/quick"):
            unit.answer(event.stream, 200, b"quick")
        else:
            seen[event.stream] = event

    unit = rig.unit(holder, script)
    rig.until(lambda: asked.relay.registry.connected("hospital"))
    (link,) = holder.relay.registry.local("hospital")
    made = SimpleNamespace(holder=holder, asked=asked, unit=unit, link=link, seen=seen, callers=[])
    yield made
    for sock in made.callers:
        sock.close()


def limit(worker, size):
    """From so many bytes on it takes no new large body."""
    buffers = worker.relay.registry.buffers
    buffers._much, buffers._stale_s = size - 1, 0.0


def code(answer):
    return answer.problem["type"].rpartition(":")[2]


def begin(gateway, length, sent, count=1):
    """Callers who have sent so much of their bodies; their greenlets."""
    head = f"POST /units/hospital/slow HTTP/1.1\r\nHost: test\r\nContent-Length: {length}\r\n\r\n".encode()
    for _ in range(count):
        gateway.callers.append(socket.create_connection(("127.0.0.1", gateway.asked.port)))
        gevent.spawn(gateway.callers[-1].sendall, head + bytes(sent))


def held_for_a_repetition(rig, gateway):
    """All of a body that the unit has taken, before its answer begins."""
    begin(gateway, KEEP_BYTES, KEEP_BYTES)
    rig.until(lambda: gateway.unit.ended)
    return KEEP_BYTES


def early_answer(rig, gateway):
    """Of an answer that the unit sends while it still reads."""
    begin(gateway, 300_000, 1_000)
    rig.until(lambda: gateway.seen)
    (stream,) = gateway.seen
    gateway.unit.answer(stream, 200, bytes(EARLY_BYTES), end=False)
    rig.until(lambda: not gateway.unit.session.queued_bytes(stream))
    return EARLY_BYTES


def answers_that_are_held_back(rig, gateway):
    """Too little of each for its head to be passed on."""
    for _ in range(16):
        gateway.callers.append(rig.send_request(gateway.asked.port, "GET", "/units/hospital/slow"))
    rig.until(lambda: len(gateway.seen) == 16)
    for stream in gateway.seen:
        gateway.unit.answer(stream, 200, bytes(60_000), end=False)
    return 16 * 60_000


@pytest.mark.parametrize("held", [held_for_a_repetition, early_answer, answers_that_are_held_back])
def test_no_new_large_body_when_the_buffers_are_full(rig, gateway, held):
    size, registry, port = held(rig, gateway), gateway.asked.relay.registry, gateway.asked.port
    rig.until(lambda: registry.buffers.held_bytes() >= size)
    assert registry.buffers.held_bytes() <= size + SLACK_BYTES
    limit(gateway.asked, size)
    large = rig.fetch(port, "POST", "/units/hospital/quick", bytes(65_537))
    assert (large.status, code(large)) == (503, "overloaded")
    assert rig.fetch(port, "POST", "/units/hospital/quick", bytes(60_000)).status == 200
    for sock in gateway.callers:
        sock.close()
    for stream in list(gateway.unit.session.streams):
        gateway.unit.session.send_data(stream, b"", True)
    gateway.unit.cut()
    rig.until(lambda: not registry.buffers.held_bytes())


def test_uploads_that_wait_for_the_unit_count_at_the_worker_that_holds_it(rig, gateway):
    """Queued for the unit's connection, and before it, where a sibling sent more than it has room for."""
    gateway.link._writing = True
    begin(gateway, 190_000, 1_000, count=16)
    rig.until(lambda: len(gateway.link.session.streams) == 16)
    for sock in gateway.callers:
        gevent.spawn(sock.sendall, bytes(189_000))
    if gateway.holder is not gateway.asked:
        rig.until(lambda: gateway.holder.relay.registry.buffers.held_bytes() == 16 * 190_000)
        assert gateway.link.session.outbox.queued_bytes < 16 * 190_000
    rig.until(lambda: gateway.link._crowd)
    limit(gateway.holder, 16 * 190_000 if gateway.holder is not gateway.asked else 1)
    large = rig.fetch(gateway.holder.port, "POST", "/units/hospital/quick", bytes(65_537))
    assert (large.status, code(large)) == (503, "overloaded")


def test_a_full_worker_takes_no_large_body_for_its_units_from_a_sibling(rig, gateway):
    limit(gateway.holder, 0)
    large = rig.fetch(gateway.asked.port, "POST", "/units/hospital/quick", bytes(65_537))
    here = gateway.holder is gateway.asked
    assert (large.status, code(large)) == (503, "overloaded" if here else "unit-overloaded")
    assert large.headers["retry-after"] == "1"
    assert large.problem.get("delivery", "not_dispatched") == "not_dispatched"
    assert rig.fetch(gateway.asked.port, "POST", "/units/hospital/quick", bytes(60_000)).status == 200


@pytest.mark.parametrize(
    ("method", "acknowledged", "delivery", "retryable"),
    [
        pytest.param("POST", False, "unknown", False, id="perhaps run"),
        pytest.param("PUT", False, "unknown", True, id="perhaps run, idempotent"),
        pytest.param("POST", True, "dispatched", False, id="acknowledged"),
    ],
)
def test_an_upload_that_is_dropped(rig, gateway, method, acknowledged, delivery, retryable):
    """At the worker that holds the unit; its answer says what the unit may have done."""
    gateway.unit.script = lambda unit, event: acknowledged and unit.ack(event.stream)
    head = f"{method} /units/hospital/slow HTTP/1.1\r\nHost: test\r\nContent-Length: 300000\r\n\r\n".encode()
    gateway.callers.append(socket.create_connection(("127.0.0.1", gateway.asked.port)))
    gateway.callers[0].sendall(head + bytes(1_000))
    rig.until(lambda: gateway.unit.bodies and rig.states() == {"accepted" if acknowledged else "sent"})
    buffers = gateway.holder.relay.registry.buffers
    (holder,) = [holder for holders in buffers.holders for holder in holders()]
    holder.drop()
    response = http.client.HTTPResponse(gateway.callers[0], method=method)
    response.begin()
    answer = Answer(response)
    assert (answer.status, code(answer)) == (503, "unit-overloaded")
    assert (answer.problem["delivery"], answer.problem["retryable"]) == (delivery, retryable)
    rig.until(lambda: gateway.unit.aborted)
    assert buffers.held_bytes() == 0


class Kept:
    """A holder of so many bytes, taken last at a moment."""

    def __init__(self, held_bytes, moved_s):
        self.held_bytes, self.moved_s, self.gone = held_bytes, moved_s, False

    def drop(self):
        self.gone, self.held_bytes = True, 0


LIMIT = 160_000
"""Much is 128,000, too much 140,000; looked at every 10,000."""


def bound(*kept):
    buffers, told = Buffers(LIMIT, lambda: told.append(1)), []
    buffers.meters.append(lambda: sum(holder.held_bytes for holder in kept))
    buffers.holders.append(lambda: kept)
    return buffers, told


@pytest.mark.parametrize(
    ("held", "gone"),
    [
        pytest.param([(140_000, 0.0)], [False], id="not too much"),
        pytest.param([(70_000, 5.0), (71_000, 0.0)], [False, True], id="the longest"),
        pytest.param([(1_000, 0.0), (140_000, 9.0)], [False, True], id="the most"),
        pytest.param([(47_000, t) for t in (2.0, 0.0, 1.0)], [False, True, False], id="no more than needed"),
        pytest.param([(0, 0.0), (200_000, 10.0)], [False, True], id="only who has something"),
    ],
)
def test_who_is_dropped(monkeypatch, held, gone):
    monkeypatch.setattr("gateway.relay.buffers.time.monotonic", lambda: 10.0)
    kept = [Kept(*one) for one in held]
    buffers, told = bound(*kept)
    buffers.arrived(9_999)
    assert not told
    buffers.arrived(1)
    assert [holder.gone for holder in kept] == gone
    assert len(told) == sum(gone)


def test_what_is_kept_for_a_repetition_goes_first():
    spare, stalled = Kept(20_000, 0.0), Kept(125_000, 0.0)
    buffers, _ = bound(spare, stalled)
    buffers.spares.append(spare.drop)
    buffers.arrived(10_000)
    assert (spare.gone, stalled.gone) == (True, False)


def test_a_repetition_is_given_up(rig, gateway):
    """Of the only body that is kept, by its own worker."""
    held_for_a_repetition(rig, gateway)
    buffers = gateway.asked.relay.registry.buffers
    assert buffers.held_bytes() >= KEEP_BYTES
    for spare in buffers.spares:
        spare()
    assert buffers.held_bytes() == 0


@pytest.mark.parametrize("length", [0, 65_536, 65_537, None])
def test_what_a_full_worker_takes(length):
    buffers, _ = bound(Kept(128_000, 0.0))
    assert buffers.takes(length)
    buffers.meters.append(lambda: 1)
    buffers._stale_s = 0.0
    assert buffers.takes(length) == (length is not None and length <= 65_536)


def test_summing_up_takes_little_of_the_time(monkeypatch):
    """A sum of 4 ms holds for 32 times as long; who was dropped is seen at once."""
    now = SimpleNamespace(s=10.0)
    clock = SimpleNamespace(monotonic=lambda: now.s, thread_time=lambda: now.s)
    monkeypatch.setattr("gateway.relay.buffers.time", clock)
    buffers, summed = Buffers(LIMIT), []

    def meter():
        now.s += 0.004
        summed.append(now.s)
        return 150_000

    buffers.meters.append(meter)
    assert not any(buffers.takes(None) for _ in range(5))
    assert len(summed) == 1
    now.s += 0.125
    assert not buffers.takes(None)
    assert len(summed) == 2
    buffers.meters[:] = [lambda: 0, lambda: 141_000 - 141_000 * len(dropped)]
    dropped = []
    buffers.spares.append(lambda: dropped.append(1))
    buffers.arrived(10_000)
    assert buffers.takes(None)

"""What a worker holds of bodies is counted wherever it is; where it is too much, no new large one is taken."""

from __future__ import annotations

from types import SimpleNamespace

import gevent
import pytest
from gevent import socket

from gateway.relay.exchange import EARLY_BYTES
from gateway.relay.request import KEEP_BYTES

BUFFER_BYTES = 1_000_000
"""Four fifths of it are 800,000."""

SLACK_BYTES = 66_000
"""A piece that is on its way."""


@pytest.fixture(params=["here", "through-sibling"])
def gateway(rig, request):
    """(worker that holds the unit, worker that is asked, the unit, its link); a target that begins with /quick is
    answered, others as the test says."""
    holder = rig.worker(relay_buffer_bytes=BUFFER_BYTES)
    asked = holder if request.param == "here" else rig.worker(relay_buffer_bytes=BUFFER_BYTES)
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
    rig.until(lambda: registry.buffered_bytes() >= size)
    assert registry.buffered_bytes() <= size + SLACK_BYTES
    large = rig.fetch(port, "POST", "/units/hospital/quick", bytes(65_537))
    assert (large.status, large.problem["type"].rpartition(":")[2]) == (503, "overloaded")
    assert rig.fetch(port, "POST", "/units/hospital/quick", bytes(60_000)).status == 200
    for sock in gateway.callers:
        sock.close()
    for stream in list(gateway.unit.session.streams):
        gateway.unit.session.send_data(stream, b"", True)
    gateway.unit.cut()
    rig.until(lambda: not registry.buffered_bytes())


def test_uploads_that_wait_for_the_unit_count_at_the_worker_that_holds_it(rig, gateway):
    """Queued for the unit's connection, and before it, where a sibling sent more than it has room for."""
    gateway.link._writing = True
    begin(gateway, 190_000, 1_000, count=16)
    rig.until(lambda: len(gateway.link.session.streams) == 16)
    for sock in gateway.callers:
        gevent.spawn(sock.sendall, bytes(189_000))
    if gateway.holder is not gateway.asked:
        rig.until(lambda: gateway.holder.relay.registry.buffered_bytes() == 16 * 190_000)
        assert gateway.link.session.outbox.queued_bytes < 16 * 190_000
    rig.until(lambda: gateway.link._crowd)
    large = rig.fetch(gateway.holder.port, "POST", "/units/hospital/quick", bytes(65_537))
    assert (large.status, large.problem["type"].rpartition(":")[2]) == (503, "overloaded")

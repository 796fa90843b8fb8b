"""Who does not read, or is not read, stops his own stream: no other of the unit, and none of the units behind the same
sibling."""

from __future__ import annotations

import http.client
from types import SimpleNamespace

import gevent
import pytest
from gevent import socket

from gateway.relay.buffers import Buffers
from gateway.relay.outbox import Place

STALLED, STALLED_BYTES = 63, 700_000
"""Uploads: of each a window is at the unit, another one between the workers, and more waits behind it."""

UNREAD_BYTES = 1_000_000
"""Of an answer that its caller does not read: two windows of it are between the unit and him."""

BODY = bytes(300_000)
"""More than a stream's window: it needs credit to come back."""

KERNEL_BYTES = 16_384

BUFFER_BYTES = 8_000_000
"""Less than what any of these tests leaves unread."""


WHERE = pytest.fixture(params=["here", "through-sibling"])


def build(rig, where, **settings):
    """(worker that holds both units, worker that is asked, the hospital, the sockets of its callers): of requests with
    a body to /stall nothing is taken, /long and /short are answered with a body, others with what they brought."""
    route = {"deadline_ms": 25_000}
    holder = rig.worker(route, **settings)
    asked = holder if where == "here" else rig.worker(route, **settings)

    def script(unit, event):
        target = event.request.target
        unit.ack(event.stream)
        if target.startswith(("/long", "/short")):
            unit.answer(event.stream, 200, bytes(UNREAD_BYTES if "long" in target else 250_000))
        elif not target.startswith("/stall"):
            unit.answer(event.stream, 200, b"%d" % take(unit, event.stream))

    hospital = rig.unit(holder, script, auto_consume=False)
    rig.unit(holder, unit="clinic")
    rig.until(lambda: all(map(asked.relay.registry.connected, ("hospital", "clinic"))))
    return SimpleNamespace(holder=holder, asked=asked, hospital=hospital, callers=[])


def take(unit, stream):
    """As a service does; how many bytes it were."""
    taken = 0
    while stream not in unit.ended or taken < len(unit.bodies[stream]):
        unit.session.consumed(stream, len(unit.bodies[stream]) - taken)
        taken = len(unit.bodies[stream])
        unit.poke()
        gevent.sleep(0.001)
    return taken


@WHERE
def gateway(rig, request):
    made = build(rig, request.param)
    yield made
    for sock in made.callers:
        sock.close()


@WHERE
def small(rig, request):
    """One of few buffers, and the most that a worker of it held, in its own measure."""
    made = build(rig, request.param, relay_buffer_bytes=BUFFER_BYTES)
    made.most = 0
    for worker in {made.holder, made.asked}:
        look_at(made, worker.relay.registry.buffers)
    yield made
    for sock in made.callers:
        sock.close()


def look_at(made, buffers):
    def arrived(size):
        Buffers.arrived(buffers, size)
        made.most = max(made.most, buffers.held_bytes())

    buffers.arrived = arrived


def asking(gateway):
    """The links whose streams a caller's requests are."""
    if gateway.asked is gateway.holder:
        return list(gateway.holder.relay.registry.local("hospital"))
    return list(gateway.asked.relay.fabric._asking)


def refused(gateway):
    """How many callers found the unit full."""
    return sum(ctx.error is not None for ctx in gateway.asked.seen)


def stand_still(link_queues, crowd=()):
    return all(queue.place in (Place.BLOCKED, Place.STARVED) or queue.stream in crowd for queue in link_queues.values())


def stall_uploads(rig, gateway):
    head = f"POST /units/hospital/stall HTTP/1.1\r\nHost: test\r\nContent-Length: {STALLED_BYTES}\r\n\r\n".encode()
    for _ in range(STALLED):
        gateway.callers.append(socket.create_connection(("127.0.0.1", gateway.asked.port)))
        gevent.spawn(gateway.callers[-1].sendall, head + bytes(STALLED_BYTES))
    (link,) = asking(gateway)
    queues = link.session.outbox.queues
    rig.until(lambda: len(queues) + refused(gateway) == STALLED and stand_still(queues, link._crowd), 10)


def leave_unread(rig, gateway, path, count):
    """Answers whose callers take what a small buffer of the kernel holds, and no more."""
    gateway.asked.server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, KERNEL_BYTES)
    hospital = gateway.hospital
    for number in range(1, count + 1):
        gateway.callers.append(sock := socket.socket())
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, KERNEL_BYTES)
        sock.connect(("127.0.0.1", gateway.asked.port))
        sock.sendall(f"GET /units/hospital/{path} HTTP/1.1\r\nHost: test\r\n\r\n".encode())
        rig.until(lambda number=number: len(hospital.bodies) + refused(gateway) == number)
        rig.until(lambda: stand_still(hospital.session.outbox.queues))


def fetch_soon(rig, gateway, method, unit, path, body=b""):
    """Long before what stands still is reset."""
    with gevent.Timeout(8):
        return rig.fetch(gateway.asked.port, method, f"/units/{unit}/{path}", body)


def test_uploads_that_nobody_takes_stop_no_other(rig, gateway):
    stall_uploads(rig, gateway)
    assert fetch_soon(rig, gateway, "POST", "clinic", "a", BODY).body == BODY
    assert fetch_soon(rig, gateway, "POST", "hospital", "a", b"small").body == b"5"
    assert fetch_soon(rig, gateway, "POST", "hospital", "a", BODY).body == b"%d" % len(BODY)


@pytest.mark.parametrize(("path", "count"), [("long", 60), ("short", 72)])
def test_answers_that_nobody_reads_stop_no_other(rig, gateway, path, count):
    leave_unread(rig, gateway, path, count)
    assert fetch_soon(rig, gateway, "POST", "clinic", "a", BODY).body == BODY
    assert len(fetch_soon(rig, gateway, "GET", "hospital", "long").body) == UNREAD_BYTES


def error_codes(made):
    return {ctx.error.code for ctx in made.asked.seen if ctx.error is not None}


def test_what_nobody_takes_is_bounded(rig, small):
    stall_uploads(rig, small)
    assert 0 < small.most <= BUFFER_BYTES
    assert error_codes(small) <= {"unit-overloaded", "overloaded"}
    assert len(error_codes(small)) > 0
    assert fetch_soon(rig, small, "POST", "clinic", "a", b"small").body == b"small"


@pytest.mark.parametrize("path", ["long", "short"])
def test_what_nobody_reads_is_bounded(rig, small, path):
    leave_unread(rig, small, path, 60)
    assert 0 < small.most <= BUFFER_BYTES
    assert len(fetch_soon(rig, small, "GET", "hospital", "long").body) == UNREAD_BYTES
    assert is_cut(small.callers[0])
    assert not is_cut(small.callers[-1])
    assert error_codes(small) == {"unit-overloaded"}


def is_cut(sock):
    """Does an answer, read to its end, lack some?"""
    response = http.client.HTTPResponse(sock)
    try:
        response.begin()
        response.read()
    except (OSError, http.client.IncompleteRead):
        return True
    return False

"""What waits for a unit's connection is bounded: uploads wait before it, new requests are refused or go elsewhere."""

from __future__ import annotations

import http.client
from types import SimpleNamespace

import gevent
import pytest
from gevent import socket

from gateway.relay import frames as fr
from gateway.relay.core import Limits, NotSendable
from gateway.relay.link import Link
from gateway.relay.outbox import LEAST_ROOM_BYTES
from gateway.relay.session import GatewaySession

UPLOADS, UPLOAD_BYTES = 60, 190_000
"""Held, each of them; together more than the queue and the connection's credit."""

BEGUN_BYTES = 1_000


def upload(port, begun=BEGUN_BYTES):
    """A caller who has sent the first bytes of his body."""
    sock = socket.create_connection(("127.0.0.1", port))
    head = f"POST /units/hospital/a HTTP/1.1\r\nHost: test\r\nContent-Length: {UPLOAD_BYTES}\r\n\r\n"
    sock.sendall(head.encode() + bytes(begun))
    return sock


def finish(sock, begun=BEGUN_BYTES):
    """Status and body of the answer, after the rest of the upload."""
    sock.sendall(bytes(UPLOAD_BYTES - begun))
    response = http.client.HTTPResponse(sock)
    response.begin()
    return response.status, response.read()


def serve(unit):
    """As an agent does: of a held request it takes nothing before GO; then it answers with the body's length."""
    taken, answered = {}, set()
    while True:
        gevent.sleep(0.002)
        for stream in (unit.released | unit.ended) - answered:
            if stream not in taken:
                unit.session.send_ack(stream)
            size = len(unit.bodies[stream])
            unit.session.consumed(stream, size - taken.get(stream, 0))
            taken[stream] = size
            if stream in unit.ended:
                answered.add(stream)
                unit.session.send_response(stream, fr.Response(200, [], None), b"%d" % size, True)
        unit.poke()


@pytest.fixture
def watched(rig):
    """(the worker that holds the unit, another one, its link that writes nothing yet, the most that was queued)"""
    worker, sibling = (rig.worker(route={"deadline_ms": 20_000}) for _ in range(2))
    unit = rig.unit(worker, auto_consume=False)
    unit._run = lambda event: None
    serving = gevent.spawn(serve, unit)
    rig.until(lambda: sibling.relay.registry.connected("hospital"))
    (link,) = worker.relay.registry.local("hospital")
    link._writing, most = True, [0]

    def send_data(stream, data, end):
        sent = GatewaySession.send_data(link.session, stream, data, end)
        most[0] = max(most[0], link.session.outbox.queued_bytes)
        return sent

    link.session.send_data = send_data
    yield SimpleNamespace(worker=worker, sibling=sibling, link=link, most=most)
    serving.kill()


@pytest.mark.parametrize("where", ["worker", "sibling"])
def test_uploads_wait_for_room_and_new_requests_do_not(rig, watched, where):
    port, link = getattr(watched, where).port, watched.link
    callers = [upload(port) for _ in range(UPLOADS)]
    rig.until(lambda: len(link.session.streams) == UPLOADS)
    uploads = [gevent.spawn(finish, sock) for sock in callers]
    rig.until(lambda: link._crowd)
    small = gevent.spawn(rig.fetch, port, "GET", "/units/hospital/b")
    rig.until(lambda: len(link.session.streams) == UPLOADS + 1)
    link._writing = False
    link._send_soon()
    gevent.joinall([small, *uploads], timeout=20, raise_error=True)
    assert small.value.status == 200
    assert [upload.value for upload in uploads] == [(200, b"%d" % UPLOAD_BYTES)] * UPLOADS
    half = Limits().queue_bytes // 2
    assert half - LEAST_ROOM_BYTES < watched.most[0] <= half


@pytest.mark.parametrize("where", ["worker", "sibling"])
def test_a_full_queue_takes_no_new_request(rig, watched, where):
    port, link = getattr(watched, where).port, watched.link
    outbox = link.session.outbox
    outbox.limit_bytes = 262_144
    uploads = [gevent.spawn(finish, upload(port))]
    rig.until(lambda: link._crowd)
    while outbox.takes_stream(0):
        streams = len(link.session.streams)
        uploads.append(gevent.spawn(finish, upload(port, LEAST_ROOM_BYTES), LEAST_ROOM_BYTES))
        rig.until(lambda streams=streams: len(link.session.streams) > streams)
    refused = rig.fetch(port, "GET", "/units/hospital/b")
    assert (refused.status, refused.problem["type"].rpartition(":")[2]) == (503, "unit-overloaded")
    assert (refused.problem["delivery"], refused.headers["retry-after"]) == ("not_dispatched", "1")
    assert outbox.queued_bytes <= outbox.limit_bytes
    gevent.killall(uploads)


def session_with(queued):
    session = GatewaySession(Limits(), 0.0)
    (hello,) = session.receive(fr.encode(fr.Hello("a", "b")), 0.0)
    session.welcome(fr.Welcome("c", 1), 0.0, hello.hello)
    session.send_request(fr.Request("i", "PUT", "/", []), 9.0, bytes(queued), True)
    return session


@pytest.mark.parametrize(
    ("queued", "body", "refused"),
    [
        (0, 5_000_000, False),
        (4_194_304 - LEAST_ROOM_BYTES, 0, False),
        (4_194_304 - LEAST_ROOM_BYTES + 1, 0, True),
        (3_194_304, 1_000_000, False),
        (3_194_304, 1_000_001, True),
    ],
)
def test_a_request_starts_where_a_piece_has_room(queued, body, refused):
    session, request = session_with(queued), fr.Request("i", "PUT", "/", [])
    if not refused:
        session.send_request(request, 9.0, bytes(body), True)
        return
    with pytest.raises(NotSendable) as caught:
        session.send_request(request, 9.0, bytes(body), True)
    assert (caught.value.reason, caught.value.full) == ("queue", True)


class Waits:
    told = 0

    def on_room(self):
        self.told += 1


@pytest.mark.parametrize("how", ["it leaves", "it is reset", "its deadline passes"])
def test_who_waits_is_told_of_room_once(how):
    link, waits = Link(session_with(4_194_304), None, lambda: 1.0), Waits()
    (stream,) = link.session.streams
    link.await_room(waits)
    link.await_room(waits)
    if how == "it leaves":
        while not waits.told and link.session.has_frames:
            link.session.data_to_send(1.0)
            link._tell_flushed()
            link.session.outbox.add_credit(stream, 262_144)
    elif how == "it is reset":
        link.reset(stream, fr.ResetCode.CANCEL)
    else:
        link._handle(link.session.tick(10.0))
    assert waits.told == 1

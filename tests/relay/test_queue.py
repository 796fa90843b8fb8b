"""What waits for a unit's connection is bounded: uploads wait before it, new requests are refused or go elsewhere."""

from __future__ import annotations

import http.client
from types import SimpleNamespace

import gevent
import pytest
from gevent import socket

from gateway.relay import frames as fr
from gateway.relay.core import Limits, NotSendable
from gateway.relay.exchange import HIGH_WATER_BYTES
from gateway.relay.link import Link
from gateway.relay.mesh_link import Forward
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


class Upload:
    """Of a body without end; puts 64 KiB whenever it may, as callers and siblings do."""

    def __init__(self, link, deadline_s=9.0):
        self.link, self.put_bytes, self.told = link, 0, 0
        self.stream = link.start(fr.Request("i", "PUT", "/", []), deadline_s, self, b"", False)

    def put(self):
        while self.link.session.queued_bytes(self.stream) < HIGH_WATER_BYTES:
            if not self.link.has_room(self.stream, LEAST_ROOM_BYTES):
                return
            self.put_bytes += LEAST_ROOM_BYTES * self.link.send_data(self.stream, bytes(LEAST_ROOM_BYTES), False)

    def on_room(self):
        self.told += 1
        self.put()

    def on_flushed(self, size):
        self.put()

    def on_ack(self):
        return

    def on_response(self, response, body, end):
        return

    def on_failed(self, failure):
        return


def write_some(link):
    """What one write takes; the unit reads it at once."""
    link.session.data_to_send(1.0)
    outbox = link.session.outbox
    for stream, size in outbox.flushed:
        outbox.add_credit(stream, size)
        outbox.add_connection_credit(size)
    link._tell_flushed()


def still_link(queued):
    """Writes nothing by itself."""
    link = Link(session_with(queued), None, lambda: 1.0)
    link._flush_due, link._wake_writer = True, lambda: None
    return link


@pytest.fixture
def crowded():
    """(a link whose queue is full, its uploads, of which the last ones stand in line)"""
    link = still_link(0)
    uploads = [Upload(link) for _ in range(40)]
    for upload in uploads:
        upload.put()
    assert 0 < len(link._crowd) < len(uploads)
    return SimpleNamespace(link=link, uploads=uploads, line=list(link._crowd))


def test_who_waits_is_not_overtaken(crowded):
    late = Upload(crowded.link)
    late.put()
    others, rounds = sum(upload.put_bytes for upload in crowded.uploads), 0
    while late.put_bytes < 4 * LEAST_ROOM_BYTES:
        rounds += 1
        assert rounds < 1_000
        write_some(crowded.link)
    put_bytes = sum(upload.put_bytes for upload in crowded.uploads) - others
    assert put_bytes <= 5 * len(crowded.uploads) * LEAST_ROOM_BYTES
    assert crowded.link.session.outbox.queued_bytes <= Limits().queue_bytes // 2


def test_the_first_in_line_is_told_and_the_next_once_he_has_taken_his_room(crowded):
    link, (first, second) = crowded.link, crowded.line[:2]
    by_stream = {upload.stream: upload for upload in crowded.uploads}
    by_stream[first].put = lambda: None
    for _ in range(10):
        write_some(link)
    assert by_stream[first].told
    assert not by_stream[second].told
    assert not link.has_room(second, 1)
    assert link.has_room(first, LEAST_ROOM_BYTES)
    link.send_data(first, bytes(LEAST_ROOM_BYTES), False)
    assert by_stream[second].told


def answer(link, stream):
    link._handle(link.session.receive(fr.encode(fr.Ack(stream)), 1.0))
    link._handle(link.session.receive(fr.encode(fr.ResponseFrame(stream, fr.Response(200, [], None), b"", True)), 1.0))


ENDS = {
    "reset by us": lambda link, stream: link.reset(stream, fr.ResetCode.CANCEL),
    "reset by the unit": lambda link, stream: link._handle(
        link.session.receive(fr.encode(fr.Reset(stream, fr.ResetCode.CANCEL, "", None)), 1.0)
    ),
    "answered early": answer,
    "past its deadline": lambda link, stream: link._handle(link.session.tick(10.0)),
    "lost": lambda link, stream: link._end("lost"),
}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_who_has_ended_stands_in_no_line(crowded, end):
    link, stream = crowded.link, crowded.line[0]
    for upload in crowded.uploads:
        upload.put = lambda: None
    link.session.data_to_send(1.0, Limits().conn_window)
    end(link, stream)
    assert stream not in link._crowd
    assert link._crowd.keys() <= link.sinks.keys()
    assert link.has_room(stream, 1)
    assert not link.send_data(stream, b"x", False)
    assert stream not in link._crowd


def test_what_waited_for_a_unit_that_has_answered_is_given_back(crowded):
    link, given = crowded.link, []
    session = SimpleNamespace(send_ack=lambda stream: True, send_response=lambda *answer: True)
    back = SimpleNamespace(
        session=session,
        poke=lambda: None,
        consumed=lambda stream, size: given.append(size),
        clock=lambda: 0.0,
        forget=lambda stream: None,
    )
    forward = Forward(back, 7)
    forward.onward = link
    forward.onward_stream = link.start(fr.Request("i", "PUT", "/", []), 9.0, forward, b"", False)
    assert forward.send_onward(bytes(LEAST_ROOM_BYTES), False)
    assert (forward.waiting_bytes, given) == (LEAST_ROOM_BYTES, [])
    for upload in crowded.uploads:
        upload.put = lambda: None
    link.session.data_to_send(1.0, Limits().conn_window)
    answer(link, forward.onward_stream)
    assert (forward.waiting_bytes, given) == (0, [LEAST_ROOM_BYTES])
    assert not forward.send_onward(b"x", False)


@pytest.mark.parametrize("how", ["it leaves", "it is reset", "its deadline passes"])
def test_who_waits_is_told_of_room(how):
    link = still_link(4_194_304)
    (stream,) = link.session.streams
    link.session.outbox.limit_bytes += LEAST_ROOM_BYTES
    waits = Upload(link, 99.0)
    link.session.outbox.limit_bytes -= LEAST_ROOM_BYTES
    waits.put()
    assert not waits.put_bytes
    if how == "it leaves":
        while not waits.put_bytes and link.session.has_frames:
            write_some(link)
    elif how == "it is reset":
        link.reset(stream, fr.ResetCode.CANCEL)
    else:
        link._handle(link.session.tick(9.0))
    assert waits.told


class Taking:
    """A carrier that takes everything at once."""

    def write_now(self, messages):
        return True

    write = write_now

    def has_replies(self):
        return False


@pytest.mark.parametrize("writer", ["hub", "greenlet"])
def test_who_waits_for_his_own_credit_stands_in_nobodys_way(writer):
    link = still_link(0)
    link.carrier = Taking()
    stalled, waits = Upload(link), Upload(link)
    window = Limits().stream_window
    link.session.send_data(stalled.stream, bytes(window), False)
    link.session.data_to_send(1.0, 2 * window)
    link.session.take_flushed()
    outbox = link.session.outbox
    outbox.limit_bytes = 2 * LEAST_ROOM_BYTES
    link.session.send_data(stalled.stream, bytes(LEAST_ROOM_BYTES), False)
    waits.put()
    assert not waits.put_bytes
    link._write_now() if writer == "hub" else link._write_loop()
    assert outbox.blocked_bytes == LEAST_ROOM_BYTES
    assert waits.put_bytes >= LEAST_ROOM_BYTES
    outbox.add_credit(stalled.stream, 1)
    assert outbox.blocked_bytes == 0

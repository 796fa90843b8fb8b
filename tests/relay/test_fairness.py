"""Turns on one connection: by bytes in the outbox, by work in the hub; a large body stops nobody else."""

from __future__ import annotations

import random
import socket as plain
import threading
import time
from functools import partial
from types import SimpleNamespace

import gevent
import pytest
from gevent import socket

from fastpath.frames import OP_BINARY, encode_frame
from gateway.agent.link import Link as AgentLink
from gateway.relay import frames as fr
from gateway.relay.core import Limits
from gateway.relay.link import MESSAGE_COST, TURN_COST, Link
from gateway.relay.outbox import TURN_BYTES
from gateway.relay.session import GatewaySession, UnitSession
from gateway.relay.websocket import READ_BYTES, UnitSocket

MIB = 1_048_576


def pair(limits=None, now_s=0.0):
    """An active gateway and unit."""
    limits = limits or Limits()
    gateway, unit = GatewaySession(limits, now_s), UnitSession(limits, now_s, fr.Hello("a", "b"))
    hello = fr.Hello("a", "b", max_streams=limits.max_streams, conn_window=limits.conn_window)
    for message in unit.data_to_send(now_s):
        gateway.receive(message, now_s)
    gateway.welcome(fr.Welcome("c", 1, conn_window=limits.conn_window), now_s, hello)
    for message in gateway.data_to_send(now_s):
        unit.receive(message, now_s)
    return gateway, unit


def ask(gateway, unit, now_s=0.0):
    stream = gateway.send_request(fr.Request("i", "GET", "/", [], 0, 60_000), 1e9)
    for message in gateway.data_to_send(now_s):
        unit.receive(message, now_s)
    unit.send_ack(stream)
    return stream


def carry(source, target, messages):
    """Messages arrive and what they carried is taken at once."""
    for message in messages:
        for event in target.receive(message, 0.0):
            if getattr(event, "body", b""):
                target.consumed(event.stream, len(event.body))
    for message in target.data_to_send(0.0):
        source.receive(message, 0.0)


@pytest.mark.parametrize("downloads", [1, 3])
def test_a_download_of_64_mib_delays_a_small_answer_by_one_turn(downloads):
    """Counted in bytes of each download that leave between the small answer's being there and its leaving."""
    dice = random.Random(downloads)
    gateway, unit = pair()
    large = [ask(gateway, unit) for _ in range(downloads)]
    left = dict.fromkeys(large, 64 * MIB)
    for stream in large:
        unit.send_response(stream, fr.Response(200, []))
    waiting, between, worst, small_answers = None, dict.fromkeys(large, 0), 0, 0
    while any(left.values()):
        for stream in large:
            room = min(left[stream], 262_144 - unit.queued_bytes(stream))
            left[stream] -= max(room, 0)
            unit.send_data(stream, bytes(max(room, 0)))
        if waiting is None and dice.random() < 0.3:
            waiting = ask(gateway, unit)
            unit.send_response(waiting, fr.Response(200, []), b"x" * dice.choice([1, 900]), True)
            between = dict.fromkeys(large, 0)
        messages = unit.data_to_send(0.0, dice.choice([1, 40_000, 65_536]))
        for message in messages:
            stream = int.from_bytes(message[4:8], "big")
            if message[1] == fr.FrameType.DATA and waiting is not None:
                between[stream] += len(message) - fr.PREFIX_BYTES
            elif stream == waiting and message[1] == fr.FrameType.RES:
                worst, waiting, small_answers = max(worst, *between.values()), None, small_answers + 1
        carry(unit, gateway, messages)
    assert small_answers > 100
    assert 0 < worst <= TURN_BYTES


# --- the hub


class Taker:
    """A sink that takes everything at once."""

    def __init__(self, link):
        self.link = link
        self.stream = 0
        self.size = self.frames = 0

    def on_ack(self): ...
    def on_flushed(self, size): ...
    def on_failed(self, failure): ...

    def on_response(self, response, body, end):
        self.on_data(body, end)

    def on_data(self, body, end):
        self.size += len(body)
        self.frames += 1
        self.link.consumed(self.stream, len(body))


class Turns:
    """What reached the sinks between two looks of the hub at its sockets: bytes, frames."""

    def __init__(self, sinks):
        self.sinks = sinks
        self.most = [0, 0]
        self._before = (0, 0)
        self._watcher = gevent.get_hub().loop.prepare()
        self._watcher.start(self._turn)

    def _turn(self):
        now = (sum(sink.size for sink in self.sinks), sum(sink.frames for sink in self.sinks))
        self.most = [max(most, n - before) for most, n, before in zip(self.most, now, self._before, strict=True)]
        self._before = now

    def stop(self):
        self._turn()
        self._watcher.stop()
        self._watcher.close()


def frames_of(limits, streams, size, piece):
    """A gateway that waits for answers, and all bytes of these answers as a unit would send them."""
    gateway, unit = pair(limits)
    for _ in range(streams):
        stream = ask(gateway, unit)
        unit.send_response(stream, fr.Response(200, []))
        for at in range(0, size, piece):
            unit.send_data(stream, bytes(min(piece, size - at)), at + piece >= size)
    data = bytearray()
    while unit.has_frames:
        for message in unit.data_to_send(0.0):
            for part in [message] if piece > 1_000 else split(message, piece):
                data += encode_frame(OP_BINARY, part, b"mask")
    return gateway, bytes(data)


def split(message, piece):
    """The same frame as many small ones."""
    kind, stream, body = message[1], int.from_bytes(message[4:8], "big"), message[12:]
    if kind != fr.FrameType.DATA:
        return [message]
    parts = [body[at : at + piece] for at in range(0, len(body), piece)]
    end = bool(message[3] & 1)
    return [fr.encode(fr.Data(stream, part, end and n == len(parts) - 1)) for n, part in enumerate(parts)]


# A turn of the link's may end and begin again in one turn of the hub.
MOST_BYTES = 2 * TURN_COST + READ_BYTES
MOST_FRAMES = 2 * (TURN_COST // MESSAGE_COST) + 10


@pytest.mark.parametrize(
    ("streams", "size", "piece"),
    [(16, 262_144, 32_768), (1, 60_000, 10)],
    ids=["4 MiB at once", "frames of ten bytes"],
)
def test_a_unit_that_never_pauses_does_not_hold_the_hub(streams, size, piece):
    """Its bytes are always there before they are read; the sender is a thread, for it must not wait for the hub."""
    limits = Limits(conn_window=8 * MIB)
    session, data = frames_of(limits, streams, size, piece)
    ours, theirs = socket.socketpair()
    link = Link(session, UnitSocket(ours, b"", 131_072), lambda: 0.0)
    sinks = []
    for stream in session.streams:
        sink = link.sinks[stream] = Taker(link)
        sink.stream = stream
        sinks.append(sink)
    raw = plain.socket(fileno=theirs.detach())
    raw.setblocking(True)
    sender = threading.Thread(target=raw.sendall, args=(data,), daemon=True)
    drain = threading.Thread(target=lambda: [None for _ in iter(lambda: raw.recv(65_536), b"")], daemon=True)
    turns = Turns(sinks)
    sender.start()
    drain.start()
    running = gevent.spawn(link.run)
    with gevent.Timeout(20):
        while sum(sink.size for sink in sinks) < streams * size:
            gevent.sleep(0.001)
    turns.stop()
    link.close(1000, "done")
    raw.shutdown(2)
    running.join(3)
    raw.close()
    ours.close()
    assert 0 < turns.most[0] <= MOST_BYTES
    assert 0 < turns.most[1] <= MOST_FRAMES


# --- what a body costs

STREAMS, STREAM_BYTES = 16, 262_144
"""4 MiB that need no credit given back."""

MOST_S_PER_MIB = 0.02
"""CPU time, ten times what it takes. A loop of the interpreter over the bytes takes 0.05 to 0.12 s for each MiB."""


def gateway_reads(sock):
    """The link, what its peer sends, and whether all of it was taken."""
    session, data = frames_of(Limits(conn_window=8 * MIB), STREAMS, STREAM_BYTES, 32_768)
    link = Link(session, UnitSocket(sock, b"", 131_072), lambda: 0.0)
    sinks = link.sinks
    for stream in session.streams:
        sinks[stream] = Taker(link)
        sinks[stream].stream = stream
    takers = list(sinks.values())
    return link.run, data, lambda: sum(taker.size for taker in takers) == STREAMS * STREAM_BYTES


def uploads(now_s):
    """A pair of sessions of which the gateway's has all bodies to send."""
    gateway, unit = pair(Limits(conn_window=8 * MIB), now_s)
    for _ in range(STREAMS):
        gateway.send_request(
            fr.Request("i", "PUT", "/", [], STREAM_BYTES, 60_000), now_s + 60, bytes(STREAM_BYTES), True
        )
    return gateway, unit


def gateway_writes(sock):
    gateway, _ = uploads(0.0)
    link = Link(gateway, UnitSocket(sock, b"", 131_072), lambda: 0.0)
    return link.run, b"", lambda: not gateway.has_frames and not link._writing


def agent_link(session):
    log = SimpleNamespace(info=lambda *_, **__: None, warning=lambda *_, **__: None)
    link = AgentLink(SimpleNamespace(max_streams=64), None, log, fr.Hello("a", "b"), lambda: None)
    link._session, link._start = session, lambda event: None
    return link


def agent_reads(sock):
    now_s = time.monotonic()
    gateway, unit = uploads(now_s)
    data = bytearray()
    while gateway.has_frames:
        data += b"".join(encode_frame(OP_BINARY, message) for message in gateway.data_to_send(now_s))
    link = agent_link(unit)
    return partial(link.run, sock, b""), bytes(data), lambda: all(s.received_end for s in unit.streams.values())


def agent_writes(sock):
    now_s = time.monotonic()
    gateway, unit = pair(Limits(conn_window=8 * MIB), now_s)
    for _ in range(STREAMS):
        unit.send_response(ask(gateway, unit, now_s), fr.Response(200, []), bytes(STREAM_BYTES), True)
    link = agent_link(unit)
    return partial(link.run, sock, b""), b"", lambda: not unit.has_frames and not link._writing


@pytest.mark.parametrize("end", [gateway_reads, gateway_writes, agent_reads, agent_writes])
def test_a_mib_of_body_costs_a_fraction_of_what_python_would_take(end):
    """Its peer is a thread, whose CPU time does not count."""
    ours, theirs = socket.socketpair()
    run, data, is_done = end(ours)
    raw = plain.socket(fileno=theirs.detach())
    raw.setblocking(True)
    threading.Thread(target=raw.sendall, args=(data,), daemon=True).start()
    threading.Thread(target=lambda: [None for _ in iter(lambda: raw.recv(65_536), b"")], daemon=True).start()
    began_s = time.thread_time()
    running = gevent.spawn(run)
    with gevent.Timeout(20):
        gevent.sleep(0.001)
        while not is_done():
            gevent.sleep(0.001)
    spent_s = time.thread_time() - began_s
    raw.shutdown(2)
    running.join(3)
    raw.close()
    ours.close()
    assert spent_s * MIB / (STREAMS * STREAM_BYTES) < MOST_S_PER_MIB

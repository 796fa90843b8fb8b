"""Turns on one connection: by bytes in the outbox, by work in the hub; a large body stops nobody else."""

from __future__ import annotations

import random
import socket as plain
import threading
import time

import gevent
import pytest
from gevent import socket

from fastpath.frames import OP_BINARY, encode_frame
from gateway.relay import frames as fr
from gateway.relay.core import Limits
from gateway.relay.link import MESSAGE_COST, TURN_COST, Link
from gateway.relay.outbox import TURN_BYTES
from gateway.relay.session import GatewaySession, UnitSession
from gateway.relay.websocket import READ_BYTES, UnitSocket

MIB = 1_048_576


def pair(limits=None):
    """An active gateway and unit."""
    limits = limits or Limits()
    gateway, unit = GatewaySession(limits, 0.0), UnitSession(limits, 0.0, fr.Hello("a", "b"))
    hello = fr.Hello("a", "b", max_streams=limits.max_streams, conn_window=limits.conn_window)
    for message in unit.data_to_send(0.0):
        gateway.receive(message, 0.0)
    gateway.welcome(fr.Welcome("c", 1, conn_window=limits.conn_window), 0.0, hello)
    for message in gateway.data_to_send(0.0):
        unit.receive(message, 0.0)
    return gateway, unit


def ask(gateway, unit):
    stream = gateway.send_request(fr.Request("i", "GET", "/", []), 1e9)
    for message in gateway.data_to_send(0.0):
        unit.receive(message, 0.0)
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
    """What reached the sinks between two looks of the hub at its sockets: bytes, frames, and the CPU time it took."""

    def __init__(self, sinks):
        self.sinks = sinks
        self.most = [0, 0]
        self.longest_s = 0.0
        self._before, self._began_s = (0, 0), time.thread_time()
        self._watcher = gevent.get_hub().loop.prepare()
        self._watcher.start(self._turn)

    def _turn(self):
        now = (sum(sink.size for sink in self.sinks), sum(sink.frames for sink in self.sinks))
        self.most = [max(most, n - before) for most, n, before in zip(self.most, now, self._before, strict=True)]
        self.longest_s = max(self.longest_s, time.thread_time() - self._began_s)
        self._before, self._began_s = now, time.thread_time()

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
def test_a_unit_that_never_pauses_does_not_hold_the_hub(streams, size, piece, capsys):
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
    with capsys.disabled():
        print(f"\nlongest turn {turns.longest_s * 1000:.2f} ms; most in one: bytes, frames {turns.most}")
    assert 0 < turns.most[0] <= MOST_BYTES
    assert 0 < turns.most[1] <= MOST_FRAMES

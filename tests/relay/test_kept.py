"""What is kept of streams is counted as long as it is there, and no more is, and it is forgotten with them."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest

from gateway.relay import events as ev
from gateway.relay import frames as fr
from gateway.relay.exchange import Exchange
from gateway.relay.frames import ResetCode
from gateway.relay.mesh_link import Forward
from gateway.relay.outbox import TURN_BYTES, StreamQueue
from gateway.relay.request import RequestBody
from gateway.relay.session import Limits, State, StreamState
from tests.relay.test_buffers import Kept, bound
from tests.relay.test_session import advance, deliver, pair, request
from tests.relay.test_windows import asking, gateway, leave_unread

__all__ = ["gateway"]

# --- a sibling's streams


def no_body(unit, stream):
    unit.answer(stream, 200, b"")


def end_alone(unit, stream):
    unit.answer(stream, 200, b"part", end=False)
    _, asker = unit.rig.workers
    (link,) = asker.relay.fabric._asking
    unit.rig.until(lambda: link.session.streams[stream].state is StreamState.STREAMING)
    unit.session.send_data(stream, b"", True)
    unit.poke()


@pytest.mark.parametrize("answers", [no_body, end_alone])
def test_a_stream_for_a_sibling_is_forgotten_with_its_answer(rig, answers):
    holder, asker = rig.worker(), rig.worker()

    def script(unit, event):
        unit.ack(event.stream)
        answers(unit, event.stream)

    rig.unit(holder, script)
    rig.until(lambda: asker.relay.registry.connected("hospital"))
    assert rig.fetch(asker.port, "GET", "/units/hospital/a").status == 200
    (link,) = holder.relay.fabric._holding.values()
    rig.until(lambda: not link.session.streams)
    assert not list(link.forwards)


# --- credit


@pytest.mark.parametrize("lives", [True, False])
def test_credit_that_was_not_told_cannot_be_used(lives):
    """SEC: who sends on without reading would have a WINDOW wait for every byte."""
    gateway, unit = pair(Limits(max_streams=8, stream_window=1, conn_window=1, max_frame=1_100))
    stream = advance(gateway, unit, 3)
    gateway.consumed(stream, 1)
    deliver(gateway, unit)
    if not lives:
        gateway.reset(stream, ResetCode.CANCEL)
    told = []
    for _ in range(2_000):
        told += gateway.receive(fr.encode(fr.Data(stream, b"x")), 0.0)
        gateway.consumed(stream, 1)
    assert len(gateway.outbox.control) < 10
    assert [event.reason for event in told if isinstance(event, ev.SessionClosed)] == ["violation"]


def test_credit_is_due_while_much_is_in_line():
    """A sibling's socket is full for a moment: that is nobody's violation."""
    limits = Limits(max_streams=2_048, stream_window=1_000, conn_window=1_000, max_frame=16_384)
    gateway, unit = pair(limits)
    streams = [gateway.send_request(request("GET"), 30.0) for _ in range(2_000)]
    deliver(gateway, unit)
    assert all(map(unit.send_ack, streams))
    gateway.send_request(request(), 30.0, bytes(900))
    deliver(gateway, unit)
    assert unit.state is State.ACTIVE
    deliver(unit, gateway)
    assert gateway.outbox.credit == 1_000


# --- what nobody has read yet


def reset(unit):
    for stream in list(unit.session.streams):
        unit.session.reset(stream, ResetCode.INTERNAL)
    unit.poke()


def cut(unit):
    unit.cut()


@pytest.mark.parametrize("ends", [reset, cut])
def test_the_rest_of_an_answer_counts_although_its_stream_has_failed(rig, gateway, ends):
    leave_unread(rig, gateway, "long", 4)
    (link,) = asking(gateway)
    buffers = gateway.asked.relay.registry.buffers
    before = buffers.held_bytes()
    ends(gateway.hospital)
    rig.until(lambda: not link.session.streams)
    assert before > 400_000
    assert buffers.held_bytes() >= before - 4 * TURN_BYTES
    for sock in gateway.callers:
        sock.close()
    rig.until(lambda: not buffers.held_bytes())


class Back:
    """The sibling's side of a stream that ends there."""

    clock = staticmethod(time.monotonic)

    def send_data(self, stream, body, end):
        return True

    def consumed(self, stream, size):
        return None


def waits_for_answer():
    exchange = Exchange()
    return exchange, lambda: exchange.on_data(bytes(20_000), False)


def sibling_waits_for_answer():
    forward = Forward(Back(), 1)
    return forward, lambda: forward.on_data(bytes(20_000), False)


@pytest.mark.parametrize("waits", [waits_for_answer, sibling_waits_for_answer])
def test_who_has_waited_long_for_bytes_is_not_who_keeps_them_long(waits):
    """A minute for the first bytes: dropped is who has left fewer of them unread for a second."""
    now_s = time.monotonic()
    waiting, come = waits()
    waiting.moved_s = now_s - 60.0
    stalled = Kept(139_000, now_s - 1.0)
    buffers, told = bound(stalled, waiting)
    come()
    assert waiting.held_bytes == 20_000
    buffers.arrived(20_000)
    assert (stalled.gone, len(told)) == (True, 1)
    assert waiting.held_bytes == 20_000


def test_what_waits_for_a_sibling_counts_after_its_unit_has_gone():
    forward = Forward(Back(), 1)
    forward.onward = SimpleNamespace(ended=False, session=SimpleNamespace(queued_bytes=lambda stream: 0))
    forward.on_data(bytes(20_000), True)
    assert forward.kept_bytes == 0
    forward.onward.ended = True
    assert forward.kept_bytes == 20_000


def queue():
    made = StreamQueue(1, 0)
    return made.put, lambda: made.chunks, lambda: made.take(made.queued_bytes)


def exchange():
    made = Exchange()
    return lambda piece: made.on_data(piece, False), lambda: made.chunks, made.take_all


def kept_body():
    pieces = iter(PIECES)
    made = RequestBody(SimpleNamespace(read=lambda size: next(pieces)), None, 1 << 20)
    return lambda piece: made.next(), lambda: made._kept, lambda: made.first()[0]


PIECES = [b"%05d" % number for number in range(10_000)]


@pytest.mark.parametrize("keeper", [queue, exchange, kept_body])
def test_small_pieces_are_not_kept_one_by_one(keeper):
    """SEC: of two bytes each they would be twenty-five times what is counted."""
    put, pieces, take = keeper()
    for piece in PIECES:
        put(piece)
    assert len(pieces()) < 50
    assert bytes(take()) == b"".join(PIECES)

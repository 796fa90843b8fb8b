"""What is kept of streams is counted as long as it is there, and no more is, and it is forgotten with them."""

from __future__ import annotations

import pytest

from gateway.relay import events as ev
from gateway.relay import frames as fr
from gateway.relay.frames import ResetCode
from gateway.relay.session import Limits, State, StreamState
from tests.relay.test_session import advance, deliver, pair, request

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

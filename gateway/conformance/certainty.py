"""Rules of certainty: what an agent says of a request having run is true."""

from __future__ import annotations

import time

from gateway.conformance.kit import Kit
from gateway.conformance.registry import need, rule
from gateway.relay import frames as fr
from gateway.relay.frames import ResetCode


@rule("hold", "a request with HOLD waits for GO: no ACK and no byte to the local service before")
def _hold(kit: Kit) -> None:
    peer = kit.peer()
    before = len(kit.service.seen)
    stream = peer.request("/echo", hold=True)
    peer.silent(0.4, stream)
    need(len(kit.service.seen) == before, "it ran before GO")
    peer.send(fr.Go(stream))
    peer.answer(stream)


@rule("cancel", "RESET ends the work at the local service, and RESET_ACK says whether that may have seen the request")
def _cancel(kit: Kit) -> None:
    peer = kit.peer()
    stream = peer.request("/hang")
    peer.expect(fr.Ack, stream)
    time.sleep(0.1)
    peer.send(fr.Reset(stream, ResetCode.CANCEL, "cancelled"))
    need(peer.expect(fr.ResetAck, stream).dispatched, "RESET_ACK says that it was not dispatched")
    need(kit.service.seen[-1].closed.wait(2), "the connection to the local service stays open")
    held = peer.request("/echo", hold=True)
    peer.send(fr.Reset(held, ResetCode.CANCEL, "cancelled"))
    need(not peer.expect(fr.ResetAck, held).dispatched, "RESET_ACK of a held request says that it was dispatched")


@rule("unreachable", "a local service that cannot be reached: RESET(UPSTREAM_CONNECT), dispatched false")
def _unreachable(kit: Kit) -> None:
    peer = kit.peer()
    kit.service.stop()
    try:
        stream = peer.request("/echo")
        frame = peer.first_of((fr.Reset, fr.ResponseFrame))
    finally:
        kit.service.resume()
    need(isinstance(frame, fr.Reset) and frame.stream == stream, "an answer without a service")
    need(frame.code == ResetCode.UPSTREAM_CONNECT, f"RESET says {frame.code}")
    need(frame.dispatched is False, "RESET does not say dispatched: false")


@rule("garbage", "a local service that does not speak HTTP: RESET(UPSTREAM_PROTOCOL), dispatched true")
def _garbage(kit: Kit) -> None:
    peer = kit.peer()
    stream = peer.request("/garbage")
    peer.expect(fr.Ack, stream)
    frame = peer.expect(fr.Reset, stream)
    need(frame.code == ResetCode.UPSTREAM_PROTOCOL, f"RESET says {frame.code}")
    need(frame.dispatched is not False, "RESET says dispatched: false")


@rule("deadline", "what the deadline allows is kept: a stream is over, by the unit itself, a second after it at most")
def _deadline(kit: Kit) -> None:
    peer = kit.peer()
    stream = peer.request("/hang", deadline_ms=600)
    peer.expect(fr.Ack, stream)
    frame = peer.expect(fr.Reset, stream, within_s=1.7)
    need(frame.code in (ResetCode.UPSTREAM_TIMEOUT, ResetCode.DEADLINE), f"RESET says {frame.code}")

"""Rules of the limits that the greetings agreed upon: credit of a stream and of the connection, streams, frames."""

from __future__ import annotations

import hashlib

from gateway.conformance.kit import Kit
from gateway.conformance.peer import Peer
from gateway.conformance.registry import need, rule
from gateway.relay import frames as fr
from gateway.relay.frames import ResetCode


@rule("body-up", "a request body of many frames arrives whole, and credit is given back for it")
def _body_up(kit: Kit) -> None:
    peer = kit.peer()
    piece, total, sent, allowed = bytes(range(256)) * 32, 40, 0, peer.agreed("stream_window")
    stream = peer.request("/echo", end=False)
    peer.expect(fr.Ack, stream)
    while sent < total:
        while allowed < len(piece) or peer.conn_credit < len(piece):
            frame = peer.first_of((fr.Window,))
            allowed += frame.credit if frame.stream == stream else 0
        sent, allowed = sent + 1, allowed - len(piece)
        peer.send(fr.Data(stream, piece, sent == total))
    head = peer.expect(fr.ResponseFrame, stream)
    body = head.body if head.end else head.body + peer.expect(fr.Data, stream).body
    need(body == hashlib.sha256(piece * total).hexdigest().encode(), "the body arrived changed")
    peer.credit(stream, len(body))


@rule("conn-credit", "the connection's credit is given back too, whatever streams it was for")
def _conn_credit(kit: Kit) -> None:
    peer = kit.fresh(conn_window=24_576)
    for _ in range(8):
        peer.credit_for(8_192)
        peer.answer(peer.request("/echo", bytes(8_192)))


@rule("window", "no body byte is sent past the stream's credit, and the answer goes on when credit comes")
def _window(kit: Kit) -> None:
    peer = kit.peer()
    window = peer.agreed("stream_window")
    _stops(peer, window, 0)
    peer.send(fr.Window(0, window * 2))


@rule("conn-window", "nor past the connection's credit, whatever the stream has")
def _conn_window(kit: Kit) -> None:
    peer = kit.fresh(conn_window=16_384)
    window = peer.agreed("conn_window")
    _stops(peer, window, window)


def _stops(peer: Peer, window: int, of_connection: int) -> None:
    """An answer of twice the credit: half of it comes, and the other half when credit does."""
    stream = peer.request(f"/large/{window * 2}")
    peer.expect(fr.Ack, stream)
    got = len(peer.expect(fr.ResponseFrame, stream).body)
    end = False
    while got < window:
        got += len(peer.expect(fr.Data, stream).body)
    need(got == window, "more than the credit was sent")
    peer.silent(0.4, stream)
    peer.send(fr.Window(0, of_connection) if of_connection else fr.Window(stream, window))
    while not end:
        data = peer.expect(fr.Data, stream)
        got, end = got + len(data.body), data.end
    need(got == window * 2, "the body is not whole")


@rule("stall", "an answer that has waited 30 s for credit is reset with FLOW_CONTROL", slow=True)
def _stall(kit: Kit) -> None:
    peer = kit.fresh()
    stream = peer.request(f"/large/{peer.agreed('stream_window') * 2}", deadline_ms=120_000)
    frame = peer.first_of((fr.Reset,), within_s=40.0)
    need(frame.stream == stream and frame.code == ResetCode.FLOW_CONTROL, f"RESET says {frame.code}")


@rule("max-streams", "a request over the agreed streams is refused: RESET(REFUSED or SHED), dispatched false")
def _max_streams(kit: Kit) -> None:
    peer = kit.fresh(max_streams=2)
    for _ in range(peer.agreed("max_streams")):
        peer.request("/hang")
        peer.first_of((fr.Ack,))
    stream = peer.request("/echo?over")
    frame = peer.first_of((fr.Reset, fr.Ack, fr.ResponseFrame, fr.GoAway))
    need(isinstance(frame, fr.Reset) and frame.stream == stream, f"{type(frame).__name__} came instead of RESET")
    need(frame.code in (ResetCode.REFUSED, ResetCode.SHED), f"RESET says {frame.code}")
    need(frame.dispatched is False, "RESET does not say dispatched: false")
    need("/echo?over" not in [seen.target for seen in kit.service.seen], "the local service saw it")


@rule("max-frame", "no frame is over the agreed maximum: a larger answer comes in several")
def _max_frame(kit: Kit) -> None:
    peer = kit.fresh(max_frame=2_048)
    _, body = peer.answer(peer.request("/large/10000"))
    need(body == b"x" * 10_000, "the body arrived changed")

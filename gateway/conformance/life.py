"""Rules of a connection's life: signs of it, lists of what is open, the end and the next one."""

from __future__ import annotations

import time

from fastpath.frames import OP_PING, encode_close, encode_frame
from gateway.conformance.kit import Kit
from gateway.conformance.registry import need, rule
from gateway.relay import frames as fr


@rule("ping", "PING is answered by PONG with the same eight bytes; a WebSocket's ping likewise")
def _ping(kit: Kit) -> None:
    peer = kit.peer()
    peer.send(fr.Ping(b"kit-ping"))
    need(peer.expect(fr.Pong).opaque == b"kit-ping", "PONG has other bytes")
    peer.raw(encode_frame(OP_PING, b"ws"))
    need(peer.ponged(b"ws"), "a WebSocket's ping is not answered")


@rule("own-ping", "the agent sends PING every `ping_ms`, give or take a fifth")
def _own_ping(kit: Kit) -> None:
    peer = kit.fresh(ping_ms=500)
    for _ in range(3):
        peer.expect(fr.Ping, within_s=0.6 + 1.5)


@rule("silence", "a connection on which nothing came for `dead_ms` is ended, and not before")
def _silence(kit: Kit) -> None:
    peer = kit.fresh(ping_ms=500, dead_ms=2_000)
    peer.mute = True
    need(peer.over.wait(2.0 + 2.0), "it is not ended")
    need(time.monotonic() - peer.sent_s >= 1.9, "it is ended too early")


@rule("sync", "a stream that two SYNCs running lack is reset by the unit, one that a single SYNC lacks is not")
def _sync(kit: Kit) -> None:
    peer = kit.peer()
    lost, kept = peer.request("/hang"), peer.request("/slow/1000")
    peer.expect(fr.Ack, lost)
    peer.send(fr.Sync([kept]))
    peer.silent(0.3, lost)
    peer.send(fr.Sync([]))
    frame = peer.first_of((fr.Reset, fr.ResponseFrame))
    need(isinstance(frame, fr.Reset) and frame.stream == lost, "the stream that both lists lack is not reset")
    peer.expect(fr.ResponseFrame, kept)


@rule("own-sync", "the agent lists its open streams in a SYNC every minute", slow=True)
def _own_sync(kit: Kit) -> None:
    peer = kit.fresh()
    stream = peer.request("/hang", deadline_ms=120_000)
    peer.expect(fr.Ack, stream)
    need(peer.expect(fr.Sync, within_s=75.0).streams == [stream], "SYNC lists other streams than the open one")


@rule("drain", "after GOAWAY(DRAIN) a new connection comes, then open requests finish and the old one ends")
def _drain(kit: Kit) -> None:
    peer = kit.fresh()
    stream = peer.request("/slow/1500")
    peer.expect(fr.Ack, stream)
    peer.send(fr.GoAway(fr.GoAwayCode.DRAIN, 0, 100, "draining"))
    kit.listener.next(8.0)
    need(not peer.over.is_set(), "the old connection ended first")
    peer.expect(fr.ResponseFrame, stream)
    need(peer.over.wait(5.0), "the old connection stays when its requests are answered")


@rule("retry", "after GOAWAY the agent does not dial before `retry_ms`, and dials then")
def _retry(kit: Kit) -> None:
    peer = kit.fresh()
    peer.send(fr.GoAway(fr.GoAwayCode.DRAIN, 1_500, 100, "draining"))
    told_s = peer.sent_s
    need(kit.listener.next(8.0).opened_s - told_s >= 1.5, "it dials before that")


@rule("again", "after a lost connection the agent dials again")
def _again(kit: Kit) -> None:
    peer = kit.fresh()
    peer.cut()
    kit.listener.next(10.0)


@rule("close", "a WebSocket's close frame is answered with its own code, and the connection ends")
def _close(kit: Kit) -> None:
    peer = kit.fresh()
    peer.raw(encode_close(4_000))
    need(peer.over.wait(3.0), "the connection goes on")
    need(peer.close_code == 4_000, f"the answer says {peer.close_code}")

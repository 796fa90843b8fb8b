"""Rules of requests and answers."""

from __future__ import annotations

import hashlib
import time

from fastpath.frames import OP_BINARY, OP_CONTINUATION, OP_PING, encode_frame
from gateway.conformance.kit import Kit
from gateway.conformance.registry import need, rule
from gateway.relay import frames as fr


@rule("get", "a small GET: ACK, RES with status, fields without those of one hop, and the body; `up` in milliseconds")
def _get(kit: Kit) -> None:
    peer = kit.peer()
    response, body = peer.answer(peer.request("/echo?a=%20b"))
    seen = kit.service.seen[-1]
    need(response.status == 200 and body == hashlib.sha256(b"").hexdigest().encode(), "not the service's answer")
    need(seen.target == "/echo?a=%20b" and seen.method == "GET", "the target did not arrive as it was")
    need(seen.fields.get("x-plain") == "one", "a field of the request is missing")
    need([v for n, v in response.fields if n == "x-twice"] == ["a", "b"], "repeated fields did not survive in order")
    need(not {"keep-alive", "connection", "transfer-encoding"} & {n for n, _ in response.fields}, "a hop-by-hop field")


@rule("ack", "ACK comes before the local service may see the request, not with its answer")
def _ack(kit: Kit) -> None:
    peer = kit.peer()
    stream = peer.request("/slow/1500")
    peer.expect(fr.Ack, stream, within_s=1.0)
    peer.expect(fr.ResponseFrame, stream)


@rule("at-once", "requests run beside each other: eight that take half a second take less than two seconds")
def _at_once(kit: Kit) -> None:
    peer = kit.peer()
    streams = {peer.request("/slow/500") for _ in range(8)}
    until_s = time.monotonic() + 2.0
    while streams:
        frame = peer.expect(fr.ResponseFrame, within_s=until_s - time.monotonic())
        streams.discard(frame.stream)


@rule("bodiless", "the answer to a HEAD, a 204 and a 304 are whole with RES, which has no body")
def _bodiless(kit: Kit) -> None:
    peer = kit.peer()
    for method, target, status in (("HEAD", "/echo", 200), ("GET", "/status/204", 204), ("GET", "/status/304", 304)):
        stream = peer.request(target, method=method)
        peer.expect(fr.Ack, stream)
        head = peer.expect(fr.ResponseFrame, stream)
        need(head.response.status == status, f"{method} {target} is answered with {head.response.status}")
        need(head.end and not head.body, f"the answer to {method} {target} has a body, or no end")


@rule("fragments", "a frame comes in fragments of a WebSocket message too, with a ping between them")
def _fragments(kit: Kit) -> None:
    peer = kit.peer()
    body = b"fragments"
    frame = fr.encode(peer.new_request("/echo", body))
    peer.raw(encode_frame(OP_BINARY, frame[:5], fin=False))
    peer.raw(encode_frame(OP_CONTINUATION, frame[5:-4], fin=False))
    peer.raw(encode_frame(OP_PING, b"between"))
    need(peer.ponged(b"between"), "a ping between fragments is not answered")
    peer.raw(encode_frame(OP_CONTINUATION, frame[-4:]))
    _, answer = peer.answer(peer.last_stream)
    need(answer == hashlib.sha256(body).hexdigest().encode(), "the message arrived changed")

"""Rules of what breaks the protocol: the connection ends, and nothing of it reaches the local service."""

from __future__ import annotations

import json
from collections.abc import Callable

from fastpath.frames import CRITICAL, OP_BINARY, OP_TEXT, encode_frame, pack_frame
from gateway.conformance.kit import Kit
from gateway.conformance.peer import MAX_FRAME
from gateway.conformance.registry import need, rule
from gateway.relay import frames as fr
from gateway.relay.frames import ResetCode


@rule("unknown-type", "a frame of an unknown type is ignored")
def _unknown_type(kit: Kit) -> None:
    peer = kit.peer()
    peer.raw(encode_frame(OP_BINARY, pack_frame(0x7F, 0, 0, b"", b"?")))
    peer.answer(peer.request("/echo"))


def violation(name: str, text: str, data: Callable[[], list[bytes]]) -> None:
    """A rule that such WebSocket frames end the connection."""

    def look(kit: Kit) -> None:
        peer = kit.fresh()
        before = len(kit.service.seen)
        for piece in data():
            peer.raw(piece)
        peer.expect_end()
        need(len(kit.service.seen) == before, "the local service saw it")

    rule(name, f"{text}: GOAWAY(PROTOCOL), then the end")(look)


def _binary(*frames: object) -> list[bytes]:
    return [encode_frame(OP_BINARY, f if isinstance(f, bytes) else fr.encode(f)) for f in frames]  # type: ignore[arg-type]


def _post(stream: int, body: bytes = b"") -> fr.RequestFrame:
    return fr.RequestFrame(stream, fr.Request("kit", "POST", "/hang", [], None, hold=True), body, False)


_TWICE = json.dumps({"id": "k", "m": "GET", "t": "/echo", "h": [], "len": None, "dl": 1000, "tp": None, "idem": None})
_TWICE = _TWICE[:-1] + ', "m": "DELETE"}'

violation("critical-type", "a CRITICAL frame of an unknown type", lambda: _binary(pack_frame(0x7F, CRITICAL, 0)))
violation("version", "a frame of another version", lambda: _binary(b"\x02" + fr.encode(fr.Ping(bytes(8)))[1:]))
violation("text", "a text message", lambda: [encode_frame(OP_TEXT, b"hello")])
violation("short-frame", "a message shorter than a frame's prefix", lambda: _binary(b"\x01\x20"))
violation("over-max-frame", "a frame over the agreed maximum", lambda: _binary(_post(1, bytes(MAX_FRAME))))
violation("stream-ids", "a stream id that does not ascend", lambda: _binary(_post(5), _post(3)))
violation("even-stream", "a stream id that is not odd", lambda: _binary(fr.encode(fr.Go(1))[:7] + b"\x02" + bytes(4)))
violation("never-opened", "a frame for a stream that was never opened", lambda: _binary(fr.Data(9, b"x")))
violation("wrong-way", "a frame that only units send", lambda: _binary(fr.Ack(1)))
violation("second-welcome", "a second WELCOME", lambda: _binary(fr.Welcome("again", 1)))
violation("credit", "more body than the credit", lambda: _binary(_post(1), *([fr.Data(1, bytes(16_000))] * 20)))
violation(
    "member-twice", "a header that names a member twice", lambda: _binary(pack_frame(0x10, 1, 1, _TWICE.encode()))
)


@rule("bad-field", "a line break in a field never reaches the local service: the stream, or all, is reset")
def _bad_field(kit: Kit) -> None:
    peer = kit.fresh()
    before = len(kit.service.seen)
    request = fr.Request("kit", "GET", "/echo", [("x-a", "b\r\nx-forged: c")])
    peer.send(fr.RequestFrame(1, request, b"", True))
    frame = peer.first_of((fr.Reset, fr.GoAway))
    need(getattr(frame, "code", None) in (ResetCode.PROTOCOL, fr.GoAwayCode.PROTOCOL), "not as a protocol violation")
    need(len(kit.service.seen) == before, "the local service saw it")

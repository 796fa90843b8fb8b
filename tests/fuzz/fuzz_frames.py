#!/usr/bin/env python3
"""Fuzz target: WebSocket and relay frames. `python tests/fuzz/fuzz_frames.py [corpus] [-runs=N]` needs atheris."""

from __future__ import annotations

import sys

from fastpath.frames import Decoder
from gateway.relay import frames as fr
from gateway.relay.core import Limits
from gateway.relay.decoding import decode, decode_any, decode_ordinary
from gateway.relay.frames import ProtocolViolation
from gateway.relay.session import GatewaySession, UnitSession

HELLO = fr.encode(fr.Hello("fuzz", "one"))
WELCOME = fr.encode(fr.Welcome("c", 1))
LIMIT = 4096


def one_input(data: bytes) -> None:
    """The input as a WebSocket stream, as a relay frame, and as what a peer sends in a live session."""
    check_stream(data)
    check_frame(data)
    check_sessions(data)


def check_stream(data: bytes) -> None:
    """However the bytes are cut, the same messages and the same fault come out, within the limit."""
    for masked in (True, False):
        results = []
        for step in (len(data) or 1, 1, 7):
            decoder = Decoder(masked=masked, max_bytes=LIMIT)
            events: list[object] = []
            for at in range(0, len(data), step):
                if decoder.error is None:
                    events += decoder.feed(data[at : at + step])
                assert decoder.pending_bytes <= 2 * LIMIT + 14 + step
            results.append((events, decoder.error and decoder.error.code))
        assert results[0] == results[1] == results[2]


def check_frame(data: bytes) -> None:
    """A frame that is accepted is the one that encoding it again gives; the short way takes no other frames."""
    ordinary = decode_ordinary(data, LIMIT)
    assert ordinary is None or ordinary == decode_any(data, LIMIT)
    try:
        frame = decode(data)
    except ProtocolViolation:
        return
    if frame is not None and not isinstance(frame, fr.Reset):
        assert decode(fr.encode(frame)) == frame


def check_sessions(data: bytes) -> None:
    """A live session takes anything: events, or one violation and the end."""
    gateway, unit = GatewaySession(Limits(), 0.0, lambda: 0.5), UnitSession(Limits(), 0.0, fr.Hello("f", "one"))
    (hello,) = gateway.receive(HELLO, 0.0)
    gateway.welcome(fr.Welcome("c", 1), 0.0, hello.hello)  # type: ignore[union-attr]
    stream = gateway.send_request(fr.Request("i", "GET", "/", []), 9.0)
    unit.receive(WELCOME, 0.0)
    for session in (gateway, unit):
        session.data_to_send(0.0)
        for message in (data, data[1:], fr.encode(fr.Ack(stream)), data):
            session.receive(message, 1.0)
        session.tick(20.0)
        session.data_to_send(20.0)
        session.fail_all()
        assert not session.streams


def main() -> None:
    import atheris

    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()

"""WebSocket frames against `websockets` (its own C speedups) and against a plain copy of the same bytes."""

from __future__ import annotations

import os

from websockets.frames import Frame, Opcode
from websockets.streams import StreamReader

from fastpath.frames import OP_BINARY, Decoder, apply_mask, encode_frame, pack_frame, unpack_frame
from gateway.relay.decoding import decode
from gateway.relay.frames import Request, RequestFrame, encode
from loadtests.bench_fastpath.row import Row, Work

KEY = b"\x8b\x10\x7f\x55"
MIB = 1 << 20


def rows(fast: bool) -> list[Row]:
    count = 20 if fast else 500
    large = os.urandom(MIB)
    small = encode_frame(OP_BINARY, os.urandom(100), KEY) * count
    return [
        # 1 GB/s is 1,048,576 ns for a mebibyte.
        Row(
            "frames, unmask 1 MiB",
            Work(lambda: apply_mask(large, KEY), 1),
            "memcpy",
            Work(lambda: bytearray(large), 1),
            limit_ns=1_048_576,
        ),
        Row(
            "frames, decode 100 B",
            Work(lambda: decode_all(small), count),
            "websockets",
            Work(lambda: decode_by_websockets(small), count),
            limit_ratio=0.2,
        ),
        Row(
            "frames, encode 100 B",
            Work(lambda: encode_frame(OP_BINARY, large[:100]), 1),
            "websockets",
            Work(lambda: Frame(Opcode.BINARY, large[:100]).serialize(mask=False), 1),
            limit_ratio=0.5,
        ),
        Row("relay frame, prefix there and back", Work(lambda: unpack_frame(pack_frame(0x13, 1, 5, b"", KEY), 99), 1)),
        Row("relay frame, REQ there and back", Work(lambda: decode(encode(small_request())), 1)),
    ]


def small_request() -> RequestFrame:
    fields = [("accept", "application/fhir+json"), ("x-request-id", "0190"), ("x-caregate-context", "e" * 300)]
    return RequestFrame(5, Request("0190", "GET", "/fhir/Observation?patient=pat-0001", fields), end=True)


def decode_all(data: bytes) -> None:
    Decoder(masked=True, max_bytes=131_072).feed(data)


def decode_by_websockets(data: bytes) -> None:
    reader = StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    while reader.buffer != b"":
        parser = Frame.parse(reader.read_exact, mask=True, max_size=131_072)
        try:
            next(parser)
        except StopIteration:
            continue

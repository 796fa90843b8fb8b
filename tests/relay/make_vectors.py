"""Writes tests/vectors/relay-frames.json: `python tests/relay/make_vectors.py`. struct spells the hex, not our encoder.

A vector is {name, hex, meaning} for a valid frame (beside REQ and RES, `header` is their JSON as it is meant),
{name, hex, code} for one that is refused; `stream` beside a code says that only that stream is at fault.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

TARGET = Path(__file__).parents[1] / "vectors" / "relay-frames.json"
END, HEADER, CRITICAL, HOLD = 1, 2, 4, 8


def frame(
    kind: int, flags: int = 0, stream: int = 0, header: Any = None, body: bytes = b"", aux: int | None = None
) -> str:
    text = b"" if header is None else header if isinstance(header, bytes) else json.dumps(header).encode()
    if aux is None:
        aux = len(text)
        flags |= HEADER if text else 0
    return (struct.pack("!BBHII", 1, kind, flags, stream, aux) + text + body).hex()


LIMITS = {"max_streams": 64, "stream_window": 262144, "conn_window": 4194304, "max_frame": 131072}
HELLO = {"agent": "a/1", "instance": "i-1", "index": 1, "caps": ["hold"], **LIMITS, "last_close": None}
WELCOME = {
    "conn": "c1",
    "epoch": 7,
    "node": "n",
    "worker": 3,
    "caps": [],
    **LIMITS,
    "ping_ms": 15000,
    "dead_ms": 35000,
    "token_exp": 1700000000,
}
REQ = {
    "id": "r1",
    "m": "GET",
    "t": "/a?b=c",
    "h": [["a", "1"], ["a", "2"]],
    "len": None,
    "dl": 30000,
    "tp": None,
    "idem": None,
}
RES = {"s": 200, "h": [["content-type", "text/plain"]], "len": 2, "up": 12}


def valid() -> list[dict[str, Any]]:
    rows: list[tuple[Any, ...]] = [
        ("hello", frame(0x01, header=HELLO), {"type": "Hello", **HELLO, "clock_ms": None}),
        (
            "lease-with-unknown-object",
            frame(0x26, header=b'{"max_streams":8,"a":{"b":1,"c":{":":2}},"d":[{"b":1},"\\":{"],"":0}'),
            {"type": "Lease", "max_streams": 8},
        ),
        (
            "hello-with-unknown-member",
            frame(0x01, header={**HELLO, "new": 1}),
            {"type": "Hello", **HELLO, "clock_ms": None},
        ),
        (
            "hello-with-clock",
            frame(0x01, header={**HELLO, "clock_ms": 1700000000000}),
            {"type": "Hello", **HELLO, "clock_ms": 1700000000000},
        ),
        ("welcome", frame(0x02, header=WELCOME), {"type": "Welcome", **WELCOME}),
        ("req-whole", frame(0x10, END, 1, REQ), {"type": "RequestFrame", "stream": 1, "body": "", "end": True}),
        (
            "req-with-body",
            frame(0x10, 0, 3, {**REQ, "m": "POST", "len": 9}, b"abc"),
            {"type": "RequestFrame", "stream": 3, "body": "616263", "end": False},
        ),
        ("req-hold", frame(0x10, END | HOLD, 5, REQ), {"type": "RequestFrame", "stream": 5, "body": "", "end": True}),
        (
            "req-of-a-key-with-every-member",
            frame(
                0x10,
                END | HOLD,
                0xFFFFFFFF,
                {**REQ, "m": "DELETE", "len": 0, "dl": 0, "tp": "00-aa-bb-01", "idem": "k"},
            ),
            {"type": "RequestFrame", "stream": 0xFFFFFFFF, "body": "", "end": True},
            {**REQ, "m": "DELETE", "len": 0, "dl": 0, "tp": "00-aa-bb-01", "idem": "k"},
        ),
        (
            "req-with-a-latin-1-value-and-unknown-members",
            frame(0x10, END, 1, {**REQ, "h": [["a", "\u00ff\t"]], "new": {"a": [1]}}),
            {"type": "RequestFrame", "stream": 1, "body": "", "end": True},
            {**REQ, "h": [["a", "\u00ff\t"]]},
        ),
        ("ack", frame(0x11, 0, 1), {"type": "Ack", "stream": 1}),
        (
            "res-of-unknown-length",
            frame(0x12, 0, 1, {**RES, "s": 599, "h": [], "len": None, "up": 0}),
            {"type": "ResponseFrame", "stream": 1, "body": "", "end": False},
            {**RES, "s": 599, "h": [], "len": None, "up": 0},
        ),
        (
            "res-with-a-field-twice",
            frame(0x12, END, 1, {**RES, "s": 304, "h": [["etag", "1"], ["via", "a"], ["via", "b"]], "len": 9}),
            {"type": "ResponseFrame", "stream": 1, "body": "", "end": True},
            {**RES, "s": 304, "h": [["etag", "1"], ["via", "a"], ["via", "b"]], "len": 9},
        ),
        (
            "window-of-the-most",
            frame(0x14, 0, 1, aux=0x7FFFFFFF),
            {"type": "Window", "stream": 1, "credit": 0x7FFFFFFF},
        ),
        (
            "reset-of-an-unknown-code",
            frame(0x15, 0, 1, body=b'{"reason":"","dispatched":true,"new":1}', aux=900),
            {"type": "Reset", "stream": 1, "code": 900, "reason": "", "dispatched": True},
        ),
        (
            "goaway-of-an-unknown-code",
            frame(0x22, header={"code": 99, "retry_ms": 0, "jitter_ms": 0, "why": ""}),
            {"type": "GoAway", "code": 99, "retry_ms": 0, "jitter_ms": 0, "why": ""},
        ),
        ("lease-of-none", frame(0x26, header={"max_streams": 0}), {"type": "Lease", "max_streams": 0}),
        ("unknown-type-with-header", frame(0x60, 0, 7, {"a": 1}, b"?"), None),
        ("res", frame(0x12, END, 1, RES, b"ok"), {"type": "ResponseFrame", "stream": 1, "body": "6f6b", "end": True}),
        ("data", frame(0x13, 0, 1, body=b"\x00\xff"), {"type": "Data", "stream": 1, "body": "00ff", "end": False}),
        ("data-end-empty", frame(0x13, END, 1), {"type": "Data", "stream": 1, "body": "", "end": True}),
        ("window-stream", frame(0x14, 0, 1, aux=65536), {"type": "Window", "stream": 1, "credit": 65536}),
        ("window-connection", frame(0x14, 0, 0, aux=1), {"type": "Window", "stream": 0, "credit": 1}),
        (
            "reset",
            frame(0x15, 0, 1, body=b'{"reason":"gone","dispatched":null}', aux=1),
            {"type": "Reset", "stream": 1, "code": 1, "reason": "gone", "dispatched": None},
        ),
        ("reset-ack", frame(0x16, 0, 1, {"dispatched": True}), {"type": "ResetAck", "stream": 1, "dispatched": True}),
        ("go", frame(0x17, 0, 1), {"type": "Go", "stream": 1}),
        ("ping", frame(0x20, body=b"12345678"), {"type": "Ping", "opaque": "3132333435363738"}),
        ("pong", frame(0x21, body=b"12345678"), {"type": "Pong", "opaque": "3132333435363738"}),
        (
            "goaway",
            frame(0x22, header={"code": 0, "retry_ms": 10, "jitter_ms": 20, "why": "drain"}),
            {"type": "GoAway", "code": 0, "retry_ms": 10, "jitter_ms": 20, "why": "drain"},
        ),
        ("token", frame(0x23, header={"token": "a.b.c"}), {"type": "Token", "token": "a.b.c"}),
        ("token-ok", frame(0x24, header={"exp": 1700000000}), {"type": "TokenOk", "exp": 1700000000}),
        ("sync", frame(0x25, body=struct.pack("!2I", 1, 7)), {"type": "Sync", "streams": [1, 7]}),
        ("sync-empty", frame(0x25), {"type": "Sync", "streams": []}),
        ("lease", frame(0x26, header={"max_streams": 8}), {"type": "Lease", "max_streams": 8}),
        ("critical-on-a-known-type", frame(0x11, CRITICAL, 1), {"type": "Ack", "stream": 1}),
        ("unknown-type-is-ignored", frame(0x7F, 0, 0, body=b"?"), None),
    ]
    headers = {"req-whole": REQ, "req-with-body": {**REQ, "m": "POST", "len": 9}, "req-hold": REQ, "res": RES}
    vectors = []
    for name, text, meaning, *header in rows:
        vector = {"name": name, "hex": text, "meaning": meaning}
        if header or name in headers:
            vector["header"] = header[0] if header else headers[name]
        vectors.append(vector)
    return vectors


def invalid() -> list[dict[str, Any]]:
    def req(**changes: Any) -> str:
        return frame(0x10, END, 1, {**REQ, **changes})

    rows: list[tuple[Any, ...]] = [
        ("empty", "", "length"),
        ("shorter-than-the-prefix", frame(0x20)[:-2], "length"),
        ("version-2", "02" + frame(0x20, body=b"12345678")[2:], "version"),
        ("unknown-type-critical", frame(0x7F, CRITICAL), "type"),
        ("header-flag-without-header", frame(0x10, HEADER, 1, aux=0), "flags"),
        ("header-length-past-the-end", frame(0x10, HEADER, 1, b"{}", aux=3), "length"),
        ("window-with-header-flag", frame(0x14, HEADER, 1, aux=5), "flags"),
        ("flag-of-another-type", frame(0x20, END, body=b"12345678"), "flags"),
        ("hold-on-res", frame(0x12, END | HOLD, 1, RES, b"ok"), "flags"),
        ("undefined-flag", frame(0x11, 0x8000, 1), "flags"),
        ("stream-on-ping", frame(0x20, 0, 1, body=b"12345678"), "stream"),
        ("req-without-stream", frame(0x10, END, 0, REQ), "stream"),
        ("even-stream", frame(0x11, 0, 2), "stream"),
        ("req-without-header", frame(0x10, END, 1), "header"),
        ("ack-with-header", frame(0x11, 0, 1, {}), "header"),
        ("ack-with-body", frame(0x11, 0, 1, body=b"x"), "length"),
        ("ping-of-seven", frame(0x20, body=b"1234567"), "length"),
        ("sync-of-five-bytes", frame(0x25, body=b"12345"), "length"),
        ("window-of-nothing", frame(0x14, 0, 1, aux=0), "credit"),
        ("window-over-31-bits", frame(0x14, 0, 1, aux=1 << 31), "credit"),
        ("header-not-json", frame(0x10, END, 1, b"{"), "header"),
        ("header-not-an-object", frame(0x10, END, 1, b"[]"), "header"),
        ("header-member-twice", frame(0x26, header=b'{"max_streams":8,"max_streams":9}'), "header"),
        ("header-member-twice-escaped", frame(0x26, header=b'{"max_streams":8,"max\\u005fstreams":9}'), "header"),
        ("header-member-twice-unknown", frame(0x26, header=b'{"max_streams":8,"a":{":":1},"a":[]}'), "header"),
        ("header-not-utf8", frame(0x10, END, 1, b'{"id":"\xff"}'), "header"),
        ("header-over-32-kib", frame(0x10, END, 1, {**REQ, "id": "x", "pad": "x" * 33000}), "header"),
        ("deadline-as-text", req(dl="30000"), "header"),
        ("deadline-as-boolean", req(dl=True), "header"),
        ("deadline-as-float", req(dl=1.5), "header"),
        ("deadline-over-five-minutes", req(dl=300001), "header"),
        ("length-negative", req(len=-1), "header"),
        ("fields-not-pairs", req(h=[["a"]]), "header"),
        ("fields-an-object", req(h={"a": "b"}), "header"),
        ("name-upper-case", req(h=[["A", "b"]]), "fields", 1),
        ("name-empty", req(h=[["", "b"]]), "fields", 1),
        ("name-with-space", req(h=[["a b", "c"]]), "fields", 1),
        ("name-with-trailing-newline", req(h=[["a\n", "c"]]), "fields", 1),
        ("value-with-crlf", req(h=[["a", "b\r\nc: d"]]), "fields", 1),
        ("value-with-nul", req(h=[["a", "b\u0000"]]), "fields", 1),
        ("value-beyond-latin-1", req(h=[["a", "\u20ac"]]), "fields", 1),
        ("101-fields", req(h=[["a", "b"]] * 101), "fields", 1),
        ("method-lower-case", req(m="get"), "fields", 1),
        ("target-not-origin-form", req(t="http://x/"), "fields", 1),
        ("target-with-space", req(t="/a b"), "fields", 1),
        ("target-with-crlf", req(t="/a\r\n"), "fields", 1),
        ("target-with-fragment", req(t="/a#b"), "fields", 1),
        ("status-101", frame(0x12, END, 1, {**RES, "s": 101}, b"ok"), "fields", 1),
        ("status-600", frame(0x12, END, 1, {**RES, "s": 600}, b"ok"), "fields", 1),
        ("status-as-text", frame(0x12, END, 1, {**RES, "s": "200"}, b"ok"), "header"),
        ("reset-without-json", frame(0x15, 0, 1, aux=1), "header"),
        ("reset-dispatched-as-number", frame(0x15, 0, 1, body=b'{"reason":"","dispatched":1}', aux=1), "header"),
        ("res-without-up", frame(0x12, END, 1, {k: v for k, v in RES.items() if k != "up"}, b"ok"), "header"),
        ("res-status-as-boolean", frame(0x12, END, 1, {**RES, "s": True}, b"ok"), "header"),
        ("res-value-with-line-break", frame(0x12, END, 1, {**RES, "h": [["a", "b\n"]]}, b"ok"), "fields", 1),
        ("reset-ack-untold", frame(0x16, 0, 1, {"dispatched": None}), "header"),
        ("goaway-without-code", frame(0x22, header={"retry_ms": 0, "jitter_ms": 0, "why": ""}), "header"),
        ("token-as-number", frame(0x23, header={"token": 1}), "header"),
        ("token-on-a-stream", frame(0x23, 0, 1, {"token": "a.b.c"}), "stream"),
        ("token-ok-negative", frame(0x24, header={"exp": -1}), "header"),
        ("lease-negative", frame(0x26, header={"max_streams": -1}), "header"),
        ("lease-as-float", frame(0x26, header=b'{"max_streams":8.0}'), "header"),
        ("welcome-without-epoch", frame(0x02, header={k: v for k, v in WELCOME.items() if k != "epoch"}), "header"),
        ("data-with-header", frame(0x13, 0, 1, {}, b"x"), "header"),
        ("data-without-stream", frame(0x13, 0, 0, body=b"x"), "stream"),
        ("go-with-body", frame(0x17, 0, 1, body=b"x"), "length"),
        ("pong-of-nine", frame(0x21, body=b"123456789"), "length"),
        ("hello-with-body", frame(0x01, header=HELLO, body=b"x"), "length"),
        ("sync-on-a-stream", frame(0x25, 0, 1), "stream"),
        ("header-with-byte-order-mark", frame(0x26, header=b'\xef\xbb\xbf{"max_streams":8}'), "header"),
        ("header-empty-object-of-req", frame(0x10, END, 1, b"{}"), "header"),
        ("hello-without-instance", frame(0x01, header={k: v for k, v in HELLO.items() if k != "instance"}), "header"),
        ("hello-window-of-nothing", frame(0x01, header={**HELLO, "stream_window": 0}), "header"),
        ("hello-caps-of-numbers", frame(0x01, header={**HELLO, "caps": [1]}), "header"),
        ("hello-clock-before-1970", frame(0x01, header={**HELLO, "clock_ms": -1}), "header"),
    ]
    return [
        {"name": row[0], "hex": row[1], "code": row[2], **({"stream": row[3]} if len(row) > 3 else {})} for row in rows
    ]


if __name__ == "__main__":
    TARGET.write_text(
        json.dumps({"protocol": "caregate.relay.v1", "valid": valid(), "invalid": invalid()}, indent=1) + "\n"
    )

"""A relay message to its frame: every length, flag, stream id and header checked against one table."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from typing import Any, Final

import orjson

from fastpath.frames import CRITICAL, END_BODY, HAS_HEADER, HOLD, RelayFrameError, member_count, unpack_frame
from fastpath.heads import decode_answer, decode_request
from gateway.relay.frames import (
    MAX_CREDIT,
    MAX_DEADLINE_MS,
    MAX_FIELDS,
    MAX_FRAME_BYTES,
    MAX_HEADER_BYTES,
    Ack,
    Data,
    Fields,
    Frame,
    FrameType,
    Go,
    GoAway,
    Hello,
    Lease,
    Ping,
    Pong,
    ProtocolViolation,
    Request,
    RequestFrame,
    Reset,
    ResetAck,
    Response,
    ResponseFrame,
    Sync,
    Token,
    TokenOk,
    Welcome,
    Window,
)

_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9a-z]{1,256}\Z").match
_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*\Z").match
_METHOD = re.compile(r"[A-Z]{1,32}\Z").match
_TARGET = re.compile(r"/[\x21\x22\x24-\x7e]{0,8191}\Z").match
_MISSING: Final = object()


def field_fault(fields: Fields) -> str | None:
    """What HTTP or a limit forbids in `fields`, or None."""
    if len(fields) > MAX_FIELDS:
        return "more than 100 fields"
    for name, value in fields:
        if _NAME(name) is None:
            return "a field name that is not a lower-case token"
        if _VALUE(value) is None:
            return "a field value with a control character"
    return None


def _text(header: dict[str, Any], key: str, limit: int = 256) -> str:
    value = header.get(key)
    if type(value) is not str or len(value) > limit:
        raise ProtocolViolation("header", f"{key} is not a string of at most {limit}")
    return value


def _prose(header: dict[str, Any], key: str, limit: int = 256) -> str:
    """What the peer writes for people. SEC: it ends on terminals: only printable ASCII is kept."""
    text = _text(header, key, limit)
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if " " <= c <= "~" else "?" for c in text)


def _optional_text(header: dict[str, Any], key: str, limit: int = 256) -> str | None:
    return None if header.get(key) is None else _text(header, key, limit)


def _number(header: dict[str, Any], key: str, low: int, high: int) -> int:
    value = header.get(key)
    if type(value) is not int or not low <= value <= high:
        raise ProtocolViolation("header", f"{key} is not an integer from {low} to {high}")
    return value


def _optional_number(header: dict[str, Any], key: str, low: int, high: int) -> int | None:
    return None if header.get(key, _MISSING) is None else _number(header, key, low, high)


def _texts(header: dict[str, Any], key: str) -> list[str]:
    value = header.get(key)
    if type(value) is not list or len(value) > 64 or any(type(item) is not str or len(item) > 64 for item in value):
        raise ProtocolViolation("header", f"{key} is not a short list of strings")
    return value


def _dispatched(header: dict[str, Any]) -> bool | None:
    value = header.get("dispatched")
    if value is not None and type(value) is not bool:
        raise ProtocolViolation("header", "dispatched is not a boolean")
    return value


def _fields(header: dict[str, Any], stream: int) -> Fields:
    pairs = header.get("h")
    if type(pairs) is not list:
        raise ProtocolViolation("header", "h is not a list of pairs")
    fields: Fields = []
    for pair in pairs:
        if type(pair) is not list or len(pair) != 2 or type(pair[0]) is not str or type(pair[1]) is not str:
            raise ProtocolViolation("header", "h is not a list of pairs")
        fields.append((pair[0], pair[1]))
    fault = field_fault(fields)
    if fault is not None:
        raise ProtocolViolation("fields", fault, stream)
    return fields


def _json(data: bytes) -> dict[str, Any]:
    if len(data) > MAX_HEADER_BYTES:
        raise ProtocolViolation("header", "a header over 32 KiB")
    try:
        header = orjson.loads(data)
    except ValueError:
        raise ProtocolViolation("header", "a header that is not JSON") from None
    if type(header) is not dict:
        raise ProtocolViolation("header", "a header that is not an object")
    # SEC: orjson keeps the last of two members; another reader of the same bytes may keep the first.
    if member_count(data) != len(header):
        raise ProtocolViolation("header", "a member that is given twice")
    return header


# --- decoding: one function a type, in the table at the end

_Parts = tuple[int, int, int, bytes, bytes]
"""(flags, stream, aux, header, body)"""


def _decode_hello(parts: _Parts) -> Frame:
    header = _json(parts[3])
    return Hello(
        agent=_prose(header, "agent"),
        instance=_text(header, "instance", 128),
        index=_number(header, "index", 0, 63),
        caps=_texts(header, "caps"),
        max_streams=_number(header, "max_streams", 1, 65_536),
        stream_window=_number(header, "stream_window", 1, MAX_CREDIT),
        conn_window=_number(header, "conn_window", 1, MAX_CREDIT),
        max_frame=_number(header, "max_frame", 1024, MAX_CREDIT),
        last_close=_optional_text(header, "last_close", 512),
        clock_ms=None if header.get("clock_ms") is None else _number(header, "clock_ms", 0, 1 << 53),
    )


def _decode_welcome(parts: _Parts) -> Frame:
    header = _json(parts[3])
    return Welcome(
        conn=_text(header, "conn", 128),
        epoch=_number(header, "epoch", 0, 2**63 - 1),
        node=_text(header, "node"),
        worker=_number(header, "worker", 0, 2**31),
        caps=_texts(header, "caps"),
        max_streams=_number(header, "max_streams", 1, 65_536),
        stream_window=_number(header, "stream_window", 1, MAX_CREDIT),
        conn_window=_number(header, "conn_window", 1, MAX_CREDIT),
        max_frame=_number(header, "max_frame", 1024, MAX_CREDIT),
        ping_ms=_number(header, "ping_ms", 1, 3_600_000),
        dead_ms=_number(header, "dead_ms", 1, 3_600_000),
        token_exp=_number(header, "token_exp", 0, 2**53),
    )


def _decode_request(parts: _Parts) -> Frame:
    flags, stream, _, data, body = parts
    header = _json(data)
    method, target = _text(header, "m", 32), _text(header, "t", 8192)
    request = Request(
        id=_text(header, "id", 128),
        method=method,
        target=target,
        fields=_fields(header, stream),
        length=_optional_number(header, "len", 0, 2**53),
        deadline_ms=_number(header, "dl", 0, MAX_DEADLINE_MS),
        traceparent=_optional_text(header, "tp"),
        idempotency=_optional_text(header, "idem"),
        hold=flags & HOLD != 0,
        unit=_optional_text(header, "unit", 64),
    )
    if _METHOD(method) is None or _TARGET(target) is None:
        raise ProtocolViolation("fields", "a method or target that HTTP forbids", stream)
    return RequestFrame(stream, request, body, flags & END_BODY != 0)


def _decode_response(parts: _Parts) -> Frame:
    flags, stream, _, data, body = parts
    header = _json(data)
    status = _number(header, "s", 0, 999)
    response = Response(
        status=status,
        fields=_fields(header, stream),
        length=_optional_number(header, "len", 0, 2**53),
        upstream_ms=_number(header, "up", 0, 2**31),
    )
    if not 200 <= status <= 599:
        raise ProtocolViolation("fields", "a status that is not a final one", stream)
    return ResponseFrame(stream, response, body, flags & END_BODY != 0)


def _decode_reset(parts: _Parts) -> Frame:
    _, stream, code, _, rest = parts
    header = _json(rest)
    return Reset(stream, code, _prose(header, "reason", 512), _dispatched(header))


def _decode_reset_ack(parts: _Parts) -> Frame:
    dispatched = _dispatched(_json(parts[3]))
    if dispatched is None:
        raise ProtocolViolation("header", "dispatched is missing")
    return ResetAck(parts[1], dispatched)


def _decode_goaway(parts: _Parts) -> Frame:
    header = _json(parts[3])
    return GoAway(
        code=_number(header, "code", 0, 255),
        retry_ms=_number(header, "retry_ms", 0, 86_400_000),
        jitter_ms=_number(header, "jitter_ms", 0, 86_400_000),
        why=_prose(header, "why", 512),
    )


def _decode_window(parts: _Parts) -> Frame:
    if not 1 <= parts[2] <= MAX_CREDIT:
        raise ProtocolViolation("credit", "a credit of nothing or over 2^31-1")
    return Window(parts[1], parts[2])


def _opaque(body: bytes) -> bytes:
    if len(body) != 8:
        raise ProtocolViolation("length", "a ping carries eight bytes")
    return body


def _decode_sync(parts: _Parts) -> Frame:
    body = parts[4]
    if len(body) % 4:
        raise ProtocolViolation("length", "SYNC is a list of 32-bit ids")
    return Sync(list(struct.unpack(f"!{len(body) // 4}I", body)))


_CONNECTION, _STREAM, _BOTH = 0, 1, 2
_NO_HEADER, _HEADER = False, True
_BODY: Final = frozenset({FrameType.REQ, FrameType.RES, FrameType.DATA})
_REST: Final = frozenset({FrameType.PING, FrameType.PONG, FrameType.SYNC, FrameType.RESET}) | _BODY

_RULES: Final[dict[int, tuple[Callable[[_Parts], Frame], int, bool, int]]] = {
    # type: how to decode, whose stream id, a header?, which flags besides HAS_HEADER and CRITICAL
    FrameType.HELLO: (_decode_hello, _CONNECTION, _HEADER, 0),
    FrameType.WELCOME: (_decode_welcome, _CONNECTION, _HEADER, 0),
    FrameType.REQ: (_decode_request, _STREAM, _HEADER, END_BODY | HOLD),
    FrameType.ACK: (lambda parts: Ack(parts[1]), _STREAM, _NO_HEADER, 0),
    FrameType.RES: (_decode_response, _STREAM, _HEADER, END_BODY),
    FrameType.DATA: (
        lambda parts: Data(parts[1], parts[4], parts[0] & END_BODY != 0),
        _STREAM,
        _NO_HEADER,
        END_BODY,
    ),
    FrameType.WINDOW: (_decode_window, _BOTH, _NO_HEADER, 0),
    FrameType.RESET: (_decode_reset, _STREAM, _NO_HEADER, 0),
    FrameType.RESET_ACK: (_decode_reset_ack, _STREAM, _HEADER, 0),
    FrameType.GO: (lambda parts: Go(parts[1]), _STREAM, _NO_HEADER, 0),
    FrameType.PING: (lambda parts: Ping(_opaque(parts[4])), _CONNECTION, _NO_HEADER, 0),
    FrameType.PONG: (lambda parts: Pong(_opaque(parts[4])), _CONNECTION, _NO_HEADER, 0),
    FrameType.GOAWAY: (_decode_goaway, _CONNECTION, _HEADER, 0),
    FrameType.TOKEN: (lambda parts: Token(_text(_json(parts[3]), "token", 8192)), _CONNECTION, _HEADER, 0),
    FrameType.TOKEN_OK: (lambda parts: TokenOk(_number(_json(parts[3]), "exp", 0, 2**53)), _CONNECTION, _HEADER, 0),
    FrameType.SYNC: (_decode_sync, _CONNECTION, _NO_HEADER, 0),
    FrameType.LEASE: (
        lambda parts: Lease(_number(_json(parts[3]), "max_streams", 0, 65_536)),
        _CONNECTION,
        _HEADER,
        0,
    ),
}
_HEADER_AND_CRITICAL: Final = HAS_HEADER | CRITICAL


def decode(message: bytes, max_bytes: int = MAX_FRAME_BYTES) -> Frame | None:
    """The frame of one binary message, or None if its type is unknown and not CRITICAL.

    Raises: ProtocolViolation.
    """
    return decode_ordinary(message, max_bytes) or decode_any(message, max_bytes)


def decode_ordinary(message: bytes, max_bytes: int) -> Frame | None:
    """The frame of a message as every request causes them, read by a kernel; None for all others."""
    answer = decode_answer(message, max_bytes)
    if answer is not None:
        if len(answer) == 1:
            return Ack(answer[0])
        stream, status, fields, length, upstream_ms, body, end = answer
        return ResponseFrame(stream, Response(status, fields, length, upstream_ms), body, end)
    asked = decode_request(message, max_bytes)
    if asked is None:
        return None
    stream, parts, body, end = asked
    return RequestFrame(stream, Request(*parts), body, end)


def decode_any(message: bytes, max_bytes: int) -> Frame | None:
    """See `decode`. Raises: ProtocolViolation."""
    try:
        kind, flags, stream, aux, header, body = unpack_frame(message, max_bytes)
    except RelayFrameError as error:
        raise ProtocolViolation(error.code, str(error)) from None
    rule = _RULES.get(kind)
    if rule is None:
        if flags & CRITICAL:
            raise ProtocolViolation("type", "a critical frame of an unknown type")
        return None
    decode_type, scope, has_header, allowed = rule
    _check_parts(kind, flags & ~_HEADER_AND_CRITICAL & ~allowed, stream, scope, has_header, header, body)
    return decode_type((flags, stream, aux, header, body))


def _check_parts(
    kind: int, strange: int, stream: int, scope: int, has_header: bool, header: bytes, body: bytes
) -> None:
    if strange:
        raise ProtocolViolation("flags", "a flag that this type does not have")
    if scope == _CONNECTION and stream != 0:
        raise ProtocolViolation("stream", "a stream id on a frame of the connection")
    if (scope == _STREAM or (scope == _BOTH and stream)) and stream & 1 == 0:
        raise ProtocolViolation("stream", "a stream id that is not odd")
    if has_header != bool(header):
        raise ProtocolViolation("header", "a header that is missing or should not be there")
    if body and kind not in _REST:
        raise ProtocolViolation("length", "a body on a type that has none")

"""caregate.relay.v1 on the wire: HTTP over a connection the unit dialled. One binary message is one frame.

```
 u8 version=1 | u8 type | u16 flags | u32 stream | u32 aux | header (aux bytes, JSON) | body: the rest
 flags: 1 END_BODY   2 HAS_HEADER   4 CRITICAL (type unknown to the receiver: violation; else ignored)   8 HOLD (on REQ)
 aux:   in WINDOW the credit, in RESET the code (no HAS_HEADER, the rest is JSON); elsewhere the header's length

 0x01 HELLO     u→g   0x10 REQ    g→u   0x14 WINDOW     both   0x20 PING    both   0x23 TOKEN     u→g
 0x02 WELCOME   g→u   0x11 ACK    u→g   0x15 RESET      both   0x21 PONG    both   0x24 TOKEN_OK  g→u
                      0x12 RES    u→g   0x16 RESET_ACK  u→g    0x22 GOAWAY  both   0x25 SYNC      both
                      0x13 DATA   both  0x17 GO         g→u                        0x26 LEASE     u→g
```

A frame whose shape is wrong is a violation of the connection; a field list that HTTP forbids, or a status out of range,
is a violation of its stream alone (`ProtocolViolation.stream`): one bad local service does not end a unit's other
requests.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass, field
from typing import Final

import orjson

from fastpath.frames import END_BODY, HOLD, pack_aux, pack_frame

SUBPROTOCOL: Final = "caregate.relay.v1"
PREFIX_BYTES: Final = 12
MAX_FRAME_BYTES: Final = 131_072
MAX_HEADER_BYTES: Final = 32_768
MAX_FIELDS: Final = 100
MAX_CREDIT: Final = 0x7FFFFFFF
MAX_STREAM: Final = 0xFFFFFFFF
MAX_DEADLINE_MS: Final = 300_000
MAX_REASON: Final = 128
"""Characters of a reason that this side sends; it takes up to 512."""

LEDGER: Final = "ledger"
"""A capability in HELLO and WELCOME: `idem` of REQ is kept, and the answer to its first request given again."""

Fields = list[tuple[str, str]]
"""Repeated fields survive: pairs of a lower-case name and a value, each character one byte (latin-1)."""


class FrameType(enum.IntEnum):
    HELLO = 0x01
    WELCOME = 0x02
    REQ = 0x10
    ACK = 0x11
    RES = 0x12
    DATA = 0x13
    WINDOW = 0x14
    RESET = 0x15
    RESET_ACK = 0x16
    GO = 0x17
    PING = 0x20
    PONG = 0x21
    GOAWAY = 0x22
    TOKEN = 0x23
    TOKEN_OK = 0x24
    SYNC = 0x25
    LEASE = 0x26


class ResetCode(enum.IntEnum):
    CANCEL = 1
    DEADLINE = 2
    REFUSED = 3
    UPSTREAM_CONNECT = 4
    UPSTREAM_TIMEOUT = 5
    UPSTREAM_PROTOCOL = 6
    TOO_LARGE = 7
    FLOW_CONTROL = 8
    PROTOCOL = 9
    INTERNAL = 10
    SHED = 11


class RefusalReason(enum.StrEnum):
    """Reasons in RESET that the caller's answer depends on; every other reason is for the log."""

    KEY_REUSED = "idempotency-key-reused"
    KEY_IN_PROGRESS = "idempotency-in-progress"
    OUTCOME_UNKNOWN = "outcome-unknown"
    ANSWER_NOT_KEPT = "idempotency-answer-not-kept"
    LEDGER_UNAVAILABLE = "idempotency-unavailable"
    REQUEST_TOO_LARGE = "request-too-large"


class GoAwayCode(enum.IntEnum):
    DRAIN = 0
    REPLACED = 1
    AUTH_EXPIRED = 2
    UNIT_DISABLED = 3
    PROTOCOL = 4
    OVERLOAD = 5
    IDLE = 6


class ProtocolViolation(ValueError):
    """The peer broke the protocol; `code` names the rule. `stream` is 0 if the connection cannot go on."""

    def __init__(self, code: str, detail: str, stream: int = 0) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.stream = stream


class Oversize(ValueError):
    """A header that this side wanted to send is over 32 KiB or 100 fields."""


# --- the frames


@dataclass(slots=True)
class Hello:
    """Units: windows and `max_frame` bytes, `clock_ms` the unit's clock as it sends this, ms since 1970."""

    agent: str
    instance: str
    index: int = 0
    caps: list[str] = field(default_factory=list)
    max_streams: int = 64
    stream_window: int = 262_144
    conn_window: int = 4_194_304
    max_frame: int = MAX_FRAME_BYTES
    last_close: str | None = None
    clock_ms: int | None = None


@dataclass(slots=True)
class Welcome:
    """Units: windows and `max_frame` bytes, `*_ms` milliseconds, `token_exp` seconds since 1970."""

    conn: str
    epoch: int
    node: str = ""
    worker: int = 0
    caps: list[str] = field(default_factory=list)
    max_streams: int = 64
    stream_window: int = 262_144
    conn_window: int = 4_194_304
    max_frame: int = MAX_FRAME_BYTES
    ping_ms: int = 15_000
    dead_ms: int = 35_000
    token_exp: int = 0


@dataclass(slots=True)
class Request:
    """Units: `length` bytes of body or None if not known, `deadline_ms` what is left.

    `target` is origin-form, ASCII; `idempotency` the ledger's key, a digest of (issuer, subject, route, key);
    `unit` is sent between workers alone. `encoded` is REQ's header before and after its deadline where it was made by
    `fastpath.heads`; `fields` are not looked at then.
    """

    id: str
    method: str
    target: str
    fields: Fields
    length: int | None = None
    deadline_ms: int = 30_000
    traceparent: str | None = None
    idempotency: str | None = None
    hold: bool = False
    unit: str | None = None
    encoded: tuple[bytes, bytes] | None = None


@dataclass(slots=True)
class Response:
    """Units: `length` bytes of body or None if not known, `upstream_ms` spent in the local service."""

    status: int
    fields: Fields
    length: int | None = None
    upstream_ms: int = 0


@dataclass(slots=True)
class RequestFrame:
    stream: int
    request: Request
    body: bytes = b""
    end: bool = False


@dataclass(slots=True)
class Ack:
    stream: int


@dataclass(slots=True)
class ResponseFrame:
    stream: int
    response: Response
    body: bytes = b""
    end: bool = False


@dataclass(slots=True)
class Data:
    stream: int
    body: bytes = b""
    end: bool = False


@dataclass(slots=True)
class Window:
    """`credit` more body bytes for `stream`, or for the connection if that is 0."""

    stream: int
    credit: int


@dataclass(slots=True)
class Reset:
    """`dispatched`: may the local service have seen the request? None: the sender does not know."""

    stream: int
    code: int
    reason: str = ""
    dispatched: bool | None = None


@dataclass(slots=True)
class ResetAck:
    stream: int
    dispatched: bool


@dataclass(slots=True)
class Go:
    stream: int


@dataclass(slots=True)
class Ping:
    opaque: bytes


@dataclass(slots=True)
class Pong:
    opaque: bytes


@dataclass(slots=True)
class GoAway:
    code: int
    retry_ms: int = 0
    jitter_ms: int = 0
    why: str = ""


@dataclass(slots=True)
class Token:
    token: str


@dataclass(slots=True)
class TokenOk:
    """Units: `exp` seconds since 1970."""

    exp: int


@dataclass(slots=True)
class Sync:
    streams: list[int]


@dataclass(slots=True)
class Lease:
    max_streams: int


Frame = (
    Hello
    | Welcome
    | RequestFrame
    | Ack
    | ResponseFrame
    | Data
    | Window
    | Reset
    | ResetAck
    | Go
    | Ping
    | Pong
    | GoAway
    | Token
    | TokenOk
    | Sync
    | Lease
)


# --- encoding


def encode_request_header(request: Request) -> bytes:
    """The JSON header of REQ. Raises: Oversize."""
    if request.encoded is not None:
        before, after = request.encoded
        if request.unit is None:
            return b"%b%d%b}" % (before, request.deadline_ms, after)
        return b'%b%d%b,"unit":%b}' % (before, request.deadline_ms, after, orjson.dumps(request.unit))
    header: dict[str, object] = {
        "id": request.id,
        "m": request.method,
        "t": request.target,
        "h": request.fields,
        "len": request.length,
        "dl": request.deadline_ms,
        "tp": request.traceparent,
        "idem": request.idempotency,
    }
    if request.unit is not None:
        header["unit"] = request.unit
    return _sized(request.fields, orjson.dumps(header))


def encode_response_header(response: Response) -> bytes:
    """The JSON header of RES. Raises: Oversize."""
    header = {"s": response.status, "h": response.fields, "len": response.length, "up": response.upstream_ms}
    return _sized(response.fields, orjson.dumps(header))


def _sized(fields: Fields, header: bytes) -> bytes:
    if len(header) > MAX_HEADER_BYTES or len(fields) > MAX_FIELDS:
        raise Oversize("a header over 32 KiB or 100 fields")
    return header


def _encode_plain(frame: Frame) -> bytes:
    match frame:
        case Ack(stream):
            return pack_frame(FrameType.ACK, 0, stream)
        case Window(stream, credit):
            return pack_aux(FrameType.WINDOW, 0, stream, credit)
        case Ping(opaque):
            return pack_frame(FrameType.PING, 0, 0, b"", opaque)
        case Pong(opaque):
            return pack_frame(FrameType.PONG, 0, 0, b"", opaque)
        case Go(stream):
            return pack_frame(FrameType.GO, 0, stream)
        case Sync(streams):
            return pack_frame(FrameType.SYNC, 0, 0, b"", struct.pack(f"!{len(streams)}I", *streams))
        case Reset(stream, code, reason, dispatched):
            rest = orjson.dumps({"reason": reason[:MAX_REASON], "dispatched": dispatched})
            return pack_aux(FrameType.RESET, 0, stream, code, rest)
        case ResetAck(stream, dispatched):
            return pack_frame(FrameType.RESET_ACK, 0, stream, orjson.dumps({"dispatched": dispatched}))
        case _:
            return _encode_described(frame)


def _encode_described(frame: Frame) -> bytes:
    kind = _DESCRIBED[type(frame)]
    header = {name: getattr(frame, name) for name in frame.__dataclass_fields__}
    for name in ("why", "last_close"):
        if header.get(name):
            header[name] = header[name][:MAX_REASON]
    return pack_frame(kind, 0, 0, orjson.dumps(header))


_DESCRIBED: Final[dict[type, FrameType]] = {
    Hello: FrameType.HELLO,
    Welcome: FrameType.WELCOME,
    GoAway: FrameType.GOAWAY,
    Token: FrameType.TOKEN,
    TokenOk: FrameType.TOKEN_OK,
    Lease: FrameType.LEASE,
}


def encode(frame: Frame) -> bytes:
    """One binary message. Raises: Oversize."""
    match frame:
        case RequestFrame(stream, request, body, end):
            flags = (END_BODY if end else 0) | (HOLD if request.hold else 0)
            return pack_frame(FrameType.REQ, flags, stream, encode_request_header(request), body)
        case ResponseFrame(stream, response, body, end):
            return pack_frame(FrameType.RES, END_BODY if end else 0, stream, encode_response_header(response), body)
        case Data(stream, body, end):
            return pack_frame(FrameType.DATA, END_BODY if end else 0, stream, b"", body)
        case _:
            return _encode_plain(frame)

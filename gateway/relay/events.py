"""What a relay session tells its owner."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.errors import Delivery
from gateway.relay.frames import Hello, Request, Response, Welcome


@dataclass(slots=True)
class HelloReceived:
    """Gateway: the unit introduced itself; answer with `welcome`, or close."""

    hello: Hello


@dataclass(slots=True)
class WelcomeReceived:
    """Unit: the connection is active."""

    welcome: Welcome


@dataclass(slots=True)
class RequestReceived:
    """Unit: a request; its body goes on with DataReceived unless `end`."""

    stream: int
    request: Request
    body: bytes
    end: bool


@dataclass(slots=True)
class Acked:
    """Gateway: from now on the local service may have seen the request."""

    stream: int


@dataclass(slots=True)
class ResponseReceived:
    """Gateway: the answer's head; with `end` it is the stream's outcome."""

    stream: int
    response: Response
    body: bytes
    end: bool


@dataclass(slots=True)
class DataReceived:
    """Body bytes; the owner says `consumed` when they left its memory. On the gateway `end` is the stream's outcome."""

    stream: int
    body: bytes
    end: bool


@dataclass(slots=True)
class StreamAborted:
    """The stream's outcome is a failure. `remote`: the peer reset it; else this side did.

    `delivery` is what this side knows of the request; on the unit's side it is what the unit told.
    """

    stream: int
    code: int
    reason: str
    delivery: Delivery
    remote: bool


@dataclass(slots=True)
class ResetAcked:
    """Gateway: what the unit says of a stream that was reset before."""

    stream: int
    dispatched: bool


@dataclass(slots=True)
class GoReceived:
    """Unit: a held request may be dispatched."""

    stream: int


@dataclass(slots=True)
class GoAwayReceived:
    """The peer starts no new streams and will close when the open ones ended."""

    code: int
    retry_ms: int
    jitter_ms: int
    why: str


@dataclass(slots=True)
class TokenReceived:
    """Gateway: a renewed token; answer with `accept_token`, or go away."""

    token: str


@dataclass(slots=True)
class TokenAccepted:
    """Units: `exp` seconds since 1970."""

    exp: int


@dataclass(slots=True)
class SessionClosed:
    """The session is over: send what is left, close the transport, call `fail_all`.

    Shapes: `reason` is one word: violation, silent, no-hello, token-expired, or the owner's own.
    """

    reason: str
    detail: str


Event = (
    HelloReceived
    | WelcomeReceived
    | RequestReceived
    | Acked
    | ResponseReceived
    | DataReceived
    | StreamAborted
    | ResetAcked
    | GoReceived
    | GoAwayReceived
    | TokenReceived
    | TokenAccepted
    | SessionClosed
)

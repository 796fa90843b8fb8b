"""From a caller's request to what the unit is sent: which fields travel, what is added, the body in pieces."""

from __future__ import annotations

import hashlib
import re
import time
from typing import Any, Final

import orjson

from fastpath.heads import FieldNames, encode_request_head
from gateway.bodies import wait_until
from gateway.config.snapshot import CompiledUnit
from gateway.context import RequestContext
from gateway.errors import BadRequest, BodyTooLarge
from gateway.http1.deadlines import NEVER
from gateway.relay.context_token import sign_context
from gateway.relay.decoding import field_fault
from gateway.relay.frames import Fields, Request
from gateway.relay.pieces import keep
from gateway.routing.model import Route, UnitAction
from gateway.routing.onward import LEFT_OUT, LEFT_OUT_BEGINNINGS, refuse_content, refuse_override
from gateway.routing.query import check_query
from gateway.routing.target import forward_target

PIECE_BYTES: Final = 65_536
KEEP_BYTES: Final = 1_048_576
"""A body up to this size stays in memory until the unit has acknowledged, for one repeat."""

_REMOVED: Final = LEFT_OUT | {"cookie", "traceparent"}
_NAMES_NOTHING: Final = frozenset({"keep-alive", "close"})
"""What `Connection` mostly says."""

_WITHOUT_COOKIES: Final = FieldNames(_REMOVED, LEFT_OUT_BEGINNINGS)
_WITH_COOKIES: Final = FieldNames(_REMOVED - {"cookie"}, LEFT_OUT_BEGINNINGS)

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}\Z").match
"""Source: W3C Trace Context, 3.2."""

_IDEMPOTENCY_KEY = re.compile(r"[\x21-\x7e]{1,255}\Z").match
_NEVER_KEYED: Final = frozenset({"GET", "HEAD", "OPTIONS"})

_NAMES: dict[str, str] = {}
"""PERF: environ keys to field names, filled as they come (bench relay); bounded by `_name`."""


def build_request(
    ctx: RequestContext, route: Route, action: UnitAction, unit: CompiledUnit, env: dict[str, Any]
) -> Request:
    """What the unit is asked.

    Raises: QueryRefused; BadRequest for a field that cannot travel, a malformed Idempotency-Key, another method or
    content where there is none.
    """
    refuse_override(env, ctx.method)
    if ctx.query:
        check_query(ctx.query, route.query)
    key = unit.context_key
    context = None if key is None else sign_context(key, context_claims(ctx, unit.id), time.time())
    target, length = forward_target(action.target, ctx), content_length(env)
    refuse_content(ctx.method, length)
    # PERF: `relay_small`: asked here, where most have neither.
    traceparent = _traceparent(env) if "HTTP_TRACEPARENT" in env else None
    idempotency = _idempotency(ctx, route, env) if "HTTP_IDEMPOTENCY_KEY" in env else None
    fields: Fields = []
    encoded = None
    if env.get("HTTP_CONNECTION", "close").lower() in _NAMES_NOTHING:
        names = _WITH_COOKIES if action.cookies else _WITHOUT_COOKIES
        encoded = encode_request_head(names, env, ctx.id, ctx.method, target, length, traceparent, idempotency, context)
    if encoded is None:
        fields = _checked_fields(env, action.cookies, ctx.id, context)
    # PERF: by position; keywords cost as much again.
    return Request(ctx.id, ctx.method, target, fields, length, 0, traceparent, idempotency, False, None, encoded)


def _checked_fields(env: dict[str, Any], cookies: bool, request_id: str, context: str | None) -> Fields:
    """Raises: BadRequest."""
    fields = build_fields(env, cookies)
    fields.append(("x-request-id", request_id))
    if context is not None:
        fields.append(("x-caregate-context", context))
    fault = field_fault(fields)
    if fault is not None:
        raise BadRequest(f"The request has {fault}")
    return fields


def _traceparent(env: dict[str, Any]) -> str | None:
    value: str | None = env.get("HTTP_TRACEPARENT")
    return value if value is not None and _TRACEPARENT(value) is not None else None


def _idempotency(ctx: RequestContext, route: Route, env: dict[str, Any]) -> str | None:
    """What the unit's ledger knows the request by; None without a key, and for methods that change nothing.

    SEC: the issuer and subject are part of it, so no caller is given another's answer; a digest, so that the unit's
    disk holds neither them nor the key.
    Source: draft-ietf-httpapi-idempotency-key-header. Raises: BadRequest.
    """
    key: str | None = env.get("HTTP_IDEMPOTENCY_KEY")
    if key is None:
        return None
    if _IDEMPOTENCY_KEY(key) is None or "idempotency-key" in env.get("caregate.duplicate", ()):
        raise BadRequest("Idempotency-Key must be 1 to 255 visible ASCII characters, given once")
    principal = ctx.principal
    if principal is None or ctx.method in _NEVER_KEYED:
        return None
    parts = orjson.dumps([principal.issuer, principal.subject, route.name, key])
    return hashlib.sha256(parts).hexdigest()


def build_fields(env: dict[str, Any], cookies: bool) -> Fields:
    """The caller's fields without those of one hop, of identity, and those that `connection` names."""
    named = env.get("HTTP_CONNECTION")
    removed = _REMOVED
    if named and named.lower() not in ("keep-alive", "close"):
        removed = removed | {token.strip().lower() for token in named.split(",")}
    fields: Fields = []
    for key, value in env.items():
        if key.startswith("HTTP_"):
            name = _name(key)
            if (name not in removed and not name.startswith(LEFT_OUT_BEGINNINGS)) or (name == "cookie" and cookies):
                fields.append((name, value))
    content_type = env.get("CONTENT_TYPE")
    if content_type:
        fields.append(("content-type", content_type))
    return fields


def _name(key: str) -> str:
    name = _NAMES.get(key)
    if name is None:
        name = key[5:].replace("_", "-").lower()
        if len(_NAMES) < 1024:
            _NAMES[key] = name
    return name


def context_claims(ctx: RequestContext, unit: str) -> dict[str, object]:
    """Who asks, in what role, for whom and why: all a unit learns of the caller."""
    principal = ctx.principal
    claims: dict[str, object] = {"iss": "caregate", "aud": unit, "rid": ctx.id}
    if principal is not None:
        claims["sub"] = principal.subject
        claims["role"] = principal.role
        patient = ctx.params.get("patient") or principal.claims.get("patient")
        if isinstance(patient, str):
            claims["patient"] = patient
        purpose = ctx.purpose or principal.claims.get("purpose")
        if isinstance(purpose, str):
            claims["purpose"] = purpose
    return claims


def content_length(env: dict[str, Any]) -> int | None:
    """The body's length, None if it is not known before its end."""
    if "caregate.content_length" in env:
        length: int | None = env["caregate.content_length"]
        return length
    text = env.get("CONTENT_LENGTH") or "0"
    return int(text) if text.isascii() and text.isdigit() else 0


class NoRequestBody:
    """The body of a request that has none. See exchange.Body."""

    replayable = True

    def first(self) -> tuple[bytes, bool]:
        return b"", True

    next = first

    def interrupt(self) -> None:
        """Nobody ever waits."""

    forget = interrupt
    kept_bytes = 0


NO_BODY: Final = NoRequestBody()


class RequestBody:
    """`wsgi.input` in pieces, kept from the beginning while it is small. See exchange.Body."""

    def __init__(self, stream: Any, length: int | None, max_bytes: int, first_by_ns: int = NEVER) -> None:
        """Units: `first_by_ns` monotonic nanoseconds, past which nobody waits for the first piece.

        Raises: BodyTooLarge.
        """
        limit = getattr(stream, "limit", None)
        if limit is not None and length != 0:
            limit(max_bytes)
        if length is not None and length > max_bytes:
            raise BodyTooLarge("The body is larger than this route takes", close=True)
        self._read = getattr(stream, "read_some", stream.read)
        self._stream = stream
        self._interrupt = getattr(stream, "interrupt", None)
        self._first_by_ns = first_by_ns
        self._length = length
        self._max_bytes = max_bytes
        self._received = 0
        self._kept: list[bytes] | None = []
        self._end = length == 0
        self._at = 0

    @property
    def replayable(self) -> bool:
        return self._kept is not None

    def first(self) -> tuple[bytes, bool]:
        """From the beginning: all that is kept, or one piece. Yields to the hub: yes."""
        if self._received == 0 and not self._end:
            return self._take_by(self._first_by_ns)
        kept = self._kept or []
        return b"".join(kept), self._end

    def next(self) -> tuple[bytes, bool]:
        """The piece after what was given. Yields to the hub: yes."""
        return self._take()

    @property
    def kept_bytes(self) -> int:
        """See exchange.Body."""
        return 0 if self._kept is None else self._received

    def forget(self) -> None:
        """See exchange.Body."""
        self._kept = None

    def interrupt(self) -> None:
        """See exchange.Body."""
        if self._interrupt is not None:
            self._interrupt()

    def _take_by(self, deadline_ns: int) -> tuple[bytes, bool]:
        wait_until(self._stream, deadline_ns)
        try:
            return self._take()
        finally:
            wait_until(self._stream, NEVER)

    def _take(self) -> tuple[bytes, bool]:
        """Raises: BodyTooLarge, BadFraming, RequestTimeout, ClientDisconnected."""
        piece: bytes = self._read(PIECE_BYTES)
        self._received += len(piece)
        if self._received > self._max_bytes:
            raise BodyTooLarge("The body is larger than this route takes", close=True)
        self._end = not piece if self._length is None else self._received >= self._length or not piece
        if self._kept is not None:
            keep(self._kept, piece)
            if self._received > KEEP_BYTES:
                self._kept = None
        return piece, self._end

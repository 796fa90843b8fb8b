"""`GET /relay/v1/connect`: everything is checked and answered in plain HTTP; only a good unit sees a 101."""

from __future__ import annotations

import base64
import binascii
import errno
import hashlib
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

import falcon

from fastpath.token import TokenError, Verified
from gateway.config.snapshot import CompiledUnit, SnapshotHolder
from gateway.errors import (
    BadRequest,
    ClientDisconnected,
    Conflict,
    Draining,
    Forbidden,
    MethodNotMapped,
    Overloaded,
    TokenAmbiguous,
    TokenInvalid,
    TokenMissing,
    UnitUnknown,
    UpgradeRequired,
)
from gateway.http1.connection import TCP_CLOSING
from gateway.relay.admission import DialGate
from gateway.relay.frames import SUBPROTOCOL
from gateway.relay.link_token import LinkToken
from gateway.relay.used_tokens import UsedTokens, mark_of

MAX_LIFETIME_S: Final = 300
_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_UPGRADE_FIELDS: Final = (("Upgrade", "websocket"), ("Sec-WebSocket-Protocol", SUBPROTOCOL))


@dataclass(frozen=True, slots=True)
class Login:
    """Who dialled, under which token."""

    unit: CompiledUnit
    token: LinkToken

    @property
    def kid(self) -> str:
        return self.token.kid


TakeOver = Callable[[Login, Any, bytes], None]
"""(who, socket, unread bytes): lives as long as the connection."""


REFUSED = "token:unit"
"""The rule of a dial whose token, key or unit is refused."""


class UnitTokens:
    """Checks of a unit's own token, at the dial and at each renewal."""

    def __init__(self, holder: SnapshotHolder, used: UsedTokens, now: Callable[[], float] = time.time) -> None:
        self._holder = holder
        self._used = used
        self._now = now
        self.on_unknown_key: Callable[[], None] = lambda: None
        """Asked once before a token of an unknown key is refused: it may have been registered a moment ago."""
        self.on_used: Callable[[str], None] = lambda kid: None
        """Told of the key of each token that is accepted."""

    def check(self, token: str) -> Login:
        """Who the token is of. Raises: TokenInvalid, Forbidden, UnitUnknown, Overloaded. Yields to the hub: maybe."""
        now_s = self._now()
        verified = self._verify(token, now_s)
        unit_id = self._subject(verified, now_s)
        unit = self._holder.current.units.get(unit_id)
        if unit is None:
            raise UnitUnknown("")
        if not unit.enabled:
            raise Forbidden("The unit is disabled")
        # Last, so that a refusal for another reason does not spend the token.
        if not self._used.use(mark_of(unit_id, verified.jti or ""), verified.expires_at_s, now_s):
            raise TokenInvalid("The token was used before")
        kid = verified.key.kid or ""
        self.on_used(kid)
        return Login(unit, LinkToken(kid, verified.expires_at_s, verified.jti or "", verified.issued_at_s))

    def _verify(self, token: str, now_s: float) -> Verified:
        try:
            return self._holder.current.unit_verifier.verify(token, now_s)
        except TokenError as error:
            if error.code != "unknown-key":
                raise TokenInvalid(expired=error.code == "expired") from None
        self.on_unknown_key()
        try:
            return self._holder.current.unit_verifier.verify(token, now_s)
        except TokenError as error:
            raise TokenInvalid(expired=error.code == "expired") from None

    def _subject(self, verified: Verified, now_s: float) -> str:
        """SEC: the key belongs to one unit, and the token must name that one twice."""
        claims, unit_id = verified.claims, verified.key.attachment
        if not (claims.get("iss") == claims.get("sub") == unit_id) or not isinstance(unit_id, str):
            raise TokenInvalid("iss and sub are not the unit of the key")
        if not verified.jti:
            raise TokenInvalid("A jti is required")
        issued_s = claims.get("iat")
        start_s = float(issued_s) if isinstance(issued_s, int | float) else now_s
        if verified.expires_at_s - min(start_s, now_s) > MAX_LIFETIME_S:
            raise TokenInvalid("The token lives longer than five minutes")
        return unit_id

    def renewed(self, token: str, unit: str) -> LinkToken | None:
        """A renewed token of `unit`, None if it is refused. See connection.TokenCheck."""
        try:
            login = self.check(token)
        except (TokenInvalid, Forbidden, UnitUnknown, Overloaded):
            return None
        return login.token if login.unit.id == unit else None


class ConnectResource:
    """The handshake of RFC 6455, after authentication."""

    def __init__(
        self,
        tokens: UnitTokens,
        take_over: TakeOver,
        *,
        has_room: Callable[[CompiledUnit], bool],
        spread: Callable[[CompiledUnit, Any], None] = lambda unit, sock: None,
        draining: Callable[[], bool],
        gate: DialGate,
        refuse: Callable[[Login], None] = lambda login: None,
    ) -> None:
        """`refuse` raises for whoever was revoked since his token was checked."""
        self._tokens = tokens
        self._take_over = take_over
        self._has_room = has_room
        self._spread = spread
        self._draining = draining
        self._gate = gate
        self._refuse = refuse

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Answer 101 and leave the connection to the relay. Yields to the hub: yes.

        Raises: what ANSWERS and the protocol page say of each refusal.
        """
        env = req.env
        if self._draining():
            raise Draining(retry_after_s=1, close=True)
        key = check_upgrade(env)
        self._gate.admit(_waited_ms(env.get("caregate.socket")))
        ctx = getattr(req.context, "gateway", None)
        try:
            login = self._tokens.check(unit_bearer(env))
            if ctx is not None:
                ctx.unit = login.unit.id
                login = Login(login.unit, replace(login.token, address=ctx.client_address))
            if not self._has_room(login.unit):
                raise Conflict("The unit has as many connections as it may have", retry_after_s=60)
            self._spread(login.unit, env.get("caregate.socket"))
            # SEC: the checks before may have waited; who is revoked now gets no 101.
            self._refuse(login)
        except (TokenMissing, TokenAmbiguous, TokenInvalid, Forbidden, UnitUnknown):
            self._gate.give_back()
            # The trail keeps it, as it does a caller's whose token is refused.
            if ctx is not None:
                ctx.rule = REFUSED
            raise
        env["caregate.upgrade"] = lambda sock, unread: self._take_over(login, sock, unread)
        resp.status = 101
        resp.set_header("Upgrade", "websocket")
        resp.set_header("Connection", "Upgrade")
        resp.set_header("Sec-WebSocket-Accept", accept_key(key))
        resp.set_header("Sec-WebSocket-Protocol", SUBPROTOCOL)

    def _refuse_method(self, req: falcon.Request, resp: falcon.Response) -> None:
        raise MethodNotMapped(headers=(("Allow", "GET"),))

    on_head = on_post = on_put = on_patch = on_delete = on_options = _refuse_method


def _waited_ms(sock: Any) -> int:
    """How long the dial waited at the door.

    Source: linux/tcp.h: `tcpi_state` is byte 0 of TCP_INFO, `tcpi_last_data_recv` (ms) the word at byte 52.
    Raises: ClientDisconnected if the unit did not wait: it dials again, and what is done for it now is missing there.
    """
    if sock is None:
        return 0
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 56)
    except OSError as error:
        # PERF: `worker_ms_per_dial` of `make fleet`: asking for the family of a socket makes an Enum's member.
        if error.errno == errno.EOPNOTSUPP:
            return 0  # a unix socket
        raise ClientDisconnected("The unit went away before it was answered") from None
    if info[0] in TCP_CLOSING:
        raise ClientDisconnected("The unit went away before it was answered")
    return int.from_bytes(info[52:56], sys.byteorder)


def check_upgrade(env: dict[str, Any]) -> bytes:
    """The key of a request to upgrade that is as RFC 6455 4.2.1 wants it.

    Raises: Forbidden for a browser's Origin; UpgradeRequired; BadRequest.
    """
    if "HTTP_ORIGIN" in env:
        # SEC: agents send none; a browser always does, and its user did not mean to be a unit.
        raise Forbidden("Browsers may not connect here")
    if "websocket" not in _tokens(env, "HTTP_UPGRADE", lower=True):
        raise UpgradeRequired("This resource is a WebSocket", headers=_UPGRADE_FIELDS)
    if "upgrade" not in _tokens(env, "HTTP_CONNECTION", lower=True):
        raise BadRequest("Connection does not name upgrade")
    if env.get("SERVER_PROTOCOL", "HTTP/1.1") != "HTTP/1.1":
        raise BadRequest("A WebSocket needs HTTP/1.1")
    if env.get("HTTP_SEC_WEBSOCKET_VERSION") != "13":
        raise UpgradeRequired("WebSocket version 13 is served", headers=(("Sec-WebSocket-Version", "13"),))
    if env.get("HTTP_TRANSFER_ENCODING") or (env.get("CONTENT_LENGTH") or "0") != "0":
        raise BadRequest("A request to upgrade has no body")
    key = _key(env)
    if SUBPROTOCOL not in _tokens(env, "HTTP_SEC_WEBSOCKET_PROTOCOL", lower=False):
        raise UpgradeRequired(f"The subprotocol {SUBPROTOCOL} is served", headers=_UPGRADE_FIELDS)
    return key


def _tokens(env: dict[str, Any], name: str, *, lower: bool) -> list[str]:
    """The members of a list field, each whole: no member is found inside another."""
    value: str = env.get(name, "")
    return [token.strip(" \t") for token in (value.lower() if lower else value).split(",")]


def _key(env: dict[str, Any]) -> bytes:
    key: str = env.get("HTTP_SEC_WEBSOCKET_KEY", "")
    try:
        raw = base64.b64decode(key.encode("ascii"), validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    if len(raw) != 16 or len(key) != 24:
        raise BadRequest("Sec-WebSocket-Key is not 16 bytes in base64")
    return key.encode("ascii")


def accept_key(key: bytes) -> str:
    """Sec-WebSocket-Accept. Source: RFC 6455 4.2.2."""
    return base64.b64encode(hashlib.sha1(key + _GUID, usedforsecurity=False).digest()).decode("ascii")


def unit_bearer(env: dict[str, Any]) -> str:
    """The one bearer token of a request. Raises: TokenMissing, TokenAmbiguous."""
    value: str | None = env.get("HTTP_AUTHORIZATION")
    if value is None:
        raise TokenMissing
    if "authorization" in env.get("caregate.duplicate", ()) or "," in value:
        raise TokenAmbiguous("Authorization must come once")
    scheme, _, token = value.partition(" ")
    if scheme.lower() != "bearer":
        raise TokenMissing
    return token.strip(" ")

"""Rules of the greetings: the handshake, its token, HELLO, and what a refusal means."""

from __future__ import annotations

import time

import jwt

from gateway.conformance.kit import UNIT, Kit
from gateway.conformance.peer import Broken
from gateway.conformance.registry import need, rule
from gateway.relay import frames as fr


@rule("handshake", "GET /relay/v1/connect, version 13, a key of 16 bytes, the exact subprotocol, no Origin")
def _handshake(kit: Kit) -> None:
    shake = kit.peer().handshake
    need(shake.line == "GET /relay/v1/connect HTTP/1.1", "another request line: the token may not be in it either")
    need(shake.one("upgrade").lower() == "websocket", "Upgrade is not websocket")
    need("upgrade" in [t.strip().lower() for t in shake.one("connection").split(",")], "Connection has no upgrade")
    need(shake.one("sec-websocket-version") == "13", "the version is not 13")
    need(len(shake.one("sec-websocket-key")) == 24, "the key is not 16 bytes in base64")
    offered = [token.strip() for token in shake.one("sec-websocket-protocol").split(",")]
    need("caregate.relay.v1" in offered, "the subprotocol caregate.relay.v1 is not offered")
    need("origin" not in shake.fields, "an Origin field, which only browsers send")
    need("permessage-deflate" not in str(shake.fields.get("sec-websocket-extensions")), "compression is off")


@rule("token", "a JWT by the unit's key: iss = sub = unit, aud unit-link, at most 5 min, a fresh jti each dial")
def _token(kit: Kit) -> None:
    seen = set()
    for peer in (kit.peer(), kit.fresh()):
        scheme, _, token = peer.handshake.one("authorization").partition(" ")
        need(scheme.lower() == "bearer", "Authorization is not Bearer")
        try:
            claims = jwt.decode(token, kit.private_key.public_key(), ["EdDSA"], audience="unit-link")
        except jwt.PyJWTError as error:
            raise Broken(f"the token is refused: {error}") from None
        need(claims.get("iss") == claims.get("sub") == UNIT, "iss and sub are not the unit")
        need(claims.get("exp", 1e12) - claims.get("iat", time.time()) <= 300, "it lives longer than five minutes")
        need(isinstance(claims.get("jti"), str) and claims["jti"] not in seen, "no fresh jti")
        seen.add(claims["jti"])


@rule("hello", "HELLO is the first message, within 5 s")
def _hello(kit: Kit) -> None:
    need(kit.peer().first_s <= 5.0, "HELLO came late")


@rule("token-renewal", "a fresh token is sent by TOKEN before the old one runs out")
def _token_renewal(kit: Kit) -> None:
    peer = kit.fresh(token_exp=int(time.time()) + 6)
    peer.expect(fr.Token, within_s=6.0)


@rule("refused", "a gateway that says 401 or 403 is not asked again for a minute (looked at for three seconds each)")
def _refused(kit: Kit) -> None:
    for status in ("401 Unauthorized", "403 Forbidden"):
        kit.refuse(status)
        need(kit.listener.dialled(10.0), "the agent does not connect")
        need(not kit.listener.dialled(3.0), f"after {status} it dials again at once")


@rule("retry-after", "a gateway that says 503 with Retry-After is not asked again before, and is then")
def _retry_after(kit: Kit) -> None:
    kit.refuse("503 Service Unavailable\r\nRetry-After: 2")
    first_s, second_s = kit.listener.dialled(10.0), kit.listener.dialled(10.0)
    if first_s is None or second_s is None:
        raise Broken("the agent does not connect" + (" again" if first_s else ""))
    need(second_s - first_s >= 2.0, "it dials before that")

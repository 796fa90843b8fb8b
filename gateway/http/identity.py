"""Who calls: the principal of the bearer token.

A token that is present must be good, whatever the route; that a route needs one is decided in `authorization`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import unquote_plus

import falcon

from fastpath.lane import caller_of
from fastpath.token import TokenError, UnknownKey, Verified
from gateway.config.snapshot import Snapshot
from gateway.context import Principal, RequestContext
from gateway.errors import TokenAmbiguous, TokenInvalid
from gateway.metrics import Metrics
from gateway.rbac.scopes import Ceiling, Scopes, claimed, granted

UNIT_LINKS = "/relay/"
"""Where units dial in: their tokens have another audience and are verified by the resource itself."""
ROUTELESS_S = 1.0
"""How long a request without a route waits for an identity provider's keys."""
_REFUSED_UNREAD = {TokenAmbiguous: "ambiguous", TokenInvalid: "malformed"}
"""Rules of what is refused before the token itself is looked at."""


class Identity:
    """Middleware: fills `principal` of the request's context."""

    def __init__(self, clock_s: Callable[[], float], metrics: Metrics) -> None:
        self._clock_s = clock_s
        self._metrics = metrics
        self.knows_key: Callable[[str, str, float], bool] = lambda issuer, kid, wait_s: False
        """Asked about a key of an identity provider that the verifier does not know, see auth.providers."""

    def process_request(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Verify the bearer token, if there is one.

        Raises: TokenAmbiguous, TokenInvalid.
        """
        self.identify(req.context.gateway, req.env)

    def identify(self, ctx: RequestContext, env: dict[str, Any]) -> Verified | None:
        """Find the caller of a request; what his token says, None if he has none.

        Raises: TokenAmbiguous, TokenInvalid, KeysUnavailable.
        Yields to the hub: for a key of an identity provider that is not known.
        """
        try:
            token = bearer_token(env)
        except (TokenAmbiguous, TokenInvalid) as error:
            ctx.rule = f"token:{_REFUSED_UNREAD[type(error)]}"
            raise
        if token is None or ctx.path.startswith(UNIT_LINKS):
            return None
        snapshot: Snapshot = ctx.snapshot
        try:
            verified = snapshot.verifier.verify(token, self._clock_s())
        except TokenError as error:
            verified = self.refused(ctx, token, error)
        principal = verified.principal
        if principal is None:
            principal = verified.principal = principal_of(snapshot, verified)
        ctx.principal = principal
        return verified

    def refused(self, ctx: RequestContext, token: str, error: TokenError) -> Verified:
        """What a token says that the verifier refuses for want of a key, which an identity provider may have by now.

        Raises: TokenInvalid for any other; KeysUnavailable.
        Yields to the hub: for such a key.
        """
        try:
            return self._verify_again(ctx, token, error)
        except TokenError as final:
            ctx.rule = f"token:{final.code}"
            self._metrics.inc("caregate_token_refusals", (final.code,))
            raise TokenInvalid(expired=final.code == "expired") from None

    def _verify_again(self, ctx: RequestContext, token: str, error: TokenError) -> Verified:
        """Raises: TokenError, KeysUnavailable."""
        if not isinstance(error, UnknownKey) or error.issuer is None or error.kid is None:
            raise error
        snapshot: Snapshot = ctx.snapshot
        ctx.rule = "token:keys-unavailable"
        if not self.knows_key(error.issuer, error.kid, _patience_s(ctx, snapshot)):
            raise error
        ctx.rule = ""
        return snapshot.verifier.verify(token, self._clock_s())


def _patience_s(ctx: RequestContext, snapshot: Snapshot) -> float:
    """How long the request may wait for somebody's keys: as long as its route, which it does not have yet, allows."""
    found = snapshot.routes.match(ctx.method, ctx.path)
    return found[0].deadline_ms / 1000 if found is not None else ROUTELESS_S


def bearer_token(env: dict[str, Any]) -> str | None:
    """The bearer token of a request, or None if it brought none.

    Raises: TokenAmbiguous if there are two or one is in the query; TokenInvalid if it is not one word.
    Source: RFC 6750 section 2 and 3.1.
    """
    query = env.get("QUERY_STRING")
    if query and _names_token(query):
        raise TokenAmbiguous("A token in the query is refused; send it in Authorization")
    value: str | None = env.get("HTTP_AUTHORIZATION")
    if value is None:
        return None
    if "," in value or "authorization" in env.get("caregate.duplicate", ()):
        raise TokenAmbiguous("Authorization must come once")
    if value[:7] == "Bearer ":
        token = value[7:].strip(" ")
    else:
        scheme, _, token = value.partition(" ")
        if scheme.lower() != "bearer":
            return None
        token = token.strip(" ")
    if not token or " " in token or "\t" in token:
        raise TokenInvalid()
    return token


def _names_token(query: str) -> bool:
    """Is a parameter named access_token, in any spelling a receiver would decode to it?"""
    if "access_token" not in query and "%" not in query:
        return False
    return any(unquote_plus(pair.partition("=")[0]) == "access_token" for pair in query.split("&"))


def principal_of(snapshot: Snapshot, verified: Verified) -> Principal:
    """Who the bearer of a token is."""
    caller: Principal = caller_of(snapshot.roles, verified, scopes_of)
    return caller


def scopes_of(ceiling: Ceiling, claims: dict[str, Any]) -> Scopes:
    """What the scopes that a token names grant to its role."""
    return granted(ceiling, claimed(claims))

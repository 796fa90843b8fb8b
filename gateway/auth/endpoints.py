"""The token service over HTTP.

```
POST /auth/v1/token        grant_type=client_credentials, client_assertion…   RFC 6749, 4.4; RFC 7523
POST /auth/v1/introspect   token, client_assertion…                           RFC 7662
POST /auth/v1/revoke       token, client_assertion… or none                   RFC 7009
GET  /auth/v1/jwks         the roles' public keys                             RFC 7517
GET  /.well-known/oauth-authorization-server                                  RFC 8414
```
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final, Protocol

import falcon
import orjson

from fastpath.token import TokenError, Verified
from gateway.auth.clients import ALGORITHMS, Clients
from gateway.auth.form import MAX_BODY_BYTES, parse_form
from gateway.auth.issue import issue_access_token
from gateway.config.snapshot import TOKEN_PATH, CompiledClient, CompiledTokens, Snapshot
from gateway.context import RequestContext
from gateway.errors import ClientUnauthenticated, GatewayError, NotFound, TokenRequestRefused
from gateway.relay.request import RequestBody, content_length

JWKS_PATH: Final = "/auth/v1/jwks"
INTROSPECT_PATH: Final = "/auth/v1/introspect"
REVOKE_PATH: Final = "/auth/v1/revoke"
METADATA_PATH: Final = "/.well-known/oauth-authorization-server"
LEEWAY_S: Final = 120
"""At least the leeway of any configuration: until then a token that has run out might still be taken."""
_PUBLIC_FOR: Final = "public, max-age=300"


class Store(Protocol):
    """See store.tokens.TokenStore."""

    def revoke(self, jti: str, until_s: float, by: str) -> None: ...
    def is_revoked(self, jti: str) -> bool: ...


Tell = Callable[[str, str, str], None]
"""Told of (endpoint, outcome, client), for log and metrics."""


def service_of(req: falcon.Request) -> tuple[Snapshot, CompiledTokens]:
    """The snapshot and its token service. Raises: NotFound if it has none."""
    snapshot: Snapshot = req.context.gateway.snapshot
    if snapshot.tokens is None:
        raise NotFound()
    return snapshot, snapshot.tokens


class MetadataResource:
    """What there is, for clients that configure themselves."""

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Raises: NotFound."""
        _, tokens = service_of(req)
        _answer(resp, orjson.dumps(_metadata(tokens.url)), cache=_PUBLIC_FOR)


class JwksResource:
    """The keys that access tokens are verified with."""

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Raises: NotFound."""
        _, tokens = service_of(req)
        _answer(resp, tokens.jwks, cache=_PUBLIC_FOR)


class _Posted:
    """What the endpoints that take a form share."""

    name = ""

    def __init__(self, clients: Clients, tell: Tell, now: Callable[[], float] = time.time) -> None:
        self._clients = clients
        self._tell = tell
        self._now = now

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Answer the form. Yields to the hub: yes.

        Raises: TokenRequestRefused, NotFound, RateLimited, BodyTooLarge, DatabaseUnavailable, DatabaseTimeout.
        """
        _, tokens = service_of(req)
        ctx: RequestContext = req.context.gateway
        client: CompiledClient | None = None
        try:
            if ctx.query:
                raise TokenRequestRefused("invalid_request", "Parameters belong into the body")
            form = parse_form(_body(req), req.content_type or "")
            if self._wants_client(form):
                client = self._clients.authenticate(tokens, form, ctx.client_address)
                ctx.rule = f"client:{client.id}"
            self._respond(ctx.snapshot, form, client, resp)
        except GatewayError as error:
            self._tell(self.name, str(error.members.get("error", error.code)), client.id if client else "")
            raise
        self._tell(self.name, "ok", client.id if client else "")

    def _wants_client(self, form: dict[str, str]) -> bool:
        return True

    def _respond(
        self, snapshot: Snapshot, form: dict[str, str], client: CompiledClient | None, resp: falcon.Response
    ) -> None:
        raise NotImplementedError


class TokenResource(_Posted):
    """Tokens for clients, by what they grant."""

    name = "token"

    def _respond(
        self, snapshot: Snapshot, form: dict[str, str], client: CompiledClient | None, resp: falcon.Response
    ) -> None:
        assert client is not None  # noqa: S101 - it is wanted always
        grant = form.get("grant_type")
        if grant is None:
            raise TokenRequestRefused("invalid_request", "grant_type is missing")
        if grant != "client_credentials":
            raise TokenRequestRefused("unsupported_grant_type", "The only grant_type is client_credentials")
        if client.role is None:
            raise TokenRequestRefused("unauthorized_client", "The client has no role")
        if "scope" in form:
            # SEC: a narrower scope that nobody enforces would be a promise not kept.
            raise TokenRequestRefused("invalid_scope", "Scopes are not granted; a token has the role's permissions")
        token = issue_access_token(snapshot, client.role, client.id, client.id, client.claims, self._now())
        _answer(
            resp,
            orjson.dumps({"access_token": token.text, "token_type": "Bearer", "expires_in": token.lifetime_s}),
        )


class IntrospectResource(_Posted):
    """Is this token good, and what does it say?"""

    name = "introspect"

    def __init__(self, store: Store, *parts: Any, **options: Any) -> None:
        super().__init__(*parts, **options)
        self._store = store

    def _respond(
        self, snapshot: Snapshot, form: dict[str, str], client: CompiledClient | None, resp: falcon.Response
    ) -> None:
        assert client is not None  # noqa: S101 - it is wanted always
        if not client.introspect:
            raise TokenRequestRefused("unauthorized_client", "The client may not introspect")
        verified = _verified(snapshot, _token(form), self._now())
        # SEC: of a token that the client may not ask about it learns as much as of none (RFC 7662, 2.2).
        active = (
            verified is not None
            and verified.audience in client.introspect
            and not (verified.jti is not None and self._store.is_revoked(verified.jti))
        )
        document: dict[str, object] = {"active": active}
        if active and verified is not None:
            document = {**verified.claims, "active": True, "token_type": "Bearer", "role": verified.role}
        _answer(resp, orjson.dumps(document))


class RevokeResource(_Posted):
    """A token ends before its time."""

    name = "revoke"

    def __init__(self, store: Store, revoked: Callable[[str, float], None], *parts: Any, **options: Any) -> None:
        """Shapes: `revoked(jti, until_s)` has this worker know it at once."""
        super().__init__(*parts, **options)
        self._store = store
        self._revoked = revoked

    def _wants_client(self, form: dict[str, str]) -> bool:
        """A token that no client got may be revoked by whoever has it; who says to be a client must prove it."""
        return "client_assertion" in form or "client_assertion_type" in form or "client_id" in form

    def _respond(
        self, snapshot: Snapshot, form: dict[str, str], client: CompiledClient | None, resp: falcon.Response
    ) -> None:
        verified = _verified(snapshot, _token(form), self._now())
        _answer(resp, b"")
        if verified is None:
            return  # RFC 7009, 2.2: it is not good, which is what was asked for
        owner = verified.claims.get("client_id")
        if owner is not None and client is None:
            raise ClientUnauthenticated()
        if owner is not None and client is not None and owner != client.id:
            raise TokenRequestRefused("invalid_grant", "The token was issued to another client")
        if not verified.jti:
            raise TokenRequestRefused("unsupported_token_type", "The token has no jti to revoke it by")
        until_s = verified.expires_at_s + LEEWAY_S
        self._store.revoke(verified.jti, until_s, client.id if client is not None else "")
        self._revoked(verified.jti, until_s)


def _metadata(url: str) -> dict[str, object]:
    methods: dict[str, object] = {}
    for endpoint in ("token", "introspection", "revocation"):
        methods[f"{endpoint}_endpoint_auth_methods_supported"] = ["private_key_jwt"]
        methods[f"{endpoint}_endpoint_auth_signing_alg_values_supported"] = list(ALGORITHMS)
    methods["revocation_endpoint_auth_methods_supported"] = ["private_key_jwt", "none"]
    return {
        "issuer": url,
        "token_endpoint": url + TOKEN_PATH,
        "introspection_endpoint": url + INTROSPECT_PATH,
        "revocation_endpoint": url + REVOKE_PATH,
        "jwks_uri": url + JWKS_PATH,
        "response_types_supported": [],
        "grant_types_supported": ["client_credentials"],
        **methods,
    }


def _answer(resp: falcon.Response, data: bytes, *, cache: str = "no-store") -> None:
    resp.content_type = falcon.MEDIA_JSON
    resp.set_header("Cache-Control", cache)
    resp.data = data


def _token(form: dict[str, str]) -> str:
    token = form.get("token")
    if token is None:
        raise TokenRequestRefused("invalid_request", "token is missing")
    return token


def _verified(snapshot: Snapshot, token: str, now_s: float) -> Verified | None:
    try:
        return snapshot.verifier.verify(token, now_s)
    except TokenError:
        return None


def _body(req: falcon.Request) -> bytes:
    """Raises: BodyTooLarge, and what reading raises."""
    body = RequestBody(req.env["wsgi.input"], content_length(req.env), MAX_BODY_BYTES)
    piece, end = body.first()
    pieces = [piece]
    while not end:
        piece, end = body.next()
        pieces.append(piece)
    return b"".join(pieces)

"""The token service over HTTP.

```
POST /auth/v1/token        grant_type=…, see gateway.auth.grants              RFC 6749, 7523, 7636, 8693, 9449
POST /auth/v1/introspect   token, client_assertion…                           RFC 7662
POST /auth/v1/revoke       token, client_assertion…, client_id or none        RFC 7009
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
from gateway.auth import dpop, pkce
from gateway.auth.accounts import GrantRefused, Note
from gateway.auth.clients import ALGORITHMS, Caller, Clients, Spent
from gateway.auth.dpop import Proof, read_proof
from gateway.auth.form import MAX_BODY_BYTES, parse_form
from gateway.auth.grants import EXCHANGE, Asked, Grants, is_revoked
from gateway.auth.sessions import Owned, digest_of, is_refresh_token
from gateway.config.snapshot import REVOKE_PATH, TOKEN_PATH, CompiledClient, CompiledTokens, Snapshot
from gateway.context import RequestContext
from gateway.errors import (
    AuditUnavailable,
    ClientUnauthenticated,
    GatewayError,
    NotFound,
    Origin,
    RateLimited,
    TokenRequestRefused,
)
from gateway.relay.request import RequestBody, content_length

JWKS_PATH: Final = "/auth/v1/jwks"
INTROSPECT_PATH: Final = "/auth/v1/introspect"
AUTHORIZE_PATH: Final = "/auth/v1/authorize"
METADATA_PATH: Final = "/.well-known/oauth-authorization-server"
LEEWAY_S: Final = 120
"""At least the leeway of any configuration: until then a token that has run out might still be taken."""
_PUBLIC_FOR: Final = "public, max-age=300"


class Store(Protocol):
    """See store.tokens.TokenStore."""

    def revoke(self, jti: str, until_s: float, by: str) -> None: ...
    def is_revoked(self, jti: str, session: str) -> bool: ...


class Sessions(Protocol):
    """See store.sessions.SessionStore."""

    def owner(self, digest: bytes) -> Owned | None: ...
    def end(self, session: str, why: str) -> None: ...


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
        answer_json(resp, orjson.dumps(_metadata(tokens)), cache=_PUBLIC_FOR)


class JwksResource:
    """The keys that access tokens are verified with."""

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Raises: NotFound."""
        _, tokens = service_of(req)
        answer_json(resp, tokens.jwks, cache=_PUBLIC_FOR)


class Posted:
    """What the endpoints that take a form share."""

    name = ""
    kind = ""

    def __init__(self, clients: Clients, tell: Tell, note: Note, now: Callable[[], float] = time.time) -> None:
        self._clients = clients
        self._tell = tell
        self._note = note
        self._now = now

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Answer the form. Yields to the hub: yes.

        Raises: TokenRequestRefused, NotFound, RateLimited, BodyTooLarge, Overloaded, DatabaseUnavailable,
        DatabaseTimeout, AuditUnavailable.
        """
        _, tokens = service_of(req)
        ctx: RequestContext = req.context.gateway
        caller: Caller | None = None
        form: dict[str, str] = {}
        try:
            if ctx.query:
                raise TokenRequestRefused("invalid_request", "Parameters belong into the body")
            form = parse_form(read_body(req), req.content_type or "")
            if self._wants_client(form):
                caller = self._clients.identify(tokens, form, ctx.client_address)
                ctx.rule = f"client:{caller.id}"
            self._respond(req, form, caller, resp)
        except GatewayError as error:
            self._tell(self.name, str(error.members.get("error", error.code)), caller.id if caller else "")
            self._note_refusal(ctx, form, caller, error)
            raise
        self._tell(self.name, "ok", caller.id if caller else "")

    def _note_refusal(
        self, ctx: RequestContext, form: dict[str, str], caller: Caller | None, error: GatewayError
    ) -> None:
        """An event of what was not given, unless there is one. Raises: AuditUnavailable."""
        # SEC: what a limit refused may come in floods; the limit is what the trail is guarded by.
        if isinstance(error, RateLimited | AuditUnavailable | GrantRefused):
            return
        self._note(
            self._kind(form), "refused" if error.origin is Origin.CLIENT else "failed", ctx=ctx,
            rule=str(error.members.get("error", error.code)), client=caller.id if caller is not None else "",
        )  # fmt: skip

    def _kind(self, form: dict[str, str]) -> str:
        """Of the event of a refusal."""
        return self.kind

    def _wants_client(self, form: dict[str, str]) -> bool:
        return True

    def _respond(self, req: falcon.Request, form: dict[str, str], caller: Caller | None, resp: falcon.Response) -> None:
        raise NotImplementedError


class TokenResource(Posted):
    """Tokens for clients, and for the people who log in by apps."""

    name = "token"
    kind = "token.issued"

    def __init__(self, store: Spent, grants: Grants, *parts: Any, **options: Any) -> None:
        super().__init__(*parts, **options)
        self._store = store
        self._grants = grants

    def _kind(self, form: dict[str, str]) -> str:
        return "token.refreshed" if form.get("grant_type") == "refresh_token" else self.kind

    def _respond(self, req: falcon.Request, form: dict[str, str], caller: Caller | None, resp: falcon.Response) -> None:
        assert caller is not None  # noqa: S101 - it is wanted always
        if caller.app is None:
            answer = self._give(req, form, caller)
        else:
            # SEC: whatever an app gets wrong counts: passwords, codes and refresh tokens can be guessed at.
            with self._clients.attempts.one(req.context.gateway.client_address):
                answer = self._give(req, form, caller)
        answer_json(resp, orjson.dumps(answer))

    def _give(self, req: falcon.Request, form: dict[str, str], caller: Caller) -> dict[str, object]:
        return self._grants.answer(Asked(req.context.gateway, caller, form, self._proof(req, caller)))

    def _proof(self, req: falcon.Request, caller: Caller) -> Proof | None:
        """The DPoP proof of the request, used now; None if it has none."""
        field = req.env.get("HTTP_DPOP")
        if field is None:
            if caller.app is not None and caller.app.dpop_required:
                raise TokenRequestRefused("invalid_dpop_proof", "The client must send a DPoP proof")
            return None
        _, tokens = service_of(req)
        proof = read_proof(field, "POST", tokens.url + TOKEN_PATH, self._now())
        if not self._store.spend(proof.digest, proof.until_s):
            raise TokenRequestRefused("invalid_dpop_proof", "The DPoP proof was used before")
        return proof


class IntrospectResource(Posted):
    """Is this token good, and what does it say?"""

    name = "introspect"
    kind = "token.introspected"

    def __init__(self, store: Store, sessions: Sessions, *parts: Any, **options: Any) -> None:
        super().__init__(*parts, **options)
        self._store = store
        self._sessions = sessions

    def _respond(self, req: falcon.Request, form: dict[str, str], caller: Caller | None, resp: falcon.Response) -> None:
        client = caller.client if caller is not None else None
        if client is None or not client.introspect:
            raise TokenRequestRefused("unauthorized_client", "The client may not introspect")
        text = _token(form)
        ctx: RequestContext = req.context.gateway
        refresh = is_refresh_token(text)
        document = self._refresh(ctx.snapshot, text, client) if refresh else self._access(ctx.snapshot, text, client)
        found = document or {"active": False}
        about = {name: str(found.get(claim, "")) for name, claim in (("jti", "jti"), ("session", "sid"))}
        self._note(
            "token.introspected", "allowed", ctx=ctx, client=client.id, active="yes" if document else "no", **about
        )
        answer_json(resp, orjson.dumps(found))

    def _access(self, snapshot: Snapshot, text: str, client: CompiledClient) -> dict[str, object] | None:
        verified = _verified(snapshot, text, self._now())
        # SEC: of a token that the client may not ask about it learns as much as of none (RFC 7662, 2.2).
        if verified is None or verified.audience not in client.introspect:
            return None
        if self._store.is_revoked(verified.jti or "", str(verified.claims.get("sid", ""))):
            return None
        return {**verified.claims, "active": True, "token_type": "Bearer", "role": verified.role}

    def _refresh(self, snapshot: Snapshot, text: str, client: CompiledClient) -> dict[str, object] | None:
        owned = self._sessions.owner(digest_of(text))
        if owned is None:
            return None
        session, account, until_s = owned.session, owned.account, owned.until_s
        role = snapshot.roles.get(session.role)
        if role is None or role.audience not in client.introspect:
            return None
        idle_s = role.lifetimes.idle_s
        ends_s = min(until_s, session.ends_s, session.used_s + idle_s if idle_s else until_s)
        if not owned.good or ends_s <= self._now() or is_revoked(snapshot, account, session):
            return None
        return {
            "active": True, "client_id": session.client, "sub": account.subject, "role": session.role,
            "sid": session.id, "exp": int(ends_s), "iat": int(session.used_s), "aud": role.audience,
            "iss": snapshot.audiences[role.audience].issuer,
        }  # fmt: skip


class RevokeResource(Posted):
    """A token ends before its time; with a refresh token, its session and all that it gave."""

    name = "revoke"
    kind = "token.revoked"

    def __init__(
        self, store: Store, sessions: Sessions, revoked: Callable[[str, float], None], *parts: Any, **options: Any
    ) -> None:
        """Shapes: `revoked(jti, until_s)` has this worker know it at once."""
        super().__init__(*parts, **options)
        self._store = store
        self._sessions = sessions
        self._revoked = revoked

    def _wants_client(self, form: dict[str, str]) -> bool:
        """A token that no client got may be revoked by whoever has it; who says to be a client must prove it."""
        return "client_assertion" in form or "client_assertion_type" in form or "client_id" in form

    def _respond(self, req: falcon.Request, form: dict[str, str], caller: Caller | None, resp: falcon.Response) -> None:
        text = _token(form)
        if is_refresh_token(text):
            self._end_session(req.context.gateway, text, caller)
        else:
            self._revoke(req.context.gateway, text, caller)
        answer_json(resp, b"")

    def _revoke(self, ctx: RequestContext, text: str, caller: Caller | None) -> None:
        verified = _verified(ctx.snapshot, text, self._now())
        if verified is None:
            return  # RFC 7009, 2.2: it is not good, which is what was asked for
        _check_owner(verified.claims.get("client_id"), caller)
        if not verified.jti:
            raise TokenRequestRefused("unsupported_token_type", "The token has no jti to revoke it by")
        until_s = verified.expires_at_s + LEEWAY_S
        by = caller.id if caller is not None else ""
        about = {"client": by, "jti": verified.jti, "session": str(verified.claims.get("sid", ""))}
        # SEC: what is about to end is on the disk before it does.
        self._note(self.kind, "pending", ctx=ctx, durable=True, **about)
        self._store.revoke(verified.jti, until_s, by)
        self._revoked(verified.jti, until_s)
        self._note(self.kind, "allowed", ctx=ctx, durable=True, **about)

    def _end_session(self, ctx: RequestContext, text: str, caller: Caller | None) -> None:
        try:
            # SEC: who asks needs no proof, and each question is one to the database: guesses count, as for tokens.
            with self._clients.attempts.one(ctx.client_address):
                owned = self._owned(text, caller)
        except NotFound:
            return  # as in _revoke
        session = owned.session
        about = {
            "client": session.client, "subject": owned.account.subject, "role": session.role, "session": session.id,
            "reason": "revoked",
        }  # fmt: skip
        self._note("logout", "pending", ctx=ctx, durable=True, **about)
        self._sessions.end(session.id, "revoked")
        self._note("logout", "allowed", ctx=ctx, durable=True, **about)

    def _owned(self, text: str, caller: Caller | None) -> Owned:
        """Raises: NotFound, ClientUnauthenticated, TokenRequestRefused."""
        owned = self._sessions.owner(digest_of(text))
        if owned is None:
            raise NotFound()
        _check_owner(owned.session.client, caller)
        return owned


def _check_owner(owner: object, caller: Caller | None) -> None:
    """Raises: ClientUnauthenticated, TokenRequestRefused if it is another client's."""
    if owner is not None and caller is None:
        raise ClientUnauthenticated()
    if owner is not None and caller is not None and owner != caller.id:
        raise TokenRequestRefused("invalid_grant", "The token was issued to another client")


def _metadata(tokens: CompiledTokens) -> dict[str, object]:
    """Source: RFC 8414, 2; RFC 9207, 3; RFC 9449, 5.1."""
    url, apps = tokens.url, tokens.apps.values()
    public = any(app.public for app in apps)
    methods: dict[str, object] = {}
    for endpoint in ("token", "introspection", "revocation"):
        methods[f"{endpoint}_endpoint_auth_methods_supported"] = ["private_key_jwt"]
        methods[f"{endpoint}_endpoint_auth_signing_alg_values_supported"] = list(ALGORITHMS)
    methods["revocation_endpoint_auth_methods_supported"] = ["private_key_jwt", "none"]
    if public:
        methods["token_endpoint_auth_methods_supported"] = ["private_key_jwt", "none"]
    by_code = any(app.redirect_uris for app in apps)
    given = {
        "client_credentials": True,
        "authorization_code": by_code,
        "password": any(app.first_party for app in apps),
        "refresh_token": bool(apps),
        EXCHANGE: any(app.proxies for app in apps),
    }
    login: dict[str, object] = {
        "authorization_endpoint": url + AUTHORIZE_PATH,
        "code_challenge_methods_supported": [pkce.METHOD],
        "response_modes_supported": ["query"],
        "authorization_response_iss_parameter_supported": True,
    }
    return {
        "issuer": url,
        "token_endpoint": url + TOKEN_PATH,
        "introspection_endpoint": url + INTROSPECT_PATH,
        "revocation_endpoint": url + REVOKE_PATH,
        "jwks_uri": url + JWKS_PATH,
        "response_types_supported": ["code"] if by_code else [],
        "grant_types_supported": [grant for grant, is_given in given.items() if is_given],
        "dpop_signing_alg_values_supported": list(dpop.ALGORITHMS),
        **(login if by_code else {}),
        **methods,
    }


def answer_json(resp: falcon.Response, data: bytes, *, cache: str = "no-store") -> None:
    resp.content_type = falcon.MEDIA_JSON
    resp.set_header("Cache-Control", cache)
    if cache == _PUBLIC_FOR:
        resp.set_header("Access-Control-Allow-Origin", "*")
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


def read_body(req: falcon.Request) -> bytes:
    """Raises: BodyTooLarge, and what reading raises."""
    body = RequestBody(req.env["wsgi.input"], content_length(req.env), MAX_BODY_BYTES)
    piece, end = body.first()
    pieces = [piece]
    while not end:
        piece, end = body.next()
        pieces.append(piece)
    return b"".join(pieces)

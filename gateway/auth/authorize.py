"""The login page: `/auth/v1/authorize` (RFC 6749, 4.1, with PKCE, RFC 7636).

```
GET   response_type=code, client_id, redirect_uri, code_challenge, code_challenge_method=S256, state, scope,
      dpop_jkt
      -> the form; or the caller is sent back with an error; or, if it is not known whereto, told so
POST  request (sealed, from the form), username, password, totp
      -> 303 to redirect_uri with code, state, iss; or the form again
```
"""

from __future__ import annotations

import base64
import binascii
import re
import secrets
import time
from collections.abc import Callable
from typing import Any, Final, Protocol
from urllib.parse import urlencode, urlsplit

import falcon
import msgspec

from gateway.auth import page, pkce
from gateway.auth.accounts import Account, Logins
from gateway.auth.attempts import Attempts
from gateway.auth.dpop import is_thumbprint
from gateway.auth.endpoints import AUTHORIZE_PATH, Tell, read_body, service_of
from gateway.auth.form import MEDIA_TYPE, parse_form
from gateway.auth.scope import granted_scope, is_scope
from gateway.auth.sessions import digest_of, new_code
from gateway.auth.vault import Unsealable, Vault
from gateway.config.check_clients import LOOPBACK
from gateway.config.snapshot import CompiledApp, CompiledTokens
from gateway.context import RequestContext
from gateway.errors import (
    AuditUnavailable,
    ClientError,
    DatabaseTimeout,
    DatabaseUnavailable,
    GatewayError,
    Overloaded,
    RateLimited,
    TokenRequestRefused,
)
from gateway.http import problems

FORM_LIFETIME_S: Final = 900
MAX_STATE_CHARS: Final = 1_024
COOKIE: Final = "caregate-login"
_COOKIE_VALUE = re.compile(r"[A-Za-z0-9_-]{43}\Z")
_BUSY = (Overloaded, DatabaseUnavailable, DatabaseTimeout, AuditUnavailable)


class Store(Protocol):
    """See store.sessions.SessionStore."""

    def add_code(
        self, digest: bytes, client: str, redirect_uri: str, challenge: str, proof_key: str, account: Account,
        scope: str, methods: tuple[str, ...],
    ) -> None: ...  # fmt: skip


class Request(msgspec.Struct, frozen=True):
    """What an app asked for, as the form brings it back. Units: `until_s` seconds since 1970."""

    client: str
    redirect_uri: str
    challenge: str
    state: str
    proof_key: str
    scope: str
    until_s: float


class _SendBack(Exception):
    """An error that the app is told of, at its redirect_uri."""

    def __init__(self, uri: str, state: str, error: str, detail: str) -> None:
        super().__init__(error)
        self.uri, self.state, self.error, self.detail = uri, state, error, detail


class AuthorizeResource:
    """The page on which people log in."""

    name = "authorize"

    def __init__(
        self, store: Store, logins: Logins, vault: Callable[[], Vault], attempts: Attempts, tell: Tell,
        now: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        self._store = store
        self._logins = logins
        self._vault = vault
        self._attempts = attempts
        self._tell = tell
        self._now = now

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """The form. Raises: NotFound without a token service."""
        _, tokens = service_of(req)
        ctx: RequestContext = req.context.gateway
        try:
            asked, app = self._asked(ctx, tokens)
        except TokenRequestRefused as error:
            self._fail(ctx, resp, error, page.message_page(page.BAD_LINK))
            return
        except _SendBack as back:
            self._tell(self.name, back.error, "")
            _send_back(resp, tokens, back)
            return
        name, secure = _cookie_name(req, tokens)
        value = _cookie(req, name)
        if value is None:
            value = secrets.token_urlsafe(32)
            flags = "; Secure" if secure else ""
            resp.append_header("Set-Cookie", f"{name}={value}; Path=/; HttpOnly; SameSite=Lax{flags}")
        self._show(resp, app, asked, value)

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        """A filled-in form. Raises: NotFound without a token service. Yields to the hub: yes."""
        _, tokens = service_of(req)
        ctx: RequestContext = req.context.gateway
        value = _cookie(req, _cookie_name(req, tokens)[0])
        try:
            form = parse_form(read_body(req), req.content_type or "")
            asked, app = self._brought_back(req, tokens, form, value)
        except ClientError as error:
            self._fail(ctx, resp, error, page.message_page(page.STALE))
            return
        assert value is not None  # noqa: S101 - the form would not have opened
        try:
            with self._attempts.one(ctx.client_address):
                code = self._log_in(ctx, app, asked, form)
        except GatewayError as error:
            if not isinstance(error, (RateLimited, TokenRequestRefused, *_BUSY)):
                raise
            self._show(resp, app, asked, value, error=_told(error))
            self._fail(ctx, resp, error, None)
            return
        except _SendBack as back:
            self._tell(self.name, back.error, app.id)
            _send_back(resp, tokens, back)
            return
        self._tell(self.name, "ok", app.id)
        _send_to(resp, asked.redirect_uri, {"code": code, "state": asked.state, "iss": tokens.url})

    def _log_in(self, ctx: RequestContext, app: CompiledApp, asked: Request, form: dict[str, str]) -> str:
        login = self._logins.check(
            ctx, app, form.get("username", ""), form.get("password", ""), form.get("totp", "").replace(" ", ""),
            method="authorization_code",
        )  # fmt: skip
        try:
            scope = granted_scope(ctx.snapshot.document.roles[login.account.role].scopes, asked.scope or None)
        except TokenRequestRefused as error:
            raise _SendBack(asked.redirect_uri, asked.state, "invalid_scope", error.detail) from None
        code = new_code()
        self._store.add_code(
            digest_of(code), app.id, asked.redirect_uri, asked.challenge, asked.proof_key, login.account, scope,
            login.methods,
        )  # fmt: skip
        return code

    def _asked(self, ctx: RequestContext, tokens: CompiledTokens) -> tuple[Request, CompiledApp]:
        """Raises: TokenRequestRefused where nobody may be sent back, _SendBack."""
        form = parse_form(ctx.query.encode("utf-8", "replace"), MEDIA_TYPE)
        app = tokens.apps.get(form.get("client_id", ""))
        uri = form.get("redirect_uri", "")
        # SEC: byte by byte; to any other address the caller would be sent for whoever made the link.
        if app is None or uri not in app.redirect_uris:
            raise TokenRequestRefused("invalid_request", "No such app, or not its redirect_uri")
        state = form.get("state", "")
        if len(state) > MAX_STATE_CHARS:
            raise _SendBack(uri, "", "invalid_request", f"state is longer than {MAX_STATE_CHARS} characters")
        error, detail = _fault(form)
        roles = ctx.snapshot.document.roles
        if not error and "scope" in form and all(roles[role].scopes is None for role in app.roles):
            error, detail = "invalid_scope", "Scopes are not granted; a token has the role's permissions"
        if error:
            raise _SendBack(uri, state, error, detail)
        asked = Request(
            app.id,
            uri,
            form["code_challenge"],
            state,
            form.get("dpop_jkt", ""),
            form.get("scope", ""),
            self._now() + FORM_LIFETIME_S,
        )
        return asked, app

    def _show(self, resp: falcon.Response, app: CompiledApp, asked: Request, cookie: str, error: str = "") -> None:
        # SEC: against forms of others: it opens only beside the cookie that came with it.
        sealed = self._vault().forms.seal(msgspec.json.encode(asked), cookie.encode())
        text = base64.urlsafe_b64encode(sealed).rstrip(b"=").decode()
        _answer(resp, page.login_page(app.title, AUTHORIZE_PATH, text, error), asked.redirect_uri)

    def _brought_back(
        self, req: falcon.Request, tokens: CompiledTokens, form: dict[str, str], cookie: str | None
    ) -> tuple[Request, CompiledApp]:
        """What the form was for. Raises: TokenRequestRefused."""
        stale = TokenRequestRefused("invalid_request", "The form is out of date, or not from here")
        if cookie is None or not _is_own_origin(req, tokens):
            raise stale
        text = form.get("request", "")
        try:
            sealed = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
            asked = msgspec.json.decode(self._vault().forms.open(sealed, cookie.encode()), type=Request)
        except (ValueError, binascii.Error, Unsealable, msgspec.DecodeError):
            raise stale from None
        app = tokens.apps.get(asked.client)
        if asked.until_s < self._now() or app is None or asked.redirect_uri not in app.redirect_uris:
            raise stale
        return asked, app

    def _fail(self, ctx: RequestContext, resp: falcon.Response, error: GatewayError, shown: bytes | None) -> None:
        """Answer with the status of an error, as a page. Shapes: `shown` None: there is a page already."""
        ctx.error = error
        self._tell(self.name, str(error.members.get("error", error.code)), "")
        if shown is not None:
            _answer(resp, shown)
        refused = isinstance(error, TokenRequestRefused) and error.members.get("error") == "invalid_grant"
        status = 403 if refused else problems.row_of(error).status
        resp.status = f"{status} {problems.reason(status)}"
        for name, text in problems.fields(error):
            resp.set_header(name, text)


def _fault(form: dict[str, str]) -> tuple[str, str]:
    """What is wrong with a request whose app and redirect_uri are good; two empty texts if nothing is."""
    if form.get("response_type") != "code":
        return "unsupported_response_type", "response_type must be code"
    if form.get("response_mode", "query") != "query":
        return "invalid_request", "response_mode must be query"
    if not pkce.is_challenge(form.get("code_challenge", "")) or form.get("code_challenge_method") != pkce.METHOD:
        return "invalid_request", "code_challenge is missing, or code_challenge_method is not S256"
    if "dpop_jkt" in form and not is_thumbprint(form["dpop_jkt"]):
        return "invalid_request", "dpop_jkt is not a thumbprint"
    if "request" in form or "request_uri" in form:
        return "request_not_supported", "Request objects are not taken"
    if "scope" in form and not is_scope(form["scope"]):
        return "invalid_scope", "scope is not as RFC 6749 has it"
    return "", ""


def _told(error: GatewayError) -> str:
    if isinstance(error, RateLimited):
        return page.LIMITED
    return page.BUSY if isinstance(error, _BUSY) else page.WRONG


def _answer(resp: falcon.Response, content: bytes, redirect_uri: str = "") -> None:
    resp.content_type = "text/html; charset=utf-8"
    resp.data = content
    for name, value in page.fields(redirect_uri):
        resp.set_header(name, value)


def _send_back(resp: falcon.Response, tokens: CompiledTokens, back: _SendBack) -> None:
    told = {"error": back.error, "error_description": back.detail, "state": back.state, "iss": tokens.url}
    _send_to(resp, back.uri, told)


def _send_to(resp: falcon.Response, uri: str, parameters: dict[str, str]) -> None:
    """SEC: `uri` is one of the configuration's, whatever the caller sent."""
    query = urlencode({name: value for name, value in parameters.items() if value})
    resp.status = falcon.HTTP_303
    resp.set_header("Location", f"{uri}{'&' if '?' in uri else '?'}{query}")
    for name, value in page.fields():
        resp.set_header(name, value)


def _cookie_name(req: falcon.Request, tokens: CompiledTokens) -> tuple[str, bool]:
    """The cookie's name, and whether it is for TLS alone. Without TLS only a browser on this machine gets one."""
    host = _split_host(req)
    plain = tokens.url.startswith("http:") or (req.env.get("wsgi.url_scheme") == "http" and host in (*LOOPBACK, "::1"))
    return (COOKIE, False) if plain else (f"__Host-{COOKIE}", True)


def _split_host(req: falcon.Request) -> str | None:
    try:
        return urlsplit(f"//{req.env.get('HTTP_HOST', '')}").hostname
    except ValueError:
        return None


def _cookie(req: falcon.Request, name: str) -> str | None:
    """The value of our cookie; None if there is none, or more than one."""
    header: Any = req.env.get("HTTP_COOKIE", "")
    found = [v for part in header.split(";") for n, _, v in [part.strip().partition("=")] if n == name]
    return found[0] if len(found) == 1 and _COOKIE_VALUE.match(found[0]) else None


def _is_own_origin(req: falcon.Request, tokens: CompiledTokens) -> bool:
    """Was the form sent from a page of ours, as far as the browser says?"""
    if req.env.get("HTTP_SEC_FETCH_SITE", "same-origin") not in ("same-origin", "none"):
        return False
    origin = req.env.get("HTTP_ORIGIN")
    if origin is None or origin == tokens.url:
        return True
    # NOTE: behind a proxy that keeps the Host field, the page's own address need not be the service's URL.
    host: str = req.env.get("HTTP_HOST", "")
    return bool(host) and origin.partition("://")[2] == host

"""What the token endpoint gives for what: one method a grant type."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Final, Protocol

from fastpath.token import TokenError
from gateway.auth import pkce, sessions
from gateway.auth.accounts import Account, GrantRefused, Login, Logins, Note
from gateway.auth.clients import Caller
from gateway.auth.dpop import Proof
from gateway.auth.issue import AccessToken, issue_access_token
from gateway.auth.scope import granted_scope
from gateway.auth.sessions import Code, NewSession, Presented, Session, Verdict
from gateway.auth.vault import Unsealable, box_of
from gateway.config.snapshot import CompiledApp, Snapshot
from gateway.context import RequestContext
from gateway.errors import TokenRequestRefused
from gateway.rbac.scopes import claimed

EXCHANGE: Final = "urn:ietf:params:oauth:grant-type:token-exchange"
ACCESS_TOKEN_TYPE: Final = "urn:ietf:params:oauth:token-type:access_token"  # noqa: S105 - a name (RFC 8693, 3)
OF_CLIENTS: Final = ("client_credentials",)
OF_APPS: Final = ("authorization_code", "password", "refresh_token", EXCHANGE)
_MAX_PATIENT_CHARS = 256

Answer = dict[str, object]


@dataclass(frozen=True, slots=True)
class Asked:
    """One request to the token endpoint. Shapes: `proof` is the DPoP proof that came with it, spent."""

    ctx: RequestContext
    caller: Caller
    form: Mapping[str, str]
    proof: Proof | None = None

    @property
    def snapshot(self) -> Snapshot:
        snapshot: Snapshot = self.ctx.snapshot
        return snapshot

    @property
    def app(self) -> CompiledApp:
        assert self.caller.app is not None  # noqa: S101 - of grants for apps
        return self.caller.app

    @property
    def proof_key(self) -> str:
        return self.proof.thumbprint if self.proof is not None else ""

    def scope_of(self, role: str, within: str | None = None) -> str:
        """The scopes that the form asks for, as far as the role may have them. Raises: TokenRequestRefused."""
        return granted_scope(self.snapshot.document.roles[role].scopes, self.form.get("scope"), within=within)

    def field(self, name: str) -> str:
        """Raises: TokenRequestRefused if it is missing."""
        value = self.form.get(name)
        if value is None:
            raise TokenRequestRefused("invalid_request", f"{name} is missing")
        return value


class Store(Protocol):
    """See store.sessions.SessionStore."""

    def begin(self, session: NewSession, refresh: tuple[bytes, int] | None) -> None: ...
    def family(self, digest: bytes) -> AbstractContextManager[Any]: ...
    def redemption(self, digest: bytes) -> AbstractContextManager[Any]: ...
    def ward(self, session: str, client: str, patient: str) -> tuple[str, str, str | None, float] | None: ...


class Revoked(Protocol):
    """See store.tokens.TokenStore."""

    def is_revoked(self, jti: str, session: str) -> bool: ...


class Grants:
    """Every method yields to the hub.

    Raises everywhere: TokenRequestRefused, KeysUnavailable, DatabaseUnavailable, DatabaseTimeout, Overloaded,
    AuditUnavailable; with passwords RateLimited too.
    """

    def __init__(
        self, store: Store, revoked: Revoked, logins: Logins, note: Note, now: Callable[[], float] = time.time
    ) -> None:
        self._store = store
        self._revoked = revoked
        self._logins = logins
        self._note = note
        self._now = now
        self._by_type: dict[str, Callable[[Asked], Answer]] = {
            "client_credentials": self._client_credentials,
            "authorization_code": self._authorization_code,
            "password": self._password,
            "refresh_token": self._refresh_token,
            EXCHANGE: self._exchange,
        }

    def answer(self, asked: Asked) -> Answer:
        """What is given for the form."""
        grant = asked.field("grant_type")
        give = self._by_type.get(grant)
        if give is None:
            raise TokenRequestRefused("unsupported_grant_type", "There is no such grant_type here")
        if (asked.caller.app is not None) != (grant in OF_APPS):
            raise TokenRequestRefused("unauthorized_client", "This grant_type is not for this client")
        return give(asked)

    # --- clients

    def _client_credentials(self, asked: Asked) -> Answer:
        client = asked.caller.client
        if client is None or client.role is None:
            raise TokenRequestRefused("unauthorized_client", "The client has no role")
        scope = asked.scope_of(client.role)
        token = issue_access_token(
            asked.snapshot, client.role, client.id, client.id, client.claims, self._now(), about=_scoped(scope)
        )
        self._tell_issued(asked, token, role=client.role, subject=client.id)
        return _bearer(token, scope=scope)

    # --- logins

    def _password(self, asked: Asked) -> Answer:
        if not asked.app.first_party:
            raise TokenRequestRefused("unauthorized_client", "This grant_type is for first-party clients")
        login = self._logins.check(
            asked.ctx, asked.app, asked.field("username"), asked.field("password"), asked.form.get("totp", ""),
            method="password",
        )  # fmt: skip
        session, refresh, text = self._new(asked, login, asked.scope_of(login.account.role))
        token = self._access(asked.snapshot, login, session)
        self._store.begin(session, refresh)
        return self._begun(asked, login, session, token, text)

    def _authorization_code(self, asked: Asked) -> Answer:
        text, uri, verifier = asked.field("code"), asked.field("redirect_uri"), asked.field("code_verifier")
        why = "unknown"
        code: Code | None = None
        if sessions.is_code(text):
            with self._store.redemption(sessions.digest_of(text)) as redemption:
                code = redemption.code
                if code is not None:
                    # SEC: whatever comes of it: a code that was shown once is not to be tried again.
                    redemption.use()
                    why = _code_fault(asked, code, uri, verifier)
                    if why == "reused" and code.session:
                        redemption.end("code-reused")
                    if not why:
                        login = Login(code.account, code.methods)
                        session, refresh, successor = self._new(asked, login, code.scope)
                        token = self._access(asked.snapshot, login, session)
                        redemption.begin(session, refresh)
        if why:
            account = code.account.id if code is not None else ""
            ended = code.session if code is not None and why == "reused" else ""
            self._note(
                "token.issued", "refused", ctx=asked.ctx, rule=f"code:{why}", client=asked.app.id, account=account,
                session=ended, grant="authorization_code",
            )  # fmt: skip
            raise GrantRefused("The code is not good, or not for this client, redirect_uri and code_verifier")
        return self._begun(asked, login, session, token, successor)

    def _new(self, asked: Asked, login: Login, scope: str) -> tuple[NewSession, tuple[bytes, int] | None, str]:
        """A session to begin, what is kept of its first refresh token, and that token; no token: empty."""
        role = asked.snapshot.roles[login.account.role]
        session = NewSession(
            sessions.new_session_id(), login.account.id, asked.app.id, role.name,
            asked.snapshot.audiences[role.audience].issuer, role.audience, scope, login.methods,
            # NOTE: a client with a key of its own proves itself by that each time (RFC 9449, 5).
            asked.proof_key if asked.app.public else "",
            math.floor(self._now() * 1000) / 1000, role.lifetimes.absolute_s,
        )  # fmt: skip
        if not role.lifetimes.refresh_s:
            return session, None, ""
        text = sessions.new_refresh_token()
        return session, (sessions.digest_of(text), min(role.lifetimes.refresh_s, role.lifetimes.absolute_s)), text

    def _access(self, snapshot: Snapshot, login: Login, session: NewSession) -> AccessToken:
        account, now_s = login.account, self._now()
        about = {
            "sid": session.id, "amr": list(login.methods), "auth_time": math.floor(session.started_s),
            **_scoped(session.scope),
        }  # fmt: skip
        return issue_access_token(
            snapshot, account.role, account.subject, session.client, account.claims, now_s, about=about,
            until_s=now_s + session.ends_in_s,
        )  # fmt: skip

    def _begun(self, asked: Asked, login: Login, session: NewSession, token: AccessToken, refresh: str) -> Answer:
        account = login.account
        self._tell_issued(
            asked, token, role=account.role, subject=account.subject, account=account.id, session=session.id
        )
        return _bearer(token, refresh, session.scope)

    def _tell_issued(self, asked: Asked, token: AccessToken, **members: str) -> None:
        self._note(
            "token.issued", "allowed", ctx=asked.ctx, client=asked.caller.id, grant=asked.form["grant_type"],
            jti=token.jti, expires_s=str(token.expires_s), **members,
        )  # fmt: skip

    # --- refresh tokens

    def _refresh_token(self, asked: Asked) -> Answer:
        text = asked.field("refresh_token")
        verdict, presented, token, successor, scope = Verdict.OVER, None, None, "", ""
        if sessions.is_refresh_token(text):
            with self._store.family(sessions.digest_of(text)) as family:
                presented = family.presented
                if presented is not None:
                    verdict, token, successor, scope = self._judged(asked, text, family, presented)
        self._note_refresh(asked, verdict, presented, token.jti if token is not None else "")
        if token is None:
            raise GrantRefused("The refresh token is not good, or not for this client")
        return _bearer(token, successor, scope)

    def _judged(
        self, asked: Asked, text: str, family: Any, presented: Presented
    ) -> tuple[Verdict, AccessToken | None, str, str]:
        """What the locked token is worth, and what is given for it; nothing for a bad one."""
        role = asked.snapshot.roles.get(presented.session.role)
        if role is None or role.name not in asked.app.roles:
            return Verdict.OVER, None, "", ""
        proof = sessions.proof_of(asked.app.id, authenticated=asked.caller.proven, proof_key=asked.proof_key)
        verdict = sessions.judge(presented, asked.app.id, asked.proof_key, proof, role.lifetimes)
        if verdict is Verdict.REUSED:
            # SEC: what is about to end is on the disk before it does.
            self._note_reuse("pending", asked, presented)
            family.end("refresh-token-reused")
        if verdict not in (Verdict.ROTATE, Verdict.REPEAT):
            return verdict, None, "", ""
        if is_revoked(asked.snapshot, presented.account, presented.session):
            family.end("revoked")
            return Verdict.OVER, None, "", ""
        ends_s = min(presented.session.ends_s, presented.session.started_s + role.lifetimes.absolute_s)
        scope = asked.scope_of(role.name, presented.session.scope) if role.scopes is not None else ""
        token = self._again(asked.snapshot, presented, scope, ends_s)
        if verdict is Verdict.REPEAT:
            try:
                successor = box_of(text).open(presented.token.successor, b"").decode()
            except Unsealable:
                return Verdict.OVER, None, "", ""
            family.repeat()
            return verdict, token, successor, scope
        successor = sessions.new_refresh_token()
        # SEC: who proves nothing may not ask again, so nothing is kept for him.
        sealed = box_of(text).seal(successor.encode(), b"") if proof else b""
        until_s = min(presented.now_s + role.lifetimes.refresh_s, ends_s)
        family.rotate(sessions.digest_of(successor), until_s, proof, sealed)
        return verdict, token, successor, scope

    def _again(self, snapshot: Snapshot, presented: Presented, scope: str, ends_s: float) -> AccessToken:
        """SEC: with the account's claims of now, not those of the login."""
        account, session = presented.account, presented.session
        about = {
            "sid": session.id, "amr": list(session.methods), "auth_time": math.floor(session.started_s),
            **_scoped(scope),
        }  # fmt: skip
        return issue_access_token(
            snapshot, account.role, account.subject, session.client, account.claims, self._now(), about=about,
            until_s=ends_s,
        )  # fmt: skip

    def _note_refresh(self, asked: Asked, verdict: Verdict, presented: Presented | None, jti: str) -> None:
        who = _who(presented) if presented is not None else {}
        good = verdict in (Verdict.ROTATE, Verdict.REPEAT)
        self._note(
            "token.refreshed", "allowed" if good else "refused", ctx=asked.ctx, client=asked.app.id, jti=jti,
            rule="" if verdict is Verdict.ROTATE else f"refresh:{verdict}", **who,
        )  # fmt: skip
        if verdict is Verdict.REUSED and presented is not None:
            self._note_reuse("allowed", asked, presented)

    def _note_reuse(self, outcome: str, asked: Asked, presented: Presented) -> None:
        """Raises: AuditUnavailable. Yields to the hub: until the disk has it."""
        self._note(
            "token.revoked", outcome, ctx=asked.ctx, durable=True, client=asked.app.id, reason="refresh-token-reused",
            **_who(presented),
        )  # fmt: skip

    # --- proxies

    def _exchange(self, asked: Asked) -> Answer:
        """A token for a patient that the subject of `subject_token` may act for. Source: RFC 8693."""
        if not asked.app.proxies:
            raise TokenRequestRefused("unauthorized_client", "This grant_type is not for this client")
        for name, only in (("subject_token_type", ACCESS_TOKEN_TYPE), ("requested_token_type", ACCESS_TOKEN_TYPE)):
            if asked.form.get(name, only if name == "requested_token_type" else "") != only:
                raise TokenRequestRefused("invalid_request", f"{name} must be {ACCESS_TOKEN_TYPE}")
        if "actor_token" in asked.form or "actor_token_type" in asked.form:
            raise TokenRequestRefused("invalid_request", "The actor is the subject of subject_token")
        if "audience" in asked.form or "resource" in asked.form:
            # SEC: the token is for the audience of its role; whoever wanted another must not take it for that.
            raise TokenRequestRefused("invalid_target", "audience and resource cannot be chosen")
        patient = asked.field("requested_subject")
        parent = self._parent(asked, asked.field("subject_token"))
        ward = None
        if parent is not None and len(patient) <= _MAX_PATIENT_CHARS:
            ward = self._store.ward(str(parent.claims["sid"]), asked.app.id, patient)
        if parent is None or ward is None or ward[2] is None or ward[1] != parent.key.role:
            account = ward[0] if ward is not None else ""
            self._note(
                "token.issued", "refused", ctx=asked.ctx, rule="exchange", client=asked.app.id, account=account,
                grant=EXCHANGE,
            )  # fmt: skip
            raise GrantRefused("subject_token is not good, or its subject may not act for requested_subject")
        account, role, subject, ends_s = ward[0], ward[1], ward[2], ward[3]
        # SEC: nor wider than the token it was given for.
        scope = asked.scope_of(role, " ".join(claimed(parent.claims)))
        token = issue_access_token(
            asked.snapshot, role, subject, asked.app.id, {"patient": patient}, self._now(),
            about={
                "act": {"sub": parent.subject}, "sid": parent.claims["sid"], "amr": parent.claims.get("amr", []),
                "auth_time": parent.claims.get("auth_time", 0), **_scoped(scope),
            },
            # SEC: never longer than the token it was given for.
            until_s=min(parent.expires_at_s, ends_s),
        )  # fmt: skip
        self._tell_issued(
            asked, token, role=role, subject=subject, patient=patient, account=account,
            session=str(parent.claims["sid"]),
        )  # fmt: skip
        return {**_bearer(token, scope=scope), "issued_token_type": ACCESS_TOKEN_TYPE}

    def _parent(self, asked: Asked, text: str) -> Any:
        """The verified token of a person who is logged in by this app and acts for nobody yet, or None."""
        try:
            parent = asked.snapshot.verifier.verify(text, self._now())
        except TokenError:
            return None
        claims = parent.claims
        own = claims.get("client_id") == asked.app.id and "sid" in claims and "act" not in claims
        if not own or not parent.jti or parent.expires_at_s <= self._now() + 1:
            return None
        return None if self._revoked.is_revoked(parent.jti, str(claims["sid"])) else parent


def _who(presented: Presented) -> dict[str, str]:
    """What the trail is told of a refresh token's session."""
    account, session = presented.account, presented.session
    return {
        "subject": account.subject, "role": account.role, "account": account.id, "session": session.id,
        "family": session.id,
    }  # fmt: skip


def _code_fault(asked: Asked, code: Code, uri: str, verifier: str) -> str:
    """Why a code is not good for this request, for the audit trail alone."""
    if code.used:
        return "reused"
    if code.expired:
        return "expired"
    if code.client != asked.app.id or code.redirect_uri != uri:
        return "foreign"
    if not pkce.proves(verifier, code.challenge):
        return "verifier"
    if code.proof_key and code.proof_key != asked.proof_key:
        return "key"
    role = asked.snapshot.roles.get(code.account.role)
    if role is None or code.account.role not in asked.app.roles or code.account.disabled:
        return "account"
    return ""


def _scoped(scope: str) -> dict[str, object]:
    return {"scope": scope} if scope else {}


def _bearer(token: AccessToken, refresh: str = "", scope: str = "") -> Answer:
    answer: Answer = {"access_token": token.text, "token_type": "Bearer", "expires_in": token.lifetime_s}
    return {**answer, **({"refresh_token": refresh} if refresh else {}), **_scoped(scope)}


def is_revoked(snapshot: Snapshot, account: Account, session: Session) -> bool:
    """Would a token of this session that was issued when it began be revoked, by whatever this worker knows of?"""
    audience = snapshot.roles[session.role].audience
    claims = {**account.claims, "iss": snapshot.audiences[audience].issuer, "sid": session.id}
    return snapshot.verifier.revocations.refuses(
        claims, None, account.subject, audience, session.role, session.started_s
    )

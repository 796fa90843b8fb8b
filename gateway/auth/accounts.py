"""A person's account as the store has it, and the one way to prove to be that person."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from gateway.auth import totp
from gateway.auth.attempts import Attempts
from gateway.auth.passwords import Passwords
from gateway.auth.vault import Unsealable, Vault
from gateway.config.snapshot import CompiledApp, Snapshot
from gateway.context import RequestContext
from gateway.errors import TokenRequestRefused

LOGIN: Final = re.compile(r"[a-z0-9][a-z0-9._@+-]{0,127}\Z")
PASSWORD: Final = "pwd"  # noqa: S105 - names of methods (RFC 8176)
ONE_TIME_CODE: Final = "otp"


@dataclass(frozen=True, slots=True)
class Account:
    """Shapes: `claims` as they stand in its tokens; `totp` the sealed secret of its second factor."""

    id: str
    login: str
    subject: str
    role: str
    claims: Mapping[str, Any]
    password: str = field(repr=False)
    totp: bytes | None = field(repr=False)
    disabled: bool


@dataclass(frozen=True, slots=True)
class Login:
    """Somebody proved to be this account. Shapes: `methods` as in `amr` (RFC 8176)."""

    account: Account
    methods: tuple[str, ...]


class Store(Protocol):
    """See store.accounts.AccountStore."""

    def find(self, login: str) -> Account | None: ...
    def use_step(self, account: str, step: int) -> bool: ...


Note = Callable[..., None]
"""See audit.trail.AuditTrail.note: (kind, outcome, *, rule, **detail)."""


class GrantRefused(TokenRequestRefused):
    """What was presented is not good; whoever raises it has told the audit trail why, and does not tell the sender."""

    def __init__(self, detail: str) -> None:
        super().__init__("invalid_grant", detail)


class LoginRefused(GrantRefused):
    """Not told why: no such account, another password, no code."""

    code = "login-refused"

    def __init__(self) -> None:
        super().__init__("The login, the password or the one-time code is not right")


class Logins:
    """Decides whether somebody is who he says."""

    def __init__(
        self,
        store: Store,
        passwords: Passwords,
        vault: Callable[[], Vault],
        attempts: Attempts,
        note: Note,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Shapes: `attempts` counts failures of one login, whether there is such an account or not."""
        self._store = store
        self._passwords = passwords
        self._vault = vault
        self._attempts = attempts
        self._note = note
        self._now = now

    def check(
        self, ctx: RequestContext, app: CompiledApp, name: str, password: str, code: str, *, method: str
    ) -> Login:
        """The account of that login, if it may log in by the app.

        SEC: whatever is wrong, the same steps are taken and the same is answered: one look, one check of a password,
        one of a code.
        Raises: LoginRefused, RateLimited, Overloaded, DatabaseUnavailable, DatabaseTimeout, AuditUnavailable.
        Yields to the hub: yes.
        """
        login = spelled(name)
        vault = self._vault()
        with self._attempts.one(login or name):
            account = self._store.find(login)
            known = self._passwords.check(account.password if account is not None else None, password)
            step = self._step(vault, account, code)
            why = _fault(ctx.snapshot, app, account, known=known, step=step)
            if not why and account is not None and step and not self._store.use_step(account.id, step):
                why = "code-used"
            if why or account is None:
                # SEC: a name that is no account's may be a password typed into the wrong field.
                who = {"account": account.id} if account is not None else {"alias": vault.alias(name)}
                self._note("login", "refused", ctx=ctx, rule=f"login:{why}", client=app.id, method=method, **who)
                raise LoginRefused
            methods = (PASSWORD, ONE_TIME_CODE) if step else (PASSWORD,)
            self._note(
                "login", "allowed", ctx=ctx, client=app.id, method=method, account=account.id, subject=account.subject,
                role=account.role, acr=" ".join(methods),
            )  # fmt: skip
        return Login(account, methods)

    def _step(self, vault: Vault, account: Account | None, code: str) -> int:
        """The step of time whose code was given, 0 if it was none, or if the account has no second factor."""
        has = account is not None and account.totp is not None
        sealed = account.totp if account is not None and account.totp is not None else bytes(48)
        try:
            secret = vault.factors.open(sealed, (account.id if account is not None else "").encode())
        except Unsealable:
            secret, has = bytes(totp.SECRET_BYTES), False
        step = totp.step_of(secret, code, self._now())
        return step if has else 0


def _fault(snapshot: Snapshot, app: CompiledApp, account: Account | None, *, known: bool, step: int) -> str:
    """Why not, for the audit trail alone; empty if there is nothing against it."""
    if account is None:
        return "unknown"
    if not known:
        return "password"
    if account.disabled:
        return "disabled"
    role = snapshot.roles.get(account.role)
    if role is None or account.role not in app.roles:
        return "role"
    if not step and (role.lifetimes.second_factor or account.totp is not None):
        return "second-factor"
    return ""


def spelled(name: str) -> str:
    """A login as accounts have it, empty if none can be written so."""
    login = name.strip().lower()
    return login if LOGIN.match(login) else ""

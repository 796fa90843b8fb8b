"""The demo's accounts: one for each role that people have, all with one password that is made for the directory."""

from __future__ import annotations

import base64
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from gateway.auth import totp
from gateway.auth.passwords import hash_password
from gateway.auth.vault import KEY_FILE, Vault, load_or_make_key
from gateway.demo import story
from gateway.store.account_operator import AccountOperator

PASSWORD_FILE: Final = "accounts.password"  # noqa: S105 - a file's name
FACTOR_FILE: Final = "accounts.totp"
CHILD: Final = "pat-0003"
ACCOUNTS: Final[dict[str, tuple[str, str, dict[str, object]]]] = {
    "anna": ("patient", "user-anna", {"patient": story.OWN}),
    "weber": ("practitioner", "user-weber", {"units": [story.HOSPITAL]}),
    "clerk": ("hcu_clerk", "user-clerk", {"units": [story.CLINIC]}),
    "head": ("hcu_admin", "user-head", {"units": [story.HOSPITAL, story.CLINIC]}),
    "audit": ("auditor", "user-audit", {}),
    "ops": ("platform_admin", "user-ops", {}),
}
"""Login -> role, subject, claims."""
WITH_FACTOR: Final = frozenset({"audit", "ops"})
_ALPHABET = "abcdefghjkmnpqrstuvwxyz23456789"


@dataclass(frozen=True, slots=True)
class Logins:
    """How to log in. Shapes: `factor` is the secret of the accounts that need a one-time code."""

    password: str = field(repr=False)
    factor: bytes = field(repr=False)


def make_accounts(directory: Path, operator_dsn: str) -> Logins:
    """Make the accounts that are missing; those that are there stay as they are.

    Raises: OperatorError.
    """
    text, is_new = _kept(directory / PASSWORD_FILE, _new_password)
    factor = base64.b32decode(_kept(directory / FACTOR_FILE, _new_factor)[0])
    vault = Vault(load_or_make_key(directory / KEY_FILE))
    with AccountOperator(operator_dsn) as operator:
        known = {account.login for account in operator.accounts()}
        for login, (role, subject, claims) in ACCOUNTS.items():
            if login in known:
                if is_new:
                    operator.set_password(login, hash_password(text))
                continue
            account = secrets.token_urlsafe(16)
            operator.add(account, login, subject, role, claims, hash_password(text))
            if login in WITH_FACTOR:
                operator.set_factor(login, vault.factors.seal(factor, account.encode()))
        operator.add_proxy("anna", CHILD, CHILD, None, "her child")
    return Logins(text, factor)


def code_now(directory: Path) -> str:
    """The one-time code of this moment. Raises: OSError if no accounts were made in the directory."""
    secret = base64.b32decode((directory / FACTOR_FILE).read_text())
    return totp.code_at(secret, int(time.time()) // totp.STEP_S)


def _kept(path: Path, make: Callable[[], str]) -> tuple[str, bool]:
    """A file's text; a missing one is made, readable by the owner alone. And was it?"""
    if path.exists():
        return path.read_text().strip(), False
    path.touch(mode=0o600)
    path.write_text(text := make())
    return text, True


def _new_password() -> str:
    return "-".join("".join(secrets.choice(_ALPHABET) for _ in range(5)) for _ in range(4))


def _new_factor() -> str:
    return base64.b32encode(totp.new_secret()).decode()

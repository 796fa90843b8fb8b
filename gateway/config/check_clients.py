"""Cross-checks of the token service and of its clients."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import urlsplit

from gateway.auth.claims import CHECKS
from gateway.config.checking import Checking
from gateway.config.fault import WHOLE, step
from gateway.config.model import Client, Role

SET_BY_SERVICE: Final = frozenset({
    "iss", "sub", "aud", "exp", "nbf", "iat", "jti", "role", "client_id", "azp", "scope", "act", "cnf", "active",
    "sid", "amr", "auth_time",
})  # fmt: skip
"""Claims that the service sets itself, or will."""
LOOPBACK: Final = frozenset({"localhost", "127.0.0.1"})

_URL = re.compile(r"https?://[a-z0-9.-]+(:[1-9][0-9]{0,4})?\Z")
_CLAIM = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}\Z")


def check_clients(checking: Checking) -> None:
    """Note every fault of `token_service` and `clients`."""
    service = checking.document.token_service
    if service is not None:
        _check_url(checking, step(step(WHOLE, "token_service"), "url"), service.url)
    client: Client
    for path, name, client in checking.entries("clients"):
        if service is None:
            checking.add(path, "needs token_service")
        if checking.exists("units", name):
            checking.add(path, "is a unit's id, which units sign as issuer")
        if client.role is None and not client.introspect:
            checking.add(path, "has neither a role nor anything to introspect")
        if client.role is not None:
            check_signing_role(checking, step(path, "role"), client.role)
        elif client.claims:
            checking.add(step(path, "claims"), "belong to tokens, of which a client without a role gets none")
        _check_claims(checking, step(path, "claims"), client)
        for below, audience in checking.each(client.introspect, step(path, "introspect")):
            checking.find("audiences", audience, below)


def _check_url(checking: Checking, path: str, url: str) -> None:
    parts = urlsplit(url) if _URL.match(url) else None
    if parts is None:
        checking.add(path, "must be https://host or https://host:port in lower case, without a path")
    elif parts.scheme == "http" and parts.hostname not in LOOPBACK:
        # SEC: what is sent there are credentials, and what comes back are tokens.
        checking.add(path, "must be https: only on loopback it may be http")


def check_signing_role(checking: Checking, path: str, name: str) -> None:
    role: Role | None = checking.find("roles", name, path)
    if role is not None and not role.makes_keys and not any(key.secret or key.private_key for key in role.keys):
        checking.add(path, f"{name} has no key with a secret or private_key: nothing could sign its tokens")


def _check_claims(checking: Checking, path: str, client: Client) -> None:
    checks = {claim: (is_good, what) for claim, is_good, what in CHECKS}
    for name, value in client.claims.items():
        below = step(path, name)
        if name in SET_BY_SERVICE:
            checking.add(below, "is set by the token service")
        elif not _CLAIM.match(name):
            checking.add(below, "is not the name of a claim: letters, digits and _ . -")
        plain = list(value) if isinstance(value, tuple) else value
        is_good, what = checks.get(name, (bool, "not empty"))
        if not is_good(plain):
            checking.add(below, f"must be {what}")

"""Access tokens of a role, signed by its key."""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass

from gateway.auth.keys import issue_token
from gateway.config.check_clients import SET_BY_SERVICE
from gateway.config.snapshot import Snapshot
from gateway.errors import KeysUnavailable

_JTI_BYTES = 16


@dataclass(frozen=True, slots=True)
class AccessToken:
    """Units: `lifetime_s` seconds, `expires_s` seconds since 1970."""

    text: str
    lifetime_s: int
    jti: str
    expires_s: int


def issue_access_token(
    snapshot: Snapshot,
    role: str,
    subject: str,
    client_id: str,
    claims: Mapping[str, object],
    now_s: float,
    *,
    about: Mapping[str, object] | None = None,
    until_s: float = math.inf,
) -> AccessToken:
    """A token that lets its bearer be `subject` in this role. Raises: KeysUnavailable if no key of the role signs.

    Shapes: `claims` are the account's or the client's, `about` the service's own. Units: `until_s` seconds since 1970.
    Source: RFC 9068, 2.2, whose claims it has.
    """
    key = snapshot.tokens.signers.get(role) if snapshot.tokens is not None else None
    if key is None:
        raise KeysUnavailable("No key signs tokens of this role")
    compiled = snapshot.roles[role]
    issued_s = math.floor(now_s)
    expires_s = math.floor(min(issued_s + compiled.access_lifetime_s, until_s))
    jti = secrets.token_urlsafe(_JTI_BYTES)
    payload = {
        # SEC: none of them is a claim of the service's own, whatever the database says.
        **{name: value for name, value in claims.items() if name not in SET_BY_SERVICE},
        **(about or {}),
        "iss": snapshot.audiences[compiled.audience].issuer,
        "aud": compiled.audience,
        "sub": subject,
        "client_id": client_id,
        "role": role,
        "iat": issued_s,
        "exp": expires_s,
        "jti": jti,
    }
    return AccessToken(issue_token(payload, key), expires_s - issued_s, jti, expires_s)

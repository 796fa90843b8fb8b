"""Access tokens of a role, signed by its key."""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass

from gateway.auth.keys import issue_token
from gateway.config.snapshot import Snapshot
from gateway.errors import KeysUnavailable

_JTI_BYTES = 16


@dataclass(frozen=True, slots=True)
class AccessToken:
    """Units: `lifetime_s` seconds."""

    text: str
    lifetime_s: int


def issue_access_token(
    snapshot: Snapshot, role: str, subject: str, client_id: str, claims: Mapping[str, object], now_s: float
) -> AccessToken:
    """A token that lets its bearer be `subject` in this role. Raises: KeysUnavailable if no key of the role signs.

    Source: RFC 9068, 2.2, whose claims it has.
    """
    key = snapshot.tokens.signers.get(role) if snapshot.tokens is not None else None
    if key is None:
        raise KeysUnavailable("No key signs tokens of this role")
    compiled = snapshot.roles[role]
    issued_s = math.floor(now_s)
    payload = {
        # SEC: first, so that none of them replaces what follows.
        **claims,
        "iss": snapshot.audiences[compiled.audience].issuer,
        "aud": compiled.audience,
        "sub": subject,
        "client_id": client_id,
        "role": role,
        "iat": issued_s,
        "exp": issued_s + compiled.access_lifetime_s,
        "jti": secrets.token_urlsafe(_JTI_BYTES),
    }
    return AccessToken(issue_token(payload, key), compiled.access_lifetime_s)

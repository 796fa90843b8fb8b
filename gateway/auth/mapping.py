"""What the claims of another issuer's token mean here: its role, and the claims that policy reads. Pure.

SEC: only what is mapped comes in. A `patient`, `units` or `org` claim of the issuer's own says nothing unless the
configuration says so, and a role only counts if an entry of the mapping gives it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from fastpath.token import TokenError

TAKEN: Final = (
    "iss",
    "sub",
    "exp",
    "nbf",
    "iat",
    "jti",
    "sid",
    "scope",
    "scp",
    "client_id",
    "azp",
    "acr",
    "amr",
    "auth_time",
)
"""Claims that mean the same everywhere, or that only narrow what a token may do."""
OF_ID_TOKENS: Final = ("nonce", "at_hash", "c_hash")
"""Claims of ID tokens (OpenID Connect Core, 2 and 3.3.2.11), which are for clients to read and no access tokens."""


@dataclass(frozen=True, slots=True)
class MappedRole:
    """Shapes: `claim` "" fits every token. Units: `max_lifetime_s` seconds."""

    role: str
    claim: str
    value: str
    max_lifetime_s: float


@dataclass(frozen=True, slots=True)
class ClaimMapping:
    """How tokens of one issuer are read. Shapes: `claims` maps a claim here to the claim, or pointer, there."""

    audience: str
    roles: tuple[MappedRole, ...]
    claims: Mapping[str, str]

    def __call__(self, claims: dict[str, Any]) -> tuple[str, str, dict[str, Any], float]:
        """Role, audience, claims and the role's longest lifetime. Raises: TokenError."""
        if any(name in claims for name in OF_ID_TOKENS):
            raise TokenError("claims", "the token is an ID token")
        given = next((entry for entry in self.roles if _fits(entry, claims)), None)
        if given is None:
            raise TokenError("role", "no role is mapped to what the token says")
        mapped: dict[str, Any] = {name: claims[name] for name in TAKEN if name in claims}
        mapped |= {"aud": self.audience, "role": given.role}
        for name, source in self.claims.items():
            value = look_up(claims, source)
            if value is not None:
                mapped[name] = value
        return given.role, self.audience, mapped, given.max_lifetime_s


def _fits(entry: MappedRole, claims: dict[str, Any]) -> bool:
    if not entry.claim:
        return True
    found = look_up(claims, entry.claim)
    return found == entry.value or (isinstance(found, list) and entry.value in found)


def look_up(claims: Any, source: str) -> Any:
    """The value of a claim, or of what a JSON pointer (RFC 6901) leads to; None if there is none."""
    if not source.startswith("/"):
        return claims.get(source)
    found = claims
    for part in source[1:].split("/"):
        name = part.replace("~1", "/").replace("~0", "~")
        if isinstance(found, dict):
            found = found.get(name)
        elif isinstance(found, list) and name.isascii() and name.isdigit() and int(name) < len(found):
            found = found[int(name)]
        else:
            return None
    return found

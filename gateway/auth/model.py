"""What the database knows of revoked tokens, as a worker holds it and as it is kept on disk."""

from __future__ import annotations

import msgspec


class RevokedToken(msgspec.Struct, frozen=True):
    """Units: `until_s` seconds since 1970, when the token has run out anyway."""

    jti: str
    until_s: float


class Revocations(msgspec.Struct, frozen=True):
    """Tokens revoked up to `revision`; with `whole` there are no others."""

    revision: int
    tokens: list[RevokedToken] = []
    whole: bool = False

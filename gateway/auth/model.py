"""What the database knows of revocations, as a worker holds it and as it is kept on disk."""

from __future__ import annotations

import msgspec


class RevokedToken(msgspec.Struct, frozen=True):
    """Units: `until_s` seconds since 1970, when the token has run out anyway."""

    jti: str
    until_s: float


class Revocation(msgspec.Struct, frozen=True, kw_only=True):
    """What is refused beside single tokens: see fastpath.revoked.Revoked.

    Shapes: `kind` is jti, session, subject, unit or before (then `value` is ""); "" as issuer, audience or role is any.
    Units: seconds since 1970; `before_s` counts for subject, unit and before.
    """

    kind: str
    value: str = ""
    before_s: float
    until_s: float
    issuer: str = ""
    audience: str = ""
    role: str = ""


class Revocations(msgspec.Struct, frozen=True):
    """What is revoked up to `revision`; with `whole` there is nothing else."""

    revision: int
    tokens: list[RevokedToken] = []
    rules: list[Revocation] = []
    whole: bool = False

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


class SigningKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key that the gateway made, or the end of one of the configuration's (without `sealed`).

    Shapes: `sealed` is base64 of what auth.sealed made of the private key (PEM). Units: seconds since 1970.
    """

    kid: str
    role: str
    alg: str
    sealed: str | None = None
    created_s: float
    signs_s: float
    retires_s: float | None = None
    ended: bool = False

    def has_ended(self, now_s: float) -> bool:
        """May it verify nothing any more?"""
        return self.ended or (self.retires_s is not None and now_s >= self.retires_s)

    def __repr__(self) -> str:
        return f"SigningKey({self.kid!r}, {self.role!r})"


class Revocations(msgspec.Struct, frozen=True):
    """What is revoked up to `revision`, and the keys that were made or ended; with `whole` there is nothing else."""

    revision: int
    tokens: list[RevokedToken] = []
    rules: list[Revocation] = []
    keys: list[SigningKey] = []
    whole: bool = False

"""What the database knows of units' keys, as a worker holds it and as it is kept on disk."""

from __future__ import annotations

import msgspec


class KeyRow(msgspec.Struct, frozen=True):
    """A registered public key. Shapes: `public_key` PEM. Units: seconds since 1970."""

    kid: str
    unit: str
    alg: str
    public_key: str
    created_s: float
    retires_s: float | None = None
    revoked: bool = False

    def live(self, now_s: float) -> bool:
        """May it still sign?"""
        return not self.revoked and (self.retires_s is None or now_s < self.retires_s)


class UnitRow(msgspec.Struct, frozen=True):
    """A unit that was revoked at some time."""

    unit: str
    revoked: bool


class ContextRow(msgspec.Struct, frozen=True):
    """A key of x-caregate-context: the text of `secret` is the key. Units: `from_s` seconds since 1970."""

    unit: str
    generation: int
    secret: str
    from_s: float

    def __repr__(self) -> str:
        return f"ContextRow({self.unit!r}, {self.generation})"


class Changes(msgspec.Struct, frozen=True):
    """Rows that changed up to `revision`; with `whole` there are no others."""

    revision: int
    units: list[UnitRow] = []
    keys: list[KeyRow] = []
    contexts: list[ContextRow] = []
    whole: bool = False


class NewKey(msgspec.Struct, frozen=True):
    """A public key that proved to be the sender's own. Shapes: `kid` its thumbprint (RFC 7638), `public_key` PEM."""

    kid: str
    alg: str
    public_key: str

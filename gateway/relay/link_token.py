"""What a worker keeps of the token under which a unit is connected."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LinkToken:
    """Shapes: `kid` names the key that signed it, `address` is whom it was presented by: of a dial's, for the trail.
    Units: seconds since 1970; `issued_s` is -1 if it does not say.
    """

    kid: str
    expires_s: float
    jti: str = ""
    issued_s: float = -1.0
    address: str = ""

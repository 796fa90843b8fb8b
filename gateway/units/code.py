"""One-time enrolment codes: 130 random bits that a person can read out and type."""

from __future__ import annotations

import hashlib
import secrets

ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
"""Source: Crockford's base 32: without I, L, O and U."""
_READ_AS = str.maketrans("OIL", "011")
_LENGTH, _GROUP = 26, 5


def issue() -> str:
    """A new code, in groups."""
    text = "".join(secrets.choice(ALPHABET) for _ in range(_LENGTH))
    return "-".join(text[at : at + _GROUP] for at in range(0, _LENGTH, _GROUP))


def digest(code: str) -> bytes:
    """SHA-256 of a code as it was meant, whatever its case, spaces and hyphens: 32 bytes.

    SEC: a plain hash does: what it hides has more random bits than anybody can try.
    """
    meant = "".join(code.split()).replace("-", "").upper().translate(_READ_AS)
    return hashlib.sha256(meant.encode()).digest()

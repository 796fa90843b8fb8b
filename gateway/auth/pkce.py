"""Proof key for code exchange (RFC 7636), by S256 alone."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from typing import Final

METHOD: Final = "S256"

_VERIFIER = re.compile(r"[A-Za-z0-9._~-]{43,128}\Z")
_CHALLENGE = re.compile(r"[A-Za-z0-9_-]{43}\Z")


def is_challenge(text: str) -> bool:
    """Could it be the SHA-256 of a verifier in base64url?"""
    return _CHALLENGE.match(text) is not None


def challenge_of(verifier: str) -> str:
    """Source: RFC 7636, 4.2."""
    return base64.urlsafe_b64encode(hashlib.sha256(verifier.encode("ascii")).digest()).rstrip(b"=").decode()


def proves(verifier: str, challenge: str) -> bool:
    """Is it the verifier of the challenge?"""
    if _VERIFIER.match(verifier) is None:
        return False
    return hmac.compare_digest(challenge_of(verifier), challenge)

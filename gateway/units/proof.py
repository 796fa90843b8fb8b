"""Proof of possession: a request to register a public key is signed with the key it asks for.

Source: the idea is that of RFC 7800; the proof is a compact JWS like any unit token, with an audience of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from fastpath.token import Key, TokenError, Verifier
from gateway.auth.keys import load_public_key
from gateway.errors import BadRequest
from gateway.units.model import NewKey

ALGORITHMS = frozenset({"EdDSA", "ES256", "ES384", "RS256", "PS256"})
MAX_KEY_CHARACTERS = 4096
MAX_LIFETIME_S = 300
LEEWAY_S = 120
"""A site's clock may be wrong before anything told it so; the proof is of little use to anybody else anyway."""


class Proof:
    """What was proved: the key, and the claims signed with it."""

    def __init__(self, key: NewKey, claims: dict[str, Any]) -> None:
        self.key = key
        self.claims = claims


def prove(
    unit: str, alg: str, public_key: str, token: str, audience: str, now: Callable[[], float] = time.time
) -> Proof:
    """Check that the sender holds the private half. Raises: BadRequest."""
    if alg not in ALGORITHMS or len(public_key) > MAX_KEY_CHARACTERS or "PUBLIC KEY" not in public_key:
        raise BadRequest("The public key is not one that units sign with")
    try:
        material = load_public_key(public_key, alg=alg)
    except ValueError:
        raise BadRequest("The public key is not one that units sign with") from None
    kid = material.thumbprint
    key = Key(kid, alg, material.verifying, issuer=unit, audiences=(audience,), max_lifetime_s=MAX_LIFETIME_S)
    try:
        verified = Verifier([key], leeway_s=LEEWAY_S, cache_size=0).verify(token, now())
    except TokenError as error:
        detail = "The proof has expired: check the clock" if error.code == "expired" else "The proof does not hold"
        raise BadRequest(detail) from None
    if verified.subject != unit or not verified.jti:
        raise BadRequest("The proof does not hold")
    return Proof(NewKey(kid, alg, public_key), verified.claims)

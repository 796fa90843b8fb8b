"""Tokens of every kind for a role, made with the keys that the document refers to."""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from gateway.auth.keys import KeyMaterial, issue_token

_CURVES: dict[str, type[Any]] = {"ES256": ec.SECP256R1, "ES384": ec.SECP384R1, "ES512": ec.SECP521R1}


class Tokens:
    """Makes tokens. Shapes: `keys` role -> the key that signs its tokens."""

    def __init__(
        self, issuers: Mapping[str, str], audiences: Mapping[str, str], keys: Mapping[str, KeyMaterial]
    ) -> None:
        """Shapes: `issuers` audience -> issuer; `audiences` role -> audience."""
        self._issuers = issuers
        self._audiences = audiences
        self._keys = keys
        self._strange: dict[str, KeyMaterial] = {}

    def can_sign(self, role: str) -> bool:
        return role in self._keys

    def make(self, role: str, state: str, claims: Mapping[str, object], now_s: int) -> str:
        """A token in a state; one that is to be revoked is fresh. Units: `now_s` seconds since 1970."""
        audience = self._audiences[role]
        lifetime_s = 120
        issued = now_s - 3_600 if state == "expired" else now_s
        payload = {
            "iss": "https://elsewhere.invalid/" if state == "foreign issuer" else self._issuers[audience],
            "aud": audience, "sub": f"selftest-{uuid.uuid4()}", "iat": issued, "exp": issued + lifetime_s,
            "jti": str(uuid.uuid4()), "role": role, **claims,
        }  # fmt: skip
        key = self._keys[role]
        return issue_token(payload, self._stranger(key) if state == "foreign key" else key)

    def _stranger(self, key: KeyMaterial) -> KeyMaterial:
        """A key of the same algorithm and key id that nobody has registered."""
        made = self._strange.get(key.alg)
        if made is None:
            made = self._strange[key.alg] = replace(key, signing=_new_key(key.alg))
        return replace(made, kid=key.kid)


def _new_key(alg: str) -> Any:
    if alg.startswith("HS"):
        return secrets.token_bytes(64)
    if alg in _CURVES:
        return ec.generate_private_key(_CURVES[alg]())
    if alg == "EdDSA":
        return ed25519.Ed25519PrivateKey.generate()
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)

"""Keys of the fleet's units, and tokens of the callers under the configuration's own keys."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from gateway.auth.keys import KeyMaterial, issue_token, load_private_key, load_secret
from gateway.config.model import Document
from gateway.config.secret import Secrets


def write_unit_key(unit: str, directory: Path) -> Path:
    """A fresh Ed25519 pair, `UNIT.key` and `UNIT.pub`; returns the private one's path."""
    private = Ed25519PrivateKey.generate()
    path = directory / f"{unit}.key"
    _write(path, private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), 0o600)
    public = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    _write(directory / f"{unit}.pub", public, 0o644)
    return path


def _write(path: Path, content: bytes, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with open(descriptor, "wb") as file:
        file.write(content)


class Issuer:
    """Issues callers' tokens as the gateway's own token command does."""

    def __init__(self, document: Document, directory: Path, lifetime_s: int) -> None:
        """`directory` is the document's, for its `file:` references."""
        self._document = document
        self._secrets = Secrets(directory, os.environ)
        self._lifetime_s = lifetime_s
        self._keys: dict[str, KeyMaterial] = {}

    def token(self, role: str, subject: str, claims: Mapping[str, Any]) -> str:
        """Raises: KeyError for an unknown role, ValueError if its key cannot sign."""
        audience = self._document.roles[role].audience
        now_s = int(time.time())
        standard = {
            "iss": self._document.audiences[audience].issuer,
            "aud": audience,
            "sub": subject,
            "iat": now_s,
            "exp": now_s + self._lifetime_s,
            "jti": os.urandom(16).hex(),
        }
        return issue_token({**standard, **claims}, self._key(role))

    def _key(self, role: str) -> KeyMaterial:
        if role not in self._keys:
            key = self._document.roles[role].keys[0]
            if key.secret is not None:
                material = load_secret(self._secrets.resolve(key.secret, private=True), alg=key.alg, kid=key.kid)
            elif key.private_key is not None:
                raw = self._secrets.resolve(key.private_key, private=True)
                material = load_private_key(raw, alg=key.alg, kid=key.kid)
            else:
                raise ValueError(f"role {role}: the configuration has no key to sign with")
            self._keys[role] = material
        return self._keys[role]

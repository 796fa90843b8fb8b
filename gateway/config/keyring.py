"""The document's keys, loaded and judged: presence, algorithm, strength, and that none is used for two purposes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

from fastpath.token import PublicKey
from gateway.auth.keys import KeyRefused, load_private_key, load_public_key
from gateway.config.checking import Checking
from gateway.config.fault import step
from gateway.config.model import Key, Role, Unit, UnitKey
from gateway.config.secret import Secrets, SecretUnavailable
from gateway.config.weakness import weakness

CONTEXT_ALG = "HS256"


@dataclass(frozen=True, slots=True)
class SigningKey:
    """What signs a role's tokens: the secret or the private key; never shown."""

    kid: str
    alg: str
    material: bytes | PrivateKeyTypes = field(repr=False)


@dataclass(slots=True)
class Keyring:
    """Shapes: `verifying` maps the document path of a key to what verifies with it; `signing` the same for those that
    sign; `contexts` unit id -> context key; `fingerprints` SHA-256 of each material -> the path that brought it first.
    """

    verifying: dict[str, bytes | PublicKey] = field(default_factory=dict)
    signing: dict[str, SigningKey] = field(default_factory=dict)
    contexts: dict[str, bytes] = field(default_factory=dict)
    fingerprints: dict[str, str] = field(default_factory=dict)
    kids: dict[str, str] = field(default_factory=dict)

    def digest(self) -> str:
        """SHA-256 over all material, in hex: tells a replaced key file under an unchanged document."""
        named = sorted(f"{path} {fingerprint}" for fingerprint, path in self.fingerprints.items())
        return hashlib.sha256("\n".join(named).encode()).hexdigest()


def load_keys(checking: Checking, secrets: Secrets) -> Keyring:
    """Every key of the document; the faulty ones are noted and left out."""
    loader = _Loader(checking, secrets)
    role: Role
    for path, _, role in checking.entries("roles"):
        for index, key in enumerate(role.keys):
            loader.role_key(step(step(path, "keys"), index), key)
    unit: Unit
    for path, name, unit in checking.entries("units"):
        for index, unit_key in enumerate(unit.keys):
            loader.unit_key(step(step(path, "keys"), index), unit_key)
        if unit.context_key is not None:
            loader.context_key(step(path, "context_key"), name, unit.context_key)
    return loader.keyring


class _Loader:
    def __init__(self, checking: Checking, secrets: Secrets) -> None:
        self.keyring = Keyring()
        self._checking = checking
        self._secrets = secrets

    def role_key(self, path: str, key: Key) -> None:
        self._kid(path, key.kid)
        if key.alg.startswith("HS"):
            self._shared(path, key)
        else:
            self._asymmetric(path, key)

    def unit_key(self, path: str, key: UnitKey) -> None:
        self._kid(path, key.kid)
        self._public(path, key.alg, key.public_key)

    def context_key(self, path: str, unit: str, ref: str) -> None:
        secret = self._secret(path, CONTEXT_ALG, ref)
        if secret is not None:
            self.keyring.contexts[unit] = secret

    def _kid(self, path: str, kid: str) -> None:
        first = self.keyring.kids.setdefault(kid, path)
        if first != path:
            self._checking.add(step(path, "kid"), f"is the kid of {first} too")

    def _shared(self, path: str, key: Key) -> None:
        for name in ("public_key", "private_key"):
            if getattr(key, name) is not None:
                self._checking.add(step(path, name), f"does not belong to a key of {key.alg}, which has a secret")
        if key.secret is None:
            self._checking.add(step(path, "secret"), f"is required for {key.alg}")
            return
        secret = self._secret(step(path, "secret"), key.alg, key.secret)
        if secret is not None:
            self.keyring.verifying[path] = secret
            self.keyring.signing[path] = SigningKey(key.kid, key.alg, secret)

    def _asymmetric(self, path: str, key: Key) -> None:
        if key.secret is not None:
            self._checking.add(step(path, "secret"), f"does not belong to a key of {key.alg}, which has a public_key")
        if key.public_key is None:
            self._checking.add(step(path, "public_key"), f"is required for {key.alg}")
        public = None if key.public_key is None else self._public(path, key.alg, key.public_key)
        if key.private_key is not None:
            self._private(path, key, public)

    def _secret(self, path: str, alg: str, ref: str) -> bytes | None:
        secret = self._resolve(path, ref, private=True)
        if secret is None:
            return None
        reason = weakness(secret, alg)
        if reason is not None:
            self._checking.add(path, reason)
            return None
        return secret if self._sole_use(path, b"oct" + secret) else None

    def _public(self, path: str, alg: str, ref: str) -> Any:
        below = step(path, "public_key")
        raw = self._resolve(below, ref, private=False)
        if raw is None:
            return None
        try:
            public = load_public_key(raw, alg)
        except KeyRefused as error:
            self._checking.add(below, str(error))
            return None
        if not self._sole_use(below, public.fingerprint):
            return None
        self.keyring.verifying[path] = public
        return public

    def _private(self, path: str, key: Key, public: Any) -> None:
        below = step(path, "private_key")
        raw = self._resolve(below, key.private_key or "", private=True)
        if raw is None:
            return
        try:
            private = load_private_key(raw, key.alg)
        except KeyRefused as error:
            self._checking.add(below, str(error))
            return
        if public is not None and private.public_fingerprint != public.fingerprint:
            self._checking.add(below, "is not the private key of public_key")
            return
        self.keyring.signing[path] = SigningKey(key.kid, key.alg, private.key)

    def _resolve(self, path: str, ref: str, *, private: bool) -> bytes | None:
        try:
            return self._secrets.resolve(ref, private=private)
        except SecretUnavailable as error:
            self._checking.add(path, str(error))
            return None

    def _sole_use(self, path: str, material: bytes) -> bool:
        """SEC: one key, one purpose: else whoever holds the one role's key makes tokens of the other."""
        first = self.keyring.fingerprints.setdefault(hashlib.sha256(material).hexdigest(), path)
        if first != path:
            self._checking.add(path, f"is the same key as {first}")
        return first == path

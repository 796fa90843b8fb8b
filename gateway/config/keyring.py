"""The document's keys, loaded and judged: presence, algorithm, strength, and that none is used for two purposes."""

from __future__ import annotations

import hashlib
import ssl
from dataclasses import dataclass, field, replace

from gateway.auth.keys import KeyMaterial, load_private_key, load_public_key, load_secret
from gateway.config.checking import Checking
from gateway.config.fault import step
from gateway.config.model import App, Client, ClientKey, IdentityProvider, Key, Role, Unit, UnitKey
from gateway.config.secret import Secrets, SecretUnavailable
from gateway.config.weakness import weakness

CONTEXT_ALG = "HS256"


@dataclass(slots=True)
class Keyring:
    """Shapes: `keys` maps the document path of a key to its material, with the private half where the document gives
    it; `contexts` unit id -> context key; `authorities` identity provider -> certificates (PEM) to trust; `thumbprints`
    of all material -> the path that brought it first.
    """

    keys: dict[str, KeyMaterial] = field(default_factory=dict)
    contexts: dict[str, bytes] = field(default_factory=dict)
    authorities: dict[str, str] = field(default_factory=dict)
    thumbprints: dict[str, str] = field(default_factory=dict, repr=False)
    kids: dict[str, str] = field(default_factory=dict)

    def digest(self) -> str:
        """SHA-256 over all material, in hex: tells a replaced key file under an unchanged document."""
        named = sorted(f"{path} {thumbprint}" for thumbprint, path in self.thumbprints.items())
        named += sorted(f"{name} {certificates}" for name, certificates in self.authorities.items())
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
            loader.public_key(step(step(path, "keys"), index), unit_key)
        if unit.context_key is not None:
            loader.context_key(step(path, "context_key"), name, unit.context_key)
    client: Client
    for path, _, client in checking.entries("clients"):
        for index, client_key in enumerate(client.keys):
            loader.public_key(step(step(path, "keys"), index), client_key)
    app: App
    for path, _, app in checking.entries("apps"):
        for index, app_key in enumerate(app.keys):
            loader.public_key(step(step(path, "keys"), index), app_key)
    provider: IdentityProvider
    for path, name, provider in checking.entries("identity_providers"):
        if provider.ca is not None:
            loader.authority(step(path, "ca"), name, provider.ca)
    return loader.keyring


class _Loader:
    def __init__(self, checking: Checking, secrets: Secrets) -> None:
        self.keyring = Keyring()
        self._checking = checking
        self._secrets = secrets

    def role_key(self, path: str, key: Key) -> None:
        self._kid(path, key.kid)
        material = self._shared(path, key) if key.alg.startswith("HS") else self._asymmetric(path, key)
        if material is not None:
            self.keyring.keys[path] = material

    def public_key(self, path: str, key: UnitKey | ClientKey) -> None:
        self._kid(path, key.kid)
        material = self._public(path, key.alg, key.kid, key.public_key)
        if material is not None:
            self.keyring.keys[path] = material

    def context_key(self, path: str, unit: str, ref: str) -> None:
        material = self._secret(path, CONTEXT_ALG, None, ref)
        if material is not None and isinstance(material.verifying, bytes):
            self.keyring.contexts[unit] = material.verifying

    def authority(self, path: str, provider: str, ref: str) -> None:
        raw = self._resolve(path, ref, private=False)
        if raw is None:
            return
        try:
            ssl.create_default_context(cadata=raw.decode("ascii"))
        except (ValueError, ssl.SSLError):
            self._checking.add(path, "is not certificates in PEM")
            return
        self.keyring.authorities[provider] = raw.decode("ascii")

    def _kid(self, path: str, kid: str) -> None:
        first = self.keyring.kids.setdefault(kid, path)
        if first != path:
            self._checking.add(step(path, "kid"), f"is the kid of {first} too")

    def _shared(self, path: str, key: Key) -> KeyMaterial | None:
        for name in ("public_key", "private_key"):
            if getattr(key, name) is not None:
                self._checking.add(step(path, name), f"does not belong to a key of {key.alg}, which has a secret")
        if key.secret is None:
            self._checking.add(step(path, "secret"), f"is required for {key.alg}")
            return None
        return self._secret(step(path, "secret"), key.alg, key.kid, key.secret)

    def _asymmetric(self, path: str, key: Key) -> KeyMaterial | None:
        if key.secret is not None:
            self._checking.add(step(path, "secret"), f"does not belong to a key of {key.alg}, which has a public_key")
        public = None
        if key.public_key is None:
            self._checking.add(step(path, "public_key"), f"is required for {key.alg}")
        else:
            public = self._public(path, key.alg, key.kid, key.public_key)
        if key.private_key is None:
            return public
        return self._pair(step(path, "private_key"), key, key.private_key, public)

    def _secret(self, path: str, alg: str, kid: str | None, ref: str) -> KeyMaterial | None:
        raw = self._resolve(path, ref, private=True)
        if raw is None:
            return None
        try:
            material = load_secret(raw, alg=alg, kid=kid)
        except ValueError as error:
            self._checking.add(path, str(error))
            return None
        reason = weakness(material.verifying, alg) if isinstance(material.verifying, bytes) else None
        if reason is not None:
            self._checking.add(path, reason)
            return None
        return material if self._sole_use(path, material) else None

    def _public(self, path: str, alg: str, kid: str, ref: str) -> KeyMaterial | None:
        below = step(path, "public_key")
        raw = self._resolve(below, ref, private=False)
        if raw is None:
            return None
        try:
            material = load_public_key(raw, alg=alg, kid=kid)
        except ValueError as error:
            self._checking.add(below, str(error))
            return None
        return material if self._sole_use(below, material) else None

    def _pair(self, path: str, key: Key, ref: str, public: KeyMaterial | None) -> KeyMaterial | None:
        """The public key with its private half."""
        raw = self._resolve(path, ref, private=True)
        if raw is None:
            return None
        try:
            private = load_private_key(raw, alg=key.alg, kid=key.kid)
        except ValueError as error:
            self._checking.add(path, str(error))
            return None
        if public is None:
            return None
        if private.thumbprint != public.thumbprint:
            self._checking.add(path, "is not the private key of public_key")
            return None
        return replace(public, signing=private.signing)

    def _resolve(self, path: str, ref: str, *, private: bool) -> bytes | None:
        try:
            return self._secrets.resolve(ref, private=private)
        except SecretUnavailable as error:
            self._checking.add(path, str(error))
            return None

    def _sole_use(self, path: str, material: KeyMaterial) -> bool:
        """SEC: one key, one purpose: else whoever holds the one role's key makes tokens of the other."""
        first = self.keyring.thumbprints.setdefault(material.thumbprint, path)
        if first != path:
            self._checking.add(path, f"is the same key as {first}")
        return first == path

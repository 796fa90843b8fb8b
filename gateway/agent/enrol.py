"""The key pair made at the site, and its registration: by a one-time code, or by the key that is there.

The private half never leaves the key directory. Its files, all readable by the owner alone:

```
unit.key              the private key, PEM        unit.key.next          made, but its registration is not confirmed
context.key           key of x-caregate-context   context.key.previous   good for a while after a rotation
enrolled.json         {unit, kid, registered_s}
```
A registration whose answer got lost is repeated with the same key, which the gateway knows again.
"""

from __future__ import annotations

import base64
import os
import time
from dataclasses import dataclass
from pathlib import Path

import orjson
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from gateway.agent.endpoint import Endpoint
from gateway.agent.identity import RECORD, UnitIdentity, load_identity, thumbprint
from gateway.agent.post import Refused, post

ENROL_AUDIENCE = "unit-enrolment"
ROTATE_AUDIENCE = "unit-rotation"
PROOF_LIFETIME_S = 300
CONNECT, ENROL, ROTATE = "/relay/v1/connect", "/relay/v1/enrol", "/relay/v1/keys"


class EnrolmentFailed(Exception):
    """The message says what happened and what to do."""


@dataclass(frozen=True, slots=True)
class Registered:
    """What the gateway answered. Units: `overlap_s` seconds for which an old key stays good."""

    kid: str
    context_changed: bool
    overlap_s: float | None


class KeyDirectory:
    """The files of one unit at its site."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.key = path / "unit.key"
        self.next_key = path / "unit.key.next"
        self.context = path / "context.key"
        self.previous_context = path / "context.key.previous"
        self._record = path / RECORD

    def make(self) -> None:
        """Raises: OSError."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)

    def candidate(self) -> ed25519.Ed25519PrivateKey:
        """The key to register: a new one, or the one whose registration was not confirmed.

        Raises: OSError, EnrolmentFailed.
        """
        try:
            found = load_pem_private_key(self.next_key.read_bytes(), password=None)
        except FileNotFoundError:
            key = ed25519.Ed25519PrivateKey.generate()
            _write(self.next_key, _pem(key))
            return key
        except (ValueError, TypeError):
            raise EnrolmentFailed(f"{self.next_key} is not a private key; delete it") from None
        if not isinstance(found, ed25519.Ed25519PrivateKey):
            raise EnrolmentFailed(f"{self.next_key} is not an Ed25519 key; delete it")
        return found

    def keep(self, unit: str, kid: str, context: bytes | None, now_s: float) -> bool:
        """The candidate is registered: it is the key from now on. Was the context key another one? Raises: OSError."""
        changed = self._keep_context(context)
        self.next_key.replace(self.key)
        _write(self._record, orjson.dumps({"unit": unit, "kid": kid, "registered_s": int(now_s)}))
        return changed

    def _keep_context(self, context: bytes | None) -> bool:
        if context is None:
            return False
        try:
            known = self.context.read_bytes()
        except FileNotFoundError:
            known = None
        if known == context:
            return False
        if known is not None:
            _write(self.previous_context, known)
        _write(self.context, context)
        return True

    def registered_s(self) -> float | None:
        """When the key was registered, seconds since 1970; None if that is not known."""
        try:
            record = orjson.loads(self._record.read_bytes())
            return float(record["registered_s"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def identity(self, unit: str) -> UnitIdentity:
        """Who signs now. Raises: OSError, BadKey."""
        return load_identity(unit, None, self.key)

    def contexts(self) -> list[bytes]:
        """The context keys to accept, the newest first; empty if there is none. Raises: OSError."""
        found = []
        for path in (self.context, self.previous_context):
            try:
                found.append(path.read_bytes())
            except FileNotFoundError:
                continue
        return found


def enrol(gateway: Endpoint, unit: str, code: str, directory: KeyDirectory, ca_file: str | None = None) -> Registered:
    """Make the key pair and exchange the code for its registration.

    Raises: EnrolmentFailed, OSError. Yields to the hub.
    """
    directory.make()
    if directory.key.exists():
        raise EnrolmentFailed(f"{directory.key} is there already: `caregate agent rotate` replaces it")
    key = directory.candidate()
    proof = _proof(unit, key, ENROL_AUDIENCE, time.time(), code=code)
    asked: dict[str, object] = {"unit": unit, "alg": "EdDSA", "public_key": _public_pem(key), "proof": proof}
    return _register(gateway, ENROL, unit, key, directory, asked, None, ca_file)


def rotate(
    gateway: Endpoint,
    unit: str,
    directory: KeyDirectory,
    *,
    context: bool = False,
    ca_file: str | None = None,
    identity: UnitIdentity | None = None,
) -> Registered:
    """Register a new key, vouched for by the one in use, and use it from now on; with `context` a new context key too.

    Shapes: `identity` signs instead of the directory's own key, the first time a directory takes over from a key file.
    Raises: EnrolmentFailed, BadKey, OSError. Yields to the hub.
    """
    old = identity or directory.identity(unit)
    directory.make()
    key = directory.candidate()
    now_s = time.time()
    asked: dict[str, object] = {"alg": "EdDSA", "public_key": _public_pem(key), "context": context}
    asked["proof"] = _proof(unit, key, ROTATE_AUDIENCE, now_s)
    return _register(gateway, ROTATE, unit, key, directory, asked, old.token(now_s), ca_file)


def _register(
    gateway: Endpoint,
    path: str,
    unit: str,
    key: ed25519.Ed25519PrivateKey,
    directory: KeyDirectory,
    asked: dict[str, object],
    token: str | None,
    ca_file: str | None,
) -> Registered:
    target = gateway.path.removesuffix(CONNECT) + path
    try:
        answer = post(gateway, target, orjson.dumps(asked), token, ca_file)
    except Refused as refusal:
        raise EnrolmentFailed(f"the gateway refused: {refusal}") from None
    try:
        context = None if answer["context_key"] is None else _decode(answer["context_key"])
        overlap_s = None if answer["overlap_s"] is None else float(answer["overlap_s"])
        kid = answer["kid"]
    except (KeyError, TypeError, ValueError):
        raise EnrolmentFailed("the gateway's answer is not one of a registration") from None
    if kid != thumbprint(key):
        raise EnrolmentFailed("the gateway registered another key")
    return Registered(kid, directory.keep(unit, kid, context, time.time()), overlap_s)


def _proof(unit: str, key: ed25519.Ed25519PrivateKey, audience: str, now_s: float, **more: object) -> str:
    identity = UnitIdentity(unit, thumbprint(key), _pem(key))
    return identity.sign(audience, now_s, PROOF_LIFETIME_S, **more)


def _pem(key: ed25519.Ed25519PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _public_pem(key: ed25519.Ed25519PrivateKey) -> str:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(serialization.Encoding.PEM, form).decode("ascii")


def _decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _write(path: Path, content: bytes) -> None:
    """Replace a file in one step, on disk when it returns, never readable by others for a moment."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(descriptor)
    temporary.replace(path)

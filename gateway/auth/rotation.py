"""Rotating and retiring the keys of roles that the gateway makes itself: for the command and the Admin API."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from gateway.config.reload import ask

if TYPE_CHECKING:
    from gateway.auth.sealed import KeySeal
    from gateway.store.signing_key import KeyOperator, Rotated

ALGORITHMS: Final = ("EdDSA", "ES256", "ES384", "RS256", "PS256")
SETTLE_S: Final = 5.0
"""How long to wait for the workers; they know within a second."""
_PAUSE_S: Final = 0.05


@dataclass(frozen=True, slots=True)
class Made:
    """A role's next key."""

    kid: str
    alg: str
    rotated: Rotated


def rotate(
    store: KeyOperator,
    seal: KeySeal,
    role: str,
    keys: Sequence[Mapping[str, Any]],
    *,
    alg: str | None,
    at_s: float | None,
    overlap_s: float,
    author: str,
    reason: str,
) -> Made:
    """Make the role's next key; the one before verifies until the overlap ends.

    Shapes: `keys` are the role's as the workers describe them; `alg` None: as the key that signs now, or ES256.
    Raises: KeyChangeRefused, and what the store raises.
    """
    from gateway.store.signing_key import NewKey

    chosen = alg or next((key["alg"] for key in keys if key["signs"] and key["alg"] in ALGORITHMS), "ES256")
    kid = f"{role}-{datetime.now(UTC):%Y%m%d}-{secrets.token_hex(4)}"
    sealed = seal.seal(private_pem(chosen), kid, role, chosen)
    documented = [key["kid"] for key in keys if key["source"] == "document"]
    return Made(
        kid, chosen, store.rotate(NewKey(kid, role, chosen, sealed, at_s), documented, overlap_s, author, reason)
    )


def role_of(kid: str, roles: Mapping[str, Sequence[Mapping[str, Any]]]) -> tuple[str | None, bool]:
    """Whose key it is, and is it the last live one? None: nobody's."""
    role = next((name for name, keys in roles.items() if any(key["kid"] == kid for key in keys)), None)
    if role is None:
        return None, False
    return role, not any(key["live"] and key["kid"] != kid for key in roles[role])


def await_keys(run_dir: Path, revision: int, signs: str = "") -> tuple[list[int], list[int]]:
    """The workers that know that revision, and sign with that key if one is named; and those that do not in time.

    Raises: ReloadFailed.
    Yields to the hub: in a worker, yes.
    """
    until_s = time.monotonic() + SETTLE_S
    while True:
        found = ask(run_dir, "keys", timeout_s=SETTLE_S)
        late = [worker["pid"] for worker in found if not _knows(worker, revision, signs)]
        if not late or time.monotonic() > until_s:
            return [worker["pid"] for worker in found if worker["pid"] not in late], late
        time.sleep(_PAUSE_S)


def _knows(worker: Mapping[str, Any], revision: int, signs: str) -> bool:
    signers = {key["kid"] for keys in worker["roles"].values() for key in keys if key["signs"]}
    return bool(worker["revision"] >= revision and (not signs or signs in signers or not worker["issues"]))


def private_pem(alg: str) -> bytes:
    """A new private key."""
    from cryptography.hazmat.primitives import serialization as s
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    key: ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
    if alg == "EdDSA":
        key = ed25519.Ed25519PrivateKey.generate()
    elif alg in ("ES256", "ES384"):
        key = ec.generate_private_key(ec.SECP256R1() if alg == "ES256" else ec.SECP384R1())
    else:
        key = rsa.generate_private_key(public_exponent=65_537, key_size=3_072)
    return key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption())

"""The keys of an identity provider, from the text of its key set to what the verifier takes. Pure."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

import orjson

from fastpath.token import Key
from gateway.auth.jwk import parse_json
from gateway.auth.keys import KeyFault, KeyMaterial, read_key_set
from gateway.config.snapshot import CompiledProvider

MAX_KEYS: Final = 64
MAX_KID_CHARS: Final = 256


def read_provider_keys(
    text: bytes, algorithms: tuple[str, ...], foreign: Collection[str]
) -> tuple[list[KeyMaterial], list[KeyFault]]:
    """The usable keys of a provider's set, and why the others are not.

    A key that names no algorithm is for the first of `algorithms` that fits it.
    Shapes: `foreign` are the thumbprints of keys that sign for somebody else.
    Raises: ValueError if it is no key set, has too many keys, or none that can be used.
    """
    key_set = read_key_set(_with_algorithms(text, algorithms))
    keys, faults = [], list(key_set.faults)
    for index, key in enumerate(key_set.keys):
        reason = _refusal(key, algorithms, foreign)
        if reason:
            faults.append(KeyFault(index, key.kid, reason))
        else:
            keys.append(key)
    if not keys:
        raise ValueError("no key that can be used")
    return keys, faults


def _refusal(key: KeyMaterial, algorithms: tuple[str, ...], foreign: Collection[str]) -> str:
    if key.public_key is None:
        return "a secret, where everybody reads it"
    if key.kid is None or len(key.kid) > MAX_KID_CHARS:
        return "no kid of a bearable length"
    if key.alg not in algorithms:
        return f"{key.alg} is not among the algorithms allowed"
    # SEC: one key, one purpose: else whoever holds it signs for two.
    return "the key of somebody else" if key.thumbprint in foreign else ""


def _with_algorithms(text: bytes, algorithms: tuple[str, ...]) -> bytes:
    """The set with an `alg` in each RSA key that has none: `read_key_set` takes no key whose algorithm is open."""
    document = parse_json(text)
    entries = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise ValueError("not a JWK set: a JSON object with an array of keys")
    if len(entries) > MAX_KEYS:
        raise ValueError(f"more than {MAX_KEYS} keys")
    chosen = next((name for name in algorithms if name[:2] in ("RS", "PS")), None)
    completed: list[Any] = [
        {**entry, "alg": chosen}
        if isinstance(entry, dict) and entry.get("kty") == "RSA" and "alg" not in entry and chosen is not None
        else entry
        for entry in entries
    ]
    return orjson.dumps({"keys": completed})


def provider_key(provider: CompiledProvider, material: KeyMaterial) -> Key:
    """A key of the provider as the verifier takes it."""
    return Key(
        material.kid,
        material.alg,
        material.verifying,
        issuer=provider.issuer,
        audiences=(provider.aud,),
        max_lifetime_s=provider.max_lifetime_s,
        mapping=provider.mapping,
    )

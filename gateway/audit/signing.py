"""Ed25519 over a context and canonical bytes, so that what is signed for one purpose says nothing for another. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey


def sign(context: bytes, canonical: bytes, key: Ed25519PrivateKey) -> str:
    """The signature in hex."""
    return key.sign(context + canonical).hex()


def is_signed(context: bytes, canonical: bytes, signature: str, keys: Sequence[Ed25519PublicKey]) -> bool:
    """Has one of the keys signed it? What is no signature at all is none."""
    for key in keys:
        try:
            key.verify(bytes.fromhex(signature), context + canonical)
        except (InvalidSignature, ValueError):
            continue
        return True
    return False

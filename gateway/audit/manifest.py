"""What belongs to a file that left the trail: its digest, signed. Pure but for the keys.

signed = Ed25519("caregate-manifest-1\\0" + canonical bytes)
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from gateway.audit.signing import is_signed, sign

_CONTEXT = b"caregate-manifest-1\0"


class Manifest(msgspec.Struct, frozen=True):
    """Shapes: `sha256` of the whole file, in hex; `checkpoint` the digest of the last checkpoint then, or "".
    Units: `*_ms` ms since 1970; `from_ms` and `to_ms` 0: no bound.
    """

    v: int
    file: str
    format: str
    sha256: str
    bytes: int
    records: int
    from_ms: int
    to_ms: int
    made_ms: int
    by: str
    checkpoint: str


class SealedManifest(msgspec.Struct, frozen=True):
    """`signature` in hex."""

    manifest: str
    signature: str


encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Manifest).decode
_decode_sealed = msgspec.json.Decoder(SealedManifest).decode


class ManifestBad(ValueError):
    """A manifest that vouches for nothing; the message says why."""


def seal(manifest: Manifest, key: Ed25519PrivateKey) -> bytes:
    """The manifest's file."""
    canonical = encode(manifest)
    return encode(SealedManifest(canonical.decode(), sign(_CONTEXT, canonical, key))) + b"\n"


def unseal(content: bytes, keys: Sequence[Ed25519PublicKey]) -> Manifest:
    """A manifest that one of the keys has signed.

    Raises: ManifestBad.
    """
    try:
        sealed = _decode_sealed(content)
        bytes.fromhex(sealed.signature)
        canonical = sealed.manifest.encode()
        if is_signed(_CONTEXT, canonical, sealed.signature, keys):
            return _decode(canonical)
    except ValueError:
        raise ManifestBad("it is no manifest") from None
    raise ManifestBad("no key that is known has signed it")

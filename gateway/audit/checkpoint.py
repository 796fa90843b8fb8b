"""Checkpoints: what a machine's chains were at a moment, signed, each bound to the one before. Pure but for the keys.

leaf(chain)  = SHA-256(0x00 chain sequence hash)        sequence as eight bytes, big-endian
root         = Merkle tree of RFC 9162, 2.1.1, over the leaves in the order of the chains' names
signed       = Ed25519("caregate-checkpoint-1\\0" + canonical bytes)
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from hashlib import sha256

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from gateway.audit.signing import is_signed, sign

_CONTEXT = b"caregate-checkpoint-1\0"
_NUMBER = struct.Struct(">Q")
FIRST_PREVIOUS = "0" * 64


class ChainHead(msgspec.Struct, frozen=True, array_like=True):
    """Where a chain stood: `hash` in hex. Units: `at_ms` when its owner last said so, ms since 1970."""

    chain: str
    sequence: int
    hash: str
    at_ms: int


class Checkpoint(msgspec.Struct, frozen=True):
    """Shapes: `source` names the series it belongs to, in which `number` counts from 1 without a gap; `previous` is the
    SHA-256 of the canonical bytes before, in hex; everything that happened until `covers_ms` is below `heads`.
    Units: `*_ms` milliseconds since 1970.
    """

    v: int
    source: str
    node: str
    number: int
    at_ms: int
    covers_ms: int
    previous: str
    heads: tuple[ChainHead, ...]
    root: str


class Sealed(msgspec.Struct, frozen=True):
    """A checkpoint as it is kept: a line of JSON in a file, a row of a table. `signature` in hex."""

    checkpoint: str
    signature: str


encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Checkpoint).decode
decode_sealed = msgspec.json.Decoder(Sealed).decode


class CheckpointBad(ValueError):
    """A checkpoint that says nothing: bad signature, bad root, not a checkpoint."""


def merkle_root(heads: Sequence[ChainHead]) -> str:
    """The root over chain heads, in hex."""
    leaves = [
        sha256(b"\0" + head.chain.encode() + _NUMBER.pack(head.sequence) + bytes.fromhex(head.hash)).digest()
        for head in heads
    ]
    return _root(leaves).hex()


def _root(hashes: list[bytes]) -> bytes:
    if not hashes:
        return sha256().digest()
    if len(hashes) == 1:
        return hashes[0]
    split = 1 << ((len(hashes) - 1).bit_length() - 1)
    return sha256(b"\1" + _root(hashes[:split]) + _root(hashes[split:])).digest()


def seal(checkpoint: Checkpoint, key: Ed25519PrivateKey) -> Sealed:
    """Sign a checkpoint."""
    canonical = encode(checkpoint)
    return Sealed(canonical.decode(), sign(_CONTEXT, canonical, key))


def unseal(sealed: Sealed, keys: Sequence[Ed25519PublicKey]) -> Checkpoint:
    """A checkpoint that one of the keys has signed.

    Raises: CheckpointBad.
    """
    canonical = sealed.checkpoint.encode()
    if not is_signed(_CONTEXT, canonical, sealed.signature, keys):
        raise CheckpointBad("no key that is known has signed it")
    try:
        checkpoint = _decode(canonical)
        if merkle_root(checkpoint.heads) == checkpoint.root:
            return checkpoint
    except ValueError as error:
        raise CheckpointBad(str(error)) from None
    raise CheckpointBad("its root is not that of its heads")


def digest(canonical: str) -> str:
    """What the next checkpoint has as `previous`."""
    return sha256(canonical.encode()).hexdigest()

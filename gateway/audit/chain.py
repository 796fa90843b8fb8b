"""The hash chain: each record's hash covers its predecessor's hash, its number and its canonical bytes. Pure.

hash(0) = SHA-256("caregate-audit-1\\0" + chain)
hash(n) = SHA-256(hash(n - 1) + n + event(n))       n as eight bytes, big-endian
"""

from __future__ import annotations

import struct
from hashlib import sha256

_NUMBER = struct.Struct(">Q")
DIGEST_BYTES = 32
GENESIS = b"caregate-audit-1\0"


def genesis(chain: str) -> bytes:
    """What the first record of a chain has as its predecessor's hash."""
    return sha256(GENESIS + chain.encode("ascii")).digest()


def link(previous: bytes, sequence: int, canonical: bytes) -> bytes:
    """The hash of record `sequence`."""
    return sha256(previous + _NUMBER.pack(sequence) + canonical).digest()

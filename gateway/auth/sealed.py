"""Private keys at rest: AES-256-GCM under a key-encryption key that the database does not have.

```
"CGK" | u8 version=1 | id of the key-encryption key (8 bytes) | nonce (12) | ciphertext and tag
```
Kid, role, algorithm and the header are authenticated with it: a row says nothing that was not sealed with the key.
"""

from __future__ import annotations

from typing import Final

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from gateway.auth.vault import Box, Unsealable

MIN_KEY_BYTES: Final = 32
_MAGIC: Final = b"CGK\x01"
_ID_BYTES: Final = 8


class KeyEncryptionKey:
    """One of them, by the bytes behind its reference. Raises: ValueError for a key that is too short."""

    def __init__(self, secret: bytes) -> None:
        if len(secret) < MIN_KEY_BYTES:
            raise ValueError(f"has {len(secret)} bytes, at least {MIN_KEY_BYTES} are needed")
        self.id = _derive(secret, b"caregate key-encryption key id", _ID_BYTES)
        self.box = Box(_derive(secret, b"caregate signing keys", 32))


def _derive(secret: bytes, purpose: bytes, length: int) -> bytes:
    return HKDF(algorithm=SHA256(), length=length, salt=None, info=purpose).derive(secret)


class KeySeal:
    """Seals under the first key, opens what any of them sealed."""

    def __init__(self, *keys: KeyEncryptionKey) -> None:
        self._first = keys[0]
        self._by_id = {key.id: key for key in keys}

    def seal(self, content: bytes, kid: str, role: str, alg: str) -> bytes:
        header = _MAGIC + self._first.id
        return header + self._first.box.seal(content, _about(header, kid, role, alg))

    def open(self, sealed: bytes, kid: str, role: str, alg: str) -> bytes:
        """Raises: Unsealable if another key sealed it, or anything of it is not as it was."""
        header, content = sealed[: len(_MAGIC) + _ID_BYTES], sealed[len(_MAGIC) + _ID_BYTES :]
        key = self._by_id.get(header[len(_MAGIC) :])
        if not header.startswith(_MAGIC) or key is None:
            raise Unsealable("sealed under a key-encryption key that is not known here")
        return key.box.open(content, _about(header, kid, role, alg))

    def is_current(self, sealed: bytes) -> bool:
        """Is it sealed under the first key?"""
        return sealed.startswith(_MAGIC + self._first.id)


def _about(header: bytes, kid: str, role: str, alg: str) -> bytes:
    return b"\0".join((header, kid.encode(), role.encode(), alg.encode()))

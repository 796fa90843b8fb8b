"""What is kept or handed out under a key that the database does not have: second factors, login forms, names in audit.

One key of the site (`CAREGATE_ACCOUNT_KEY`), and from it one for each purpose. Refresh tokens' successors are under a
key that the token itself gives, so that nobody reads them who does not have it.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import secrets
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

KEY_FILE: Final = "accounts.key"
MIN_KEY_BYTES: Final = 32
_NONCE_BYTES = 12


class Unsealable(ValueError):
    """What was sealed elsewhere, or was changed."""


class Box:
    """AES-256-GCM for one purpose."""

    def __init__(self, key: bytes) -> None:
        self._aead = AESGCM(key)

    def seal(self, content: bytes, about: bytes) -> bytes:
        """Shapes: `about` is not in it, but must be the same to open it."""
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._aead.encrypt(nonce, content, about)

    def open(self, sealed: bytes, about: bytes) -> bytes:
        """Raises: Unsealable."""
        try:
            return self._aead.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], about)
        except (InvalidTag, ValueError):
            raise Unsealable from None


class Vault:
    """Shapes: `factors` seals secrets of second factors about an account's id; `forms` login forms."""

    def __init__(self, key: bytes) -> None:
        """Raises: ValueError for a key that is too short."""
        if len(key) < MIN_KEY_BYTES:
            raise ValueError(f"has {len(key)} bytes, at least {MIN_KEY_BYTES} are needed")
        self.factors = Box(_derive(key, b"caregate second factors"))
        self.forms = Box(_derive(key, b"caregate login forms"))
        self._names = _derive(key, b"caregate names in audit")

    def alias(self, name: str) -> str:
        """What stands for a name that must not be told: the same for the same name, at this site alone."""
        return hmac.digest(self._names, name.encode("utf-8", "replace"), "sha256").hex()[:32]


def box_of(token: str) -> Box:
    """What only the holder of a token can open."""
    return Box(_derive(token.encode(), b"caregate successor"))


def _derive(key: bytes, purpose: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=purpose).derive(key)


def load_or_make_key(path: Path) -> bytes:
    """The key in a file; without one it is made, once, whoever comes first.

    Raises: OSError, ValueError if others may read it.
    """
    with contextlib.suppress(FileExistsError):
        if not path.exists():
            _make(path)
    if path.stat().st_mode & 0o077:
        raise ValueError(f"{path} is readable by group or others: chmod 600 it")
    return path.read_bytes().strip()


def _make(path: Path) -> None:
    """Raises: FileExistsError if another was first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "wb") as file:
            file.write(secrets.token_urlsafe(48).encode() + b"\n")
            file.flush()
            os.fsync(descriptor)
        # NOTE: a link, unlike a rename, does not replace what another worker put there a moment ago.
        os.link(temporary, path)
    finally:
        temporary.unlink()

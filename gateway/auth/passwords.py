"""Passwords: argon2id (RFC 9106), in threads of their own, few of them, with a short line before them.

A check takes a tenth of a second of one core and 64 MiB. More at once than there are threads wait; more than may wait
are told to come back. Every hash has the same cost, and where there is no account a dummy is checked.
"""

from __future__ import annotations

import unicodedata
from typing import Any, Final

import argon2
from gevent.threadpool import ThreadPool

from gateway.errors import Overloaded

MIN_CHARS: Final = 12
MAX_BYTES: Final = 1_024
MEMORY_KIB: Final = 65_536
PASSES: Final = 3
LANES: Final = 1
DUMMY: Final = "$argon2id$v=19$m=65536,t=3,p=1$Y2FyZWdhdGUtbm9ib2R5cw$3SaZdlNUC5eSSsxPgsYdtBT4JxfM5OYZ3k7o0ZFX9fE"
"""The form of a hash, of no password that anybody has."""

_hasher = argon2.PasswordHasher(
    time_cost=PASSES, memory_cost=MEMORY_KIB, parallelism=LANES, hash_len=32, salt_len=16, type=argon2.Type.ID
)


class PasswordRefused(ValueError):
    """A password that must not be set; the message says why, and not what it is."""


def hash_password(password: str, login: str = "") -> str:
    """The hash of a new password. Raises: PasswordRefused. Blocks for a tenth of a second."""
    plain = _plain(password)
    if len(plain.decode()) < MIN_CHARS:
        raise PasswordRefused(f"has fewer than {MIN_CHARS} characters")
    if len(plain) > MAX_BYTES:
        raise PasswordRefused(f"has more than {MAX_BYTES} bytes")
    if len(set(plain)) < MIN_CHARS // 3 or (login and login.casefold() in password.casefold()):
        raise PasswordRefused("is too easy to guess: it repeats a few characters, or has the login in it")
    return _hasher.hash(plain)


def matches(hashed: str, password: str) -> bool:
    """Is it the password? Blocks for a tenth of a second, whatever the answer."""
    plain = _plain(password)
    good = len(plain) <= MAX_BYTES
    try:
        # SEC: too long a one is cut and refused afterwards, so that it takes as long as any other.
        _hasher.verify(hashed, plain[:MAX_BYTES])
    except argon2.exceptions.VerificationError:
        return False
    return good


def _plain(password: str) -> bytes:
    """Source: RFC 8265, 4.2: one spelling of what looks the same."""
    return unicodedata.normalize("NFC", password).encode("utf-8", "surrogatepass")


class Passwords:
    """Checks in threads. Holds: up to `threads` of them, each 64 MiB while it checks."""

    def __init__(self, threads: int, line: int) -> None:
        """Shapes: `line` is how many may wait for a thread."""
        self._threads = threads
        self._most = threads + line
        self._pool: ThreadPool | None = None
        self._open = 0
        self.checked = 0

    def check(self, hashed: str | None, password: str) -> bool:
        """Is it the password of that hash? None: of nobody, which takes as long.

        Raises: Overloaded if too many wait.
        Yields to the hub: yes.
        """
        if self._open >= self._most:
            raise Overloaded("Too many logins at this moment", retry_after_s=1)
        if self._pool is None:
            self._pool = ThreadPool(self._threads)
        self._open += 1
        try:
            result: Any = self._pool.apply(matches, (hashed or DUMMY, password))
        finally:
            self._open -= 1
        self.checked += 1
        return bool(result) and hashed is not None

    def stop(self) -> None:
        """What runs is not waited for."""
        if self._pool is not None:
            self._pool.kill()

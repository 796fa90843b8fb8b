"""`x-caregate-context`: what the gateway vouches for about one relayed request, checked at the unit.

A compact JWS under HS256 with a key that only the gateway and this unit hold. Checked here with the standard library:
one algorithm, one key, and no second reading of the token (see `gateway.agent.identity` for why not PyJWT).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from pathlib import Path
from typing import Any

import orjson

MAX_TOKEN_BYTES = 8192
MIN_KEY_BYTES = 32


class ContextRefused(ValueError):
    """The message is one word for the log: malformed, algorithm, signature, audience, expired."""


class ContextVerifier:
    """Checks signature, `aud` and `exp` of a context token.

    Shapes: `more` are keys that are good too, for while one replaces another.
    Units: `leeway_s` seconds that the clocks of unit and gateway may differ.
    """

    def __init__(self, unit: str, key: bytes, *more: bytes, leeway_s: int = 5) -> None:
        """Raises: ValueError when a key is shorter than 32 bytes (RFC 7518 3.2)."""
        self._unit = unit
        self._leeway_s = leeway_s
        self._keys: tuple[bytes, ...] = ()
        self.adopt(key, *more)

    def adopt(self, *keys: bytes) -> None:
        """Take these keys instead. Raises: ValueError."""
        if any(len(key) < MIN_KEY_BYTES for key in keys):
            raise ValueError(f"a context key has at least {MIN_KEY_BYTES} bytes")
        self._keys = keys

    def verify(self, token: str, now_s: float) -> dict[str, Any]:
        """The claims. Raises: ContextRefused."""
        signed, signature = self._split(token)
        expected = (hmac.digest(key, signed, hashlib.sha256) for key in self._keys)
        if not any(hmac.compare_digest(each, signature) for each in expected):
            raise ContextRefused("signature")
        # SEC: nothing of the token is parsed as JSON before its signature held.
        header, payload = (_json_object(_decode(part)) for part in signed.split(b"."))
        if header.get("alg") != "HS256" or "crit" in header:
            raise ContextRefused("algorithm")
        self._check(payload, now_s)
        return payload

    def _split(self, token: str) -> tuple[bytes, bytes]:
        raw = token.encode("latin-1", "replace")
        if len(raw) > MAX_TOKEN_BYTES or raw.count(b".") != 2:
            raise ContextRefused("malformed")
        signed, _, tail = raw.rpartition(b".")
        return signed, _decode(tail)

    def _check(self, claims: dict[str, Any], now_s: float) -> None:
        if claims.get("aud") != self._unit:
            raise ContextRefused("audience")
        expires_s = claims.get("exp")
        if isinstance(expires_s, bool) or not isinstance(expires_s, int | float):
            raise ContextRefused("malformed")
        if now_s >= expires_s + self._leeway_s:
            raise ContextRefused("expired")


def load_context(unit: str, path: Path) -> ContextVerifier:
    """The key in a file, and the one before it beside it (`NAME.previous`), if there is one.

    NOTE: the bytes without a final line break are the key, as the gateway reads a secret file.
    Raises: OSError, ValueError.
    """
    keys = [path.read_bytes().rstrip(b"\r\n")]
    previous = path.with_name(f"{path.name}.previous")
    if previous.exists():
        keys.append(previous.read_bytes().rstrip(b"\r\n"))
    return ContextVerifier(unit, *keys)


def _decode(part: bytes) -> bytes:
    if b"=" in part:
        raise ContextRefused("malformed")
    try:
        return base64.b64decode(part + b"=" * (-len(part) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise ContextRefused("malformed") from error


def _json_object(raw: bytes) -> dict[str, Any]:
    try:
        value = orjson.loads(raw)
    except ValueError as error:
        raise ContextRefused("malformed") from error
    if not isinstance(value, dict):
        raise ContextRefused("malformed")
    return value

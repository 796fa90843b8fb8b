"""x-caregate-context: what the unit may know of the caller, signed under the unit's own key, for one minute."""

from __future__ import annotations

import hmac
from base64 import urlsafe_b64encode
from typing import Final

import orjson

LIFETIME_S: Final = 60


def _encode(data: bytes) -> bytes:
    return urlsafe_b64encode(data).rstrip(b"=")


_HEADER: Final = _encode(orjson.dumps({"alg": "HS256", "typ": "JWT"})) + b"."


def sign_context(key: bytes, claims: dict[str, object], now_s: float) -> str:
    """A compact JWS (HS256) of `claims` with `iat` and `exp`. Source: RFC 7515 7.1, RFC 7518 3.2."""
    whole = {**claims, "iat": int(now_s), "exp": int(now_s) + LIFETIME_S}
    signed = _HEADER + _encode(orjson.dumps(whole))
    return (signed + b"." + _encode(hmac.digest(key, signed, "sha256"))).decode("ascii")

"""Time-based one-time passwords (RFC 6238): HMAC-SHA-1, six digits, thirty seconds, as authenticator apps have them."""

from __future__ import annotations

import base64
import hmac
import secrets
from typing import Final
from urllib.parse import quote

STEP_S: Final = 30
DIGITS: Final = 6
SECRET_BYTES: Final = 20
WINDOW: Final = 1
"""Steps before and after now that are taken too: clocks differ, and people type slowly."""


def new_secret() -> bytes:
    return secrets.token_bytes(SECRET_BYTES)


def code_at(secret: bytes, step: int, digits: int = DIGITS) -> str:
    """The code of a step of time. Source: RFC 4226, 5.3."""
    mac = hmac.digest(secret, step.to_bytes(8, "big"), "sha1")
    offset = mac[-1] & 0x0F
    number = int.from_bytes(mac[offset : offset + 4], "big") & 0x7FFF_FFFF
    return str(number % 10**digits).zfill(digits)


def step_of(secret: bytes, code: str, now_s: float) -> int:
    """The step whose code this is, 0 if it is of none that counts now. Units: `now_s` seconds since 1970."""
    now = int(now_s) // STEP_S
    found = 0
    # SEC: all of them, whichever fits.
    for step in range(now - WINDOW, now + WINDOW + 1):
        if hmac.compare_digest(code_at(secret, step).encode(), code.encode("utf-8", "replace")):
            found = step
    return found


def uri_of(secret: bytes, login: str, issuer: str) -> str:
    """What an authenticator app reads, often as a QR code."""
    text = base64.b32encode(secret).decode().rstrip("=")
    return f"otpauth://totp/{quote(issuer)}:{quote(login)}?secret={text}&issuer={quote(issuer)}"

"""Secrets that may be guessed are refused, random ones never."""

from __future__ import annotations

import os
import secrets

import pytest

from gateway.config.weakness import MIN_BYTES, weakness


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: os.urandom(32), id="bytes"),
        pytest.param(lambda: secrets.token_hex(16).encode(), id="32 hexadecimal digits"),
        pytest.param(lambda: secrets.token_hex(32).encode(), id="64 hexadecimal digits"),
        pytest.param(lambda: secrets.token_urlsafe(32).encode(), id="base64url"),
    ],
)
def test_random_secrets_pass(make) -> None:
    """NOTE: of 600,000 random secrets of the shortest kinds fewer than one is refused; so this does not flicker."""
    refused = [reason for _ in range(2_000) if (reason := weakness(make(), "HS256")) is not None]
    assert refused == []


@pytest.mark.parametrize("alg", MIN_BYTES)
def test_length(alg: str) -> None:
    secret = os.urandom(MIN_BYTES[alg])
    assert weakness(secret, alg) is None
    assert "too short" in (weakness(secret[:-1], alg) or "")


@pytest.mark.parametrize(
    ("secret", "reason"),
    [
        (b"changeme" * 8, "repeats"),
        (b"ab" * 32, "repeats"),
        (b"0123456789abcdef" * 2, "repeats"),
        (b"\x00" * 64, "repeats"),
        (b"abcdefghijklmnopqrstuvwxyz012345", "sequence"),
        (bytes(range(64)), "sequence"),
        (b"aaaaaaaabbbbbbbbccccccccddddddde", "regular"),
        (b"your-256-bit-secret-your-own-256", "words"),
        (b"a-string-secret-at-least-256-bits-long", "words"),
        (b"this-is-a-very-long-secret-key-for-jwt-signing", "words"),
        (b"ChangeMe_Before_Production_Please!!!", "words"),
        (b"hJtXIZ2uSN5kbQfbtTNWbpdmhkV8FJG-Onbc6mxCcYg", "published"),
        (b"hJtXIZ2uSN5kbQfbtTNWbpdmhkV8FJG-Onbc6mxCcYg=", "published"),
        (b'{"kty":"oct","k":"hJtXIZ2uSN5kbQfbtTNWbpdmhkV8F"}', "another kind"),
        (b"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIDq3mQz7", "another kind"),
    ],
)
def test_guessable(secret: bytes, reason: str) -> None:
    assert reason in (weakness(secret, "HS256") or "")

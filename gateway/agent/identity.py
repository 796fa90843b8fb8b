"""The unit's key and the short-lived tokens signed with it.

NOTE: signed with `cryptography` directly: importing PyJWT costs the agent 9 MB of resident memory, a quarter of its
budget, for what is one signature here. The tests verify every algorithm's token with PyJWT.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import orjson
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

AUDIENCE = "unit-link"
LIFETIME_S = 300
"""The most that the gateway accepts (protocol page)."""
MIN_RSA_BITS = 2048
RECORD = "enrolled.json"
"""Beside a registered key: {unit, kid, registered_s}."""

Signer = Callable[[bytes], bytes]


class BadKey(ValueError):
    """A key file that cannot sign unit tokens; the message says why and quotes no key material."""


class UnitIdentity:
    """Who this agent is: signs what it shows the gateway."""

    def __init__(self, unit: str, kid: str, pem: bytes) -> None:
        """Raises: BadKey."""
        self.unit = unit
        self.kid = kid
        self.directory: Path | None = None
        """Where the key is kept, if it is one that the unit registered itself."""
        self.algorithm, self._sign = _signer(pem)

    def token(self, now_s: float) -> str:
        """A token for one connect or renewal, with a fresh `jti`.

        Units: `now_s` seconds since 1970.
        """
        return self.sign(AUDIENCE, now_s, LIFETIME_S)

    def adopt(self, other: UnitIdentity) -> None:
        """Sign with another key from now on."""
        self.kid, self.algorithm, self._sign = other.kid, other.algorithm, other._sign

    def sign(self, audience: str, now_s: float, lifetime_s: int, **more: object) -> str:
        """A JWS of this unit for an audience, with a fresh `jti` and further claims.

        Units: `now_s` seconds since 1970.
        """
        issued_s = int(now_s)
        header = {"alg": self.algorithm, "kid": self.kid, "typ": "JWT"}
        claims: dict[str, object] = {
            "iss": self.unit,
            "sub": self.unit,
            "aud": audience,
            "iat": issued_s,
            "exp": issued_s + lifetime_s,
            "jti": os.urandom(16).hex(),
            **more,
        }
        signed = _base64url(orjson.dumps(header)) + b"." + _base64url(orjson.dumps(claims))
        return (signed + b"." + _base64url(self._sign(signed))).decode("ascii")


def load_identity(unit: str, kid: str | None, path: Path) -> UnitIdentity:
    """The key of a file; one that was registered from there has its thumbprint for an id. Raises: BadKey, OSError."""
    pem = path.read_bytes()
    if kid is not None or not _is_registered(path.parent, unit):
        return UnitIdentity(unit, kid or unit, pem)
    identity = UnitIdentity(unit, kid_of(pem), pem)
    identity.directory = path.parent
    return identity


def _is_registered(directory: Path, unit: str) -> bool:
    try:
        record = orjson.loads((directory / RECORD).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(record, dict) and record.get("unit") == unit


def kid_of(pem: bytes) -> str:
    """The id under which the gateway registers an Ed25519 key. Raises: BadKey."""
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError):
        raise BadKey("not a PEM private key") from None
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise BadKey("not an Ed25519 key, as registered ones are")
    return thumbprint(key)


def thumbprint(key: ed25519.Ed25519PrivateKey) -> str:
    """Source: RFC 7638, RFC 8037 appendix A.3."""
    raw = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    members = b'{"crv":"Ed25519","kty":"OKP","x":"' + _base64url(raw) + b'"}'
    return _base64url(hashlib.sha256(members).digest()).decode("ascii")


def _signer(pem: bytes) -> tuple[str, Signer]:
    try:
        key = load_pem_private_key(pem, password=None)
    except TypeError as error:
        raise BadKey("the key is encrypted; the agent needs it without a passphrase") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise BadKey("not a PEM private key") from error
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return "EdDSA", key.sign
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return _ecdsa(key)
    if isinstance(key, rsa.RSAPrivateKey):
        return _rsa(key)
    raise BadKey("the key must be Ed25519, P-256, P-384 or RSA")


def _ecdsa(key: ec.EllipticCurvePrivateKey) -> tuple[str, Signer]:
    known: dict[str, tuple[str, hashes.HashAlgorithm, int]] = {
        "secp256r1": ("ES256", hashes.SHA256(), 32),
        "secp384r1": ("ES384", hashes.SHA384(), 48),
    }
    if key.curve.name not in known:
        raise BadKey("an elliptic curve key must be on P-256 or P-384")
    algorithm, digest, size = known[key.curve.name]

    def sign(message: bytes) -> bytes:
        r, s = decode_dss_signature(key.sign(message, ec.ECDSA(digest)))
        return r.to_bytes(size, "big") + s.to_bytes(size, "big")

    return algorithm, sign


def _rsa(key: rsa.RSAPrivateKey) -> tuple[str, Signer]:
    if key.key_size < MIN_RSA_BITS:
        raise BadKey(f"an RSA key must have at least {MIN_RSA_BITS} bits")
    return "RS256", lambda message: key.sign(message, padding.PKCS1v15(), hashes.SHA256())


def _base64url(raw: bytes) -> bytes:
    return base64.urlsafe_b64encode(raw).rstrip(b"=")

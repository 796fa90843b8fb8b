"""The one policy that all servers enforce, its keys and its tokens."""

from __future__ import annotations

import base64
import json
import secrets
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

ISSUER = "https://id.bench.test"
AUDIENCE = "bench-app"
KID_RSA, KID_HMAC, KID_OTHER = "bench-rs", "bench-hs", "bench-other"
ROLES = {"RS256": "patient", "HS256": "guest"}
"""The role of each algorithm's tokens."""
OTHER_ROLE = "outsider"
"""A role that no route lets in."""
PATIENT = "pat-0001"
UNIT = "bench-unit"
PORTAL_FUNCTION = "portal.patient_appointments"
LIFETIME_S = 7200


@dataclass(frozen=True, slots=True)
class Keys:
    """Shapes: PEM text, JWK set as JSON text, HMAC secrets' bytes; `other_secret` is that of OTHER_ROLE."""

    private_pem: str
    public_pem: str
    jwks_rsa: str
    jwks_hmac: str
    secret: bytes
    other_secret: bytes


@dataclass(frozen=True, slots=True)
class TokenKind:
    """How the tokens of a row are signed, and how many there are, each with its own subject and id."""

    algorithm: str
    count: int


@dataclass(frozen=True, slots=True)
class Portal:
    """Where the portal is.

    Shapes: `gateway_dsn` logs in as the gateway does, `admin_dsn` as the superuser, who sees all rows; `pid` is the
    postmaster's.
    """

    gateway_dsn: str
    admin_dsn: str
    pid: int

    @property
    def socket_directory(self) -> str:
        return parse_qs(urlsplit(self.admin_dsn).query)["host"][0]


def make_keys() -> Keys:
    """Fresh keys for one run."""
    private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    public = (
        private.public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        .decode()
    )
    jwk = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(private.public_key()))
    jwk |= {"kid": KID_RSA, "alg": "RS256", "use": "sig"}
    jwk.pop("key_ops", None)
    secret = secrets.token_hex(24).encode()
    octets = {
        "kty": "oct", "kid": KID_HMAC, "alg": "HS256",
        "k": base64.urlsafe_b64encode(secret).rstrip(b"=").decode(),
    }  # fmt: skip
    return Keys(
        pem, public, json.dumps({"keys": [jwk]}), json.dumps({"keys": [octets]}), secret, secrets.token_hex(24).encode()
    )


def write_tokens(keys: Keys, path: Path, kind: TokenKind) -> None:
    """One token a line."""
    sign = _signer(keys, kind.algorithm)
    with path.open("w") as out:
        out.writelines(sign(number, ROLES[kind.algorithm]) + "\n" for number in range(kind.count))


def wrong_role_token(keys: Keys, algorithm: str, *, own_key: bool) -> str:
    """A token of OTHER_ROLE, signed by that role's own key or by the one that signs all others."""
    return _signer(keys, "other" if own_key else algorithm)(0, OTHER_ROLE)


def _signer(keys: Keys, name: str) -> Callable[[int, str], str]:
    key, kid, algorithm = {
        "RS256": (keys.private_pem, KID_RSA, "RS256"),
        "HS256": (keys.secret, KID_HMAC, "HS256"),
        "other": (keys.other_secret, KID_OTHER, "HS256"),
    }[name]
    now = int(time.time())
    jws = jwt.PyJWS()
    loaded = jws.get_algorithm_by_name(algorithm).prepare_key(key)

    def sign(number: int, role: str) -> str:
        claims = {
            "iss": ISSUER, "aud": AUDIENCE, "sub": f"user-{number}", "role": role, "patient": PATIENT,
            "iat": now, "exp": now + LIFETIME_S, "jti": str(uuid.uuid4()),
        }  # fmt: skip
        return jws.encode(json.dumps(claims).encode(), loaded, algorithm, headers={"kid": kid, "typ": "JWT"})

    return sign

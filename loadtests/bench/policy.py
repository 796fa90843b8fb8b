"""The one policy that all servers enforce, its keys and its tokens."""

from __future__ import annotations

import base64
import json
import secrets
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

ISSUER = "https://id.bench.test"
AUDIENCE = "bench-app"
KID_RSA, KID_HMAC = "bench-rs", "bench-hs"
LIFETIME_S = 7200


@dataclass(frozen=True, slots=True)
class Keys:
    """Shapes: PEM text, JWK set as JSON text, the HMAC secret's bytes."""

    private_pem: str
    public_pem: str
    jwks_rsa: str
    jwks_hmac: str
    secret: bytes


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
    return Keys(pem, public, json.dumps({"keys": [jwk]}), json.dumps({"keys": [octets]}), secret)


def write_tokens(keys: Keys, path: Path, algorithm: str, count: int) -> None:
    """One token a line; each with its own subject and id."""
    key, kid = (keys.private_pem, KID_RSA) if algorithm == "RS256" else (keys.secret, KID_HMAC)
    role = "member" if algorithm == "RS256" else "guest"
    now = int(time.time())
    signer = jwt.PyJWS()
    loaded = signer.get_algorithm_by_name(algorithm).prepare_key(key)
    with path.open("w") as out:
        for number in range(count):
            claims = {
                "iss": ISSUER, "aud": AUDIENCE, "sub": f"user-{number}", "role": role,
                "iat": now, "exp": now + LIFETIME_S, "jti": str(uuid.uuid4()),
            }  # fmt: skip
            out.write(signer.encode(json.dumps(claims).encode(), loaded, algorithm, headers={"kid": kid, "typ": "JWT"}))
            out.write("\n")

"""What the tests of logins share: a document with apps, keys, and what clients prove themselves with."""

from __future__ import annotations

import base64
import hashlib
import json
import time
import uuid

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

URL = "https://api.test"
TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
FAILURES = 12
LOGIN_FAILURES = 4
PASSWORD = "correct horse battery"
VERIFIER = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"
CHALLENGE = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"
BACK = "https://app.test/back"
ROLES = ("patient", "practitioner", "auditor")
ACCOUNTS = {
    "anna": ("patient", {"patient": "pat-1"}), "weber": ("practitioner", {"units": ["north"]}),
    "olga": ("auditor", {}), "otto": ("auditor", {}), "dora": ("patient", {"patient": "pat-2"}),
}  # fmt: skip
WITH_FACTOR = "olga"
DISABLED = "dora"

CLIENT_KEYS = {name: ed25519.Ed25519PrivateKey.generate() for name in ("desk", "watch", "stranger")}
SCOPES = ["user/Observation.rs", "user/Patient.r", "user/Condition.cruds"]
DOCUMENT = {
    "version": 1,
    "audiences": {
        role: {"issuer": f"https://id.test/{role}",
               **({"cors": {"origins": ["https://app.test"], "credentials": True}} if role == "patient" else {})}
        for role in ROLES
    },
    "roles": {
        role: {
            "audience": role,
            "keys": [{"kid": f"{role}-1", "alg": "ES256", "public_key": f"file:{role}.pub",
                      "private_key": f"file:{role}.key"}],
            **({"scopes": SCOPES} if role == "practitioner" else {}),
        }
        for role in ROLES
    },
    "controllers": {
        "who": {"path": "/{any:path}", "methods": ["GET"], "audiences": list(ROLES), "roles": list(ROLES),
                "resource": "whoami", "scope": "none"},
    },
    "token_service": {"url": URL},
    "clients": {
        "watch": {"introspect": ["patient", "practitioner"],
                  "keys": [{"kid": "watch-1", "alg": "EdDSA", "public_key": "file:watch.pub"}]},
    },
    "apps": {
        "app": {"title": "Patients <app>", "roles": ["patient"], "proxies": True,
                "redirect_uris": [BACK, "https://app.test/other?x=1", "org.test.app:/back"]},
        "terminal": {"title": "Terminal", "roles": ["patient", "practitioner", "auditor"], "first_party": True},
        "desk": {"title": "Desk", "roles": ["practitioner", "patient"], "first_party": True, "redirect_uris": [BACK],
                 "keys": [{"kid": "desk-1", "alg": "EdDSA", "public_key": "file:desk.pub"}]},
        "bound": {"title": "Bound", "roles": ["patient"], "first_party": True, "dpop": "required"},
    },
}  # fmt: skip


def write(path, content):
    path.touch(mode=0o600)
    path.write_bytes(content)


def write_pair(directory, name, key):
    plain = serialization.NoEncryption()
    write(
        directory / f"{name}.key",
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain),
    )
    public = key.public_key()
    write(
        directory / f"{name}.pub",
        public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo),
    )


def proof(of="desk", key=None, **changes):
    """What an app or a client with a key proves itself with."""
    now = int(time.time())
    claims = {"iss": of, "sub": of, "aud": URL, "iat": now, "exp": now + 60, "jti": str(uuid.uuid4()), **changes}
    return {
        "client_assertion_type": TYPE,
        "client_assertion": jwt.encode(claims, CLIENT_KEYS[key or of], "EdDSA", {"kid": f"{of}-1"}),
    }


def dpop(key, *, htm="POST", htu=f"{URL}/auth/v1/token", typ="dpop+jwt", alg="ES256", jwk=None, sign=None, **changes):
    """A DPoP proof."""
    public = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(key.public_key()))
    claims = {"htm": htm, "htu": htu, "iat": int(time.time()), "jti": str(uuid.uuid4()), **changes}
    claims = {name: value for name, value in claims.items() if value is not None}
    return jwt.encode(claims, sign or key, alg, {"typ": typ, "jwk": public if jwk is None else jwk})


def thumbprint(key):
    public = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(key.public_key()))
    members = {name: public[name] for name in ("crv", "kty", "x", "y")}
    digest = hashlib.sha256(json.dumps(members, separators=(",", ":")).encode()).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def claims_of(token):
    return jwt.decode(token, options={"verify_signature": False})

"""Token verification against PyJWT and against the bare signature check of `cryptography`.

Every side checks signature, algorithm, issuer, audience and expiry; ours also role, lifetime, kid and all the rest.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from functools import cache
from time import time
from typing import Any

import jwt
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from fastpath.token import Key, TokenError, Verifier
from gateway.auth.keys import KeyMaterial, issue_token, load_private_key, load_secret
from loadtests.bench_fastpath.row import Row, Work

ISSUER, AUDIENCE = "https://id.example", "patient-app"
SECRET = "kJ8s-dfQ2m_zXw7vB4tYp0aLc9RhN3eUgVi6ToMx5Ek"
NOW = time()


def rows(fast: bool) -> list[Row]:
    many, few = (8, 4) if fast else (2_000, 200)
    hs256 = load_secret(SECRET, alg="HS256", kid="k")
    tokens = issue(hs256, many)
    pyjwt = pyjwt_work(tokens[:few])
    unseen = unseen_work(hs256, tokens)
    return [
        Row("token HS256, never seen", unseen, "PyJWT HS256", pyjwt, limit_ratio=0.13),
        Row("token HS256, cached", cached_work(hs256, tokens), "PyJWT HS256", pyjwt, limit_ratio=0.02, limit_ns=600),
        Row("token HS256, forged", forged_work(hs256, tokens), "PyJWT HS256", pyjwt),
        *[asymmetric(alg, few, limit) for alg, limit in (("RS256", 1.3), ("ES256", None), ("EdDSA", None))],
    ]


def issue(key: KeyMaterial, count: int) -> list[str]:
    claims = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "iat": int(NOW),
        "exp": int(NOW) + 3600,
        "role": "patient",
        "scope": "appointments.read results.read",
    }
    names = [f"pat-{number:05}" for number in range(count)]
    return [issue_token({**claims, "sub": name, "patient": name, "jti": f"jti-{name}"}, key) for name in names]


def verifier(key: KeyMaterial) -> Verifier:
    mine = Key(
        key.kid,
        key.alg,
        key.verifying,
        issuer=ISSUER,
        audiences={AUDIENCE},
        role="patient",
        max_lifetime_s=3600,
    )
    return Verifier([mine], known_audiences={AUDIENCE, "staff-portal", "partner-api"})


def unseen_work(key: KeyMaterial, tokens: list[str]) -> Work:
    ours = verifier(key)

    def run() -> None:
        for token in tokens:
            ours.verify(token, NOW)

    return Work(run, len(tokens), prepare=ours.clear)


def cached_work(key: KeyMaterial, tokens: list[str]) -> Work:
    """As in the gateway: the text is cut out of a header field each time, so nothing of it is hashed beforehand."""
    ours = verifier(key)
    fields = [f"Bearer {token}" for token in tokens]
    for field in fields:
        ours.verify(field[7:], NOW)

    def run() -> None:
        for field in fields:
            ours.verify(field[7:], NOW)

    return Work(run, len(fields))


def forged_work(key: KeyMaterial, tokens: list[str]) -> Work:
    ours = verifier(key)
    forged = [f"{token[:-4]}AAAA" for token in tokens]

    def run() -> None:
        for token in forged:
            try:
                ours.verify(token, NOW)
            except TokenError:
                continue
            raise AssertionError("a forged token was accepted")

    return Work(run, len(forged))


def pyjwt_work(tokens: list[str]) -> Work:
    secret, algorithms, options = SECRET.encode(), ["HS256"], {"require": ["exp", "sub"]}

    def run() -> None:
        for token in tokens:
            jwt.decode(token, secret, algorithms, options, audience=AUDIENCE, issuer=ISSUER)  # type: ignore[arg-type]

    return Work(run, len(tokens))


# --- asymmetric: the signature check alone is the peer


@cache
def private_key(alg: str) -> Any:
    if alg == "RS256":
        return rsa.generate_private_key(65537, 2048)
    return ec.generate_private_key(ec.SECP256R1()) if alg == "ES256" else ed25519.Ed25519PrivateKey.generate()


def asymmetric(alg: str, count: int, limit_ratio: float | None) -> Row:
    private = private_key(alg)
    key = load_private_key(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), alg=alg, kid="k")
    tokens = issue(key, count)
    return Row(
        f"token {alg}, never seen",
        unseen_work(key, tokens),
        f"cryptography {alg} alone",
        bare_work(alg, private.public_key().verify, tokens),
        limit_ratio=limit_ratio,
    )


def bare_work(alg: str, verify: Callable[..., None], tokens: list[str]) -> Work:
    arguments: tuple[object, ...] = {
        "RS256": (padding.PKCS1v15(), hashes.SHA256()),
        "ES256": (ec.ECDSA(hashes.SHA256()),),
        "EdDSA": (),
    }[alg]
    signed = [signature_and_data(alg, token) for token in tokens]

    def run() -> None:
        for signature, data in signed:
            verify(signature, data, *arguments)

    return Work(run, len(signed))


def signature_and_data(alg: str, token: str) -> tuple[bytes, bytes]:
    data, _, text = token.rpartition(".")
    raw = base64.urlsafe_b64decode(text + "==")
    if alg == "ES256":
        raw = encode_dss_signature(int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big"))
    return raw, data.encode()

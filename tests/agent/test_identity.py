"""Unit tokens, verified by PyJWT; keys that must not be used."""

from __future__ import annotations

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from gateway.agent.identity import BadKey, UnitIdentity

NOW_S = 1_800_000_000.9


def pem(key, encryption=None):
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption or NoEncryption())


@pytest.mark.parametrize(
    ("key", "algorithm"),
    [
        pytest.param(ed25519.Ed25519PrivateKey.generate(), "EdDSA", id="ed25519"),
        pytest.param(ec.generate_private_key(ec.SECP256R1()), "ES256", id="p-256"),
        pytest.param(ec.generate_private_key(ec.SECP384R1()), "ES384", id="p-384"),
        pytest.param(rsa.generate_private_key(65537, 2048), "RS256", id="rsa"),
    ],
)
def test_tokens_verify(key, algorithm):
    identity = UnitIdentity("linden-clinic", "k-1", pem(key))
    assert identity.algorithm == algorithm
    for _ in range(5):  # an ECDSA half with a leading zero must not come out short
        token = identity.token(NOW_S)
        assert jwt.get_unverified_header(token) == {"alg": algorithm, "kid": "k-1", "typ": "JWT"}
        claims = jwt.decode(
            token,
            key.public_key(),
            [algorithm],
            audience="unit-link",
            options={"verify_exp": False, "verify_iat": False},
        )
        assert claims.pop("jti")
        assert claims == {
            "iss": "linden-clinic",
            "sub": "linden-clinic",
            "aud": "unit-link",
            "iat": 1_800_000_000,
            "exp": 1_800_000_300,
        }


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"secret", id="not pem"),
        pytest.param(
            ed25519.Ed25519PrivateKey.generate()
            .public_key()
            .public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
            id="public",
        ),
        pytest.param(pem(ed25519.Ed25519PrivateKey.generate(), BestAvailableEncryption(b"x")), id="encrypted"),
        pytest.param(pem(ed448.Ed448PrivateKey.generate()), id="ed448"),
        pytest.param(pem(ec.generate_private_key(ec.SECP521R1())), id="p-521"),
        pytest.param(pem(rsa.generate_private_key(65537, 1024)), id="rsa 1024"),
        pytest.param(pem(dsa.generate_private_key(1024)), id="dsa"),
    ],
)
def test_keys_that_are_refused(text):
    with pytest.raises(BadKey) as caught:
        UnitIdentity("u", "k", text)
    assert "secret" not in str(caught.value)

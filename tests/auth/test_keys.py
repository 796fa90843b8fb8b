"""Keys from PEM, JWK and JWK sets: what is taken, what is refused and why, and that no message shows a key."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa, x25519
from joserfc import jwk as joserfc_jwk
from joserfc import jwt as joserfc_jwt

from fastpath.token import Key, Verifier
from gateway.auth.jwk import AsymmetricKey, parse_jwk, thumbprint
from gateway.auth.keys import (
    KeyMaterial,
    issue_token,
    load_key_set,
    load_private_key,
    load_public_key,
    load_secret,
    public_jwk,
    public_jwk_set,
    read_key_set,
)

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "jose.json").read_text())
SECRET_K = "hJtXIZ2uSN5kbQfbtTNWbpdmhkV8FJG-Onbc6mxCcYg"
OCT = {"kty": "oct", "alg": "HS256", "k": SECRET_K}


@pytest.fixture(scope="module")
def private_keys() -> dict[str, AsymmetricKey]:
    shared = rsa.generate_private_key(65537, 2048)
    return {
        **{f"{family}{size}": shared for family in ("RS", "PS") for size in (256, 384, 512)},
        "ES256": ec.generate_private_key(ec.SECP256R1()),
        "ES384": ec.generate_private_key(ec.SECP384R1()),
        "ES512": ec.generate_private_key(ec.SECP521R1()),
        "EdDSA": ed25519.Ed25519PrivateKey.generate(),
        "Ed448": ed448.Ed448PrivateKey.generate(),
    }


def private_pem(key: Any, password: bytes | None = None) -> str:
    encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption).decode()


def public_pem(key: Any) -> str:
    return (
        key.public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        .decode()
    )


def private_jwk(key: Any) -> dict[str, Any]:
    """As PyJWT writes it."""
    algorithm: Any = {
        rsa.RSAPrivateKey: jwt.algorithms.RSAAlgorithm,
        ec.EllipticCurvePrivateKey: jwt.algorithms.ECAlgorithm,
    }
    chosen = next((a for kind, a in algorithm.items() if isinstance(key, kind)), jwt.algorithms.OKPAlgorithm)
    return {k: v for k, v in chosen.to_jwk(key, as_dict=True).items() if k != "key_ops"}


def decide(material: KeyMaterial, token: str) -> dict[str, Any]:
    key = Key(material.kid, material.alg, material.verifying, issuer="i", audiences={"a"})
    return Verifier([key], require_kid=False).verify(token, 100).claims


CLAIMS = {"iss": "i", "aud": "a", "sub": "s", "exp": 200}
ALGORITHMS = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA", "Ed448"]


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("form", ["pem", "jwk"])
def test_asymmetric_round_trip(private_keys: dict[str, Any], name: str, form: str) -> None:
    key = private_keys[name]
    alg = "EdDSA" if name.startswith("Ed") else name
    text = private_pem(key) if form == "pem" else json.dumps(private_jwk(key))
    material = load_private_key(text, alg=alg, kid="k")
    token = issue_token(CLAIMS, material, headers={"typ": "at+jwt"})
    assert jwt.get_unverified_header(token) == {"typ": "at+jwt", "alg": alg, "kid": "k"}
    assert decide(load_public_key(public_pem(key), alg=alg, kid="k"), token) == CLAIMS
    published = load_public_key(json.dumps(public_jwk(material)))
    assert decide(published, token) == CLAIMS
    assert (published.kid, published.thumbprint) == ("k", material.thumbprint)


@pytest.mark.parametrize("name", ["RS256", "PS384", "ES256", "ES512", "EdDSA"])
def test_joserfc_reads_what_is_published(private_keys: dict[str, Any], name: str) -> None:
    material = load_private_key(private_pem(private_keys[name]), alg=name, kid="k")
    published = public_jwk(material)
    key = joserfc_jwk.import_key(published)
    token = issue_token(CLAIMS, material)
    assert joserfc_jwt.decode(token, key, algorithms=[name]).claims == CLAIMS
    assert key.thumbprint() == material.thumbprint


def test_signatures_of_another_key_are_refused(private_keys: dict[str, Any]) -> None:
    token = issue_token(CLAIMS, load_private_key(private_pem(private_keys["ES256"])))
    other = load_public_key(public_pem(ec.generate_private_key(ec.SECP256R1())))
    with pytest.raises(ValueError, match="signature: the signature does not fit"):
        decide(other, token)


def test_salt_of_pss_is_as_long_as_the_hash(private_keys: dict[str, Any]) -> None:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import padding

    material = load_private_key(private_pem(private_keys["PS256"]), alg="PS256")
    data = b"data"
    for salt_bytes, fits in ((32, True), (20, False), (0, False)):
        scheme = padding.PSS(padding.MGF1(hashes.SHA256()), salt_length=salt_bytes)
        signature = private_keys["PS256"].sign(data, scheme, hashes.SHA256())
        assert material.verifying.verifies(signature, data) is fits, salt_bytes  # type: ignore[union-attr]


# --- vectors


@pytest.mark.parametrize("vector", VECTORS["keys"], ids=lambda vector: vector["id"])
def test_vector(vector: dict[str, Any]) -> None:
    found = read_key_set(json.dumps({"keys": [vector["jwk"]]}))
    if "error" in vector:
        assert [str(fault) for fault in found.faults] == [f"keys[0]: {vector['error']}"]
        assert found.keys == ()
    else:
        assert [(key.alg, key.kid) for key in found.keys] == [(vector["alg"], vector["jwk"].get("kid"))]
        assert found.keys[0].thumbprint == vector.get("thumbprint", found.keys[0].thumbprint)


# --- JWKs that are refused

EC256 = next(v["jwk"] for v in VECTORS["keys"] if v["id"] == "rfc7515-a3")
RSA = next(v["jwk"] for v in VECTORS["keys"] if v["id"] == "rfc7517-a1-rsa")
ED = next(v["jwk"] for v in VECTORS["keys"] if v["id"] == "rfc8037-a2")


def modulus(bits: int) -> str:
    """An odd number of that length, as a JWK has it."""
    return base64.urlsafe_b64encode((2 ** (bits - 1) + 1).to_bytes(bits // 8, "big")).rstrip(b"=").decode()


BAD_JWKS: dict[str, tuple[Any, str]] = {
    "a string": ("key", "not a JSON object"),
    "no kty": ({"k": SECRET_K}, "kty is missing"),
    "kty is a number": ({**OCT, "kty": 1}, "kty is not a non-empty string"),
    "kty unknown": ({**OCT, "kty": "AKP"}, "kty 'AKP' is not"),
    "use enc": ({**OCT, "use": "enc"}, "use is not sig"),
    "use null": ({**OCT, "use": None}, "use is not sig"),
    "key_ops only signs": ({**OCT, "key_ops": ["sign"]}, "key_ops has no verify"),
    "key_ops empty": ({**OCT, "key_ops": []}, "key_ops has no verify"),
    "key_ops a string": ({**OCT, "key_ops": "verify"}, "key_ops is not an array"),
    "key_ops of numbers": ({**OCT, "key_ops": [1]}, "key_ops is not an array"),
    "key_ops twice": ({**OCT, "key_ops": ["verify", "verify"]}, "twice"),
    "alg of another family": ({**OCT, "alg": "RS256"}, "does not fit a secret"),
    "alg none": ({**OCT, "alg": "none"}, "alg 'none' is not"),
    "alg is a number": ({**OCT, "alg": 256}, "alg is not a non-empty string"),
    "alg missing for a secret": ({"kty": "oct", "k": SECRET_K}, "alg is missing"),
    "alg missing for RSA": ({k: v for k, v in RSA.items() if k != "alg"}, "alg is missing"),
    "RSA for ES256": ({**RSA, "alg": "ES256"}, "does not fit an RSA key"),
    "P-256 for ES384": ({**EC256, "alg": "ES384"}, "for ES256"),
    "Ed25519 for ES256": ({**ED, "alg": "ES256"}, "for EdDSA"),
    "kid empty": ({**OCT, "kid": ""}, "kid is not a non-empty string"),
    "kid is a number": ({**OCT, "kid": 7}, "kid is not a non-empty string"),
    "k missing": ({"kty": "oct", "alg": "HS256"}, "k is missing"),
    "k padded": ({**OCT, "k": SECRET_K + "="}, "k is not canonical base64url"),
    "k with spare bits": ({**OCT, "k": SECRET_K[:-1] + "h"}, "k is not canonical base64url"),
    "k not ascii": ({**OCT, "k": "é" * 43}, "k is not canonical base64url"),
    "k short": ({**OCT, "k": SECRET_K[:40]}, "30 bytes of secret are too few, HS256 takes at least 32"),
    "k short for HS512": ({**OCT, "alg": "HS512"}, "at least 64"),
    "n missing": ({k: v for k, v in RSA.items() if k != "n"}, "n is missing"),
    "e is one": ({**RSA, "e": "AQ"}, "not those of a public RSA key"),
    "e is even": ({**RSA, "e": "AQAC"}, "not those of a public RSA key"),
    "1024 bits": ({**RSA, "n": modulus(1024)}, "bits, not 2048 to 8192"),
    "a long exponent": ({**RSA, "e": modulus(1024)}, "exponent has more than 64 bits"),
    "8200 bits": ({**RSA, "n": modulus(8200)}, "bits, not 2048 to 8192"),
    "x short": ({**EC256, "x": EC256["x"][:40]}, "x has 30 bytes, not 32"),
    "not on the curve": ({**EC256, "y": EC256["x"]}, "not those of a public EC key"),
    "secp256k1": ({**EC256, "crv": "secp256k1"}, "crv 'secp256k1' is not P-256"),
    "crv missing": ({k: v for k, v in EC256.items() if k != "crv"}, "crv is missing"),
    "private RSA": ({**RSA, "d": "AQ"}, "d is a private member"),
    "private EC": ({**EC256, "d": EC256["x"]}, "d is a private member"),
    "primes": ({**RSA, "p": "AQ"}, "p is a private member"),
}


@pytest.mark.parametrize(("jwk", "message"), BAD_JWKS.values(), ids=BAD_JWKS)
def test_bad_jwk(jwk: Any, message: str) -> None:
    with pytest.raises(ValueError, match=r"^keys\[1\]: ") as caught:
        load_key_set(json.dumps({"keys": [{**OCT, "kid": "good"}, jwk]}))
    assert message in str(caught.value)
    values = [v for v in jwk.values() if isinstance(v, str) and len(v) > 20] if isinstance(jwk, dict) else []
    assert not [value for value in values if value in str(caught.value)], "shows no key"


def test_members_that_hold_a_secret_by_mistake_are_not_shown() -> None:
    misplaced = {"alg": SECRET_K, "kty": "oct", "k": SECRET_K}
    for jwk in (misplaced, {**misplaced, "alg": "HS256", "kty": SECRET_K}, {**EC256, "crv": SECRET_K}):
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            parse_jwk(jwk)
        assert SECRET_K not in str(caught.value)


BAD_SETS = {
    "not json": ("{", "not JSON"),
    "not utf-8": (b"\xff", "not JSON"),
    "byte order mark": (b'\xef\xbb\xbf{"keys":[]}', "not JSON"),
    "nan": ('{"keys":[], "x": NaN}', "NaN is not JSON"),
    "deep": ("[" * 100_000, "not JSON"),
    "array": ("[]", "not a JWK set"),
    "one key": (json.dumps(OCT), "not a JWK set"),
    "keys is an object": ('{"keys":{}}', "not a JWK set"),
    "no keys": ('{"keys":[]}', "no keys"),
    "duplicate member": ('{"keys":[],"keys":[]}', "duplicate member 'keys'"),
    "duplicate member of a key": ('{"keys":[{"kty":"oct","kty":"RSA"}]}', "duplicate member 'kty'"),
    "long": (" " * 1_048_577, "longer than"),
}


@pytest.mark.parametrize(("text", "message"), BAD_SETS.values(), ids=BAD_SETS)
def test_bad_set(text: str | bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_key_set(text)


def test_a_kid_used_twice_makes_both_keys_unusable() -> None:
    doubled = [
        {**OCT, "kid": "a"},
        {**EC256, "kid": "a"},
        {**ED, "kid": "b"},
        {**EC256, "kid": "b"},
        {**OCT, "kid": "c"},
    ]
    found = read_key_set(json.dumps({"keys": doubled}))
    assert [key.kid for key in found.keys] == ["c"]
    assert [str(fault) for fault in found.faults] == [
        "keys[0]: kid of a secret and of a public key",
        "keys[1]: kid of a secret and of a public key",
        "keys[2]: kid of several keys",
        "keys[3]: kid of several keys",
    ]


def test_unknown_members_are_ignored() -> None:
    assert load_key_set(json.dumps({"keys": [{**OCT, "x5t": "a", "ext": True}], "note": 1}))[0].alg == "HS256"


def test_good_key_ops() -> None:
    assert parse_jwk({**OCT, "use": "sig", "key_ops": ["sign", "verify"]}).alg == "HS256"


def test_strip_takes_the_public_half(private_keys: dict[str, Any]) -> None:
    text = json.dumps({"keys": [{**private_jwk(private_keys["ES256"]), "kid": "k"}]})
    assert len(read_key_set(text).faults) == 1
    key = read_key_set(text, strip=True).keys[0]
    assert key.signing is None
    assert key.thumbprint == load_public_key(public_pem(private_keys["ES256"])).thumbprint


# --- PEM and secrets


def test_pem_refusals(private_keys: dict[str, Any]) -> None:
    key = private_keys["ES256"]
    public, private = public_pem(key), private_pem(key)
    refused: dict[str, tuple[Any, str, str]] = {
        "private for public": (load_public_key, private, "not a PUBLIC KEY"),
        "public for private": (load_private_key, public, "not a PRIVATE KEY"),
        "two": (load_public_key, public + public, "2 PEM blocks"),
        "both": (load_public_key, public + private, "2 PEM blocks"),
        "nothing": (load_public_key, "", "not a key in PEM or JWK"),
        "text": (load_private_key, "hello", "not a key in PEM or JWK"),
        "damaged": (load_public_key, public.replace("M", "N"), "not a public key"),
        "damaged private": (load_private_key, private.replace("M", "N"), "not a private key"),
        "encrypted": (load_private_key, private_pem(key, b"password"), "not a PRIVATE KEY|encrypted"),
        "secret": (load_public_key, json.dumps(OCT), "kty is oct"),
        "secret to sign": (load_private_key, json.dumps({**OCT, "d": "a"}), "kty is oct"),
        "X25519": (load_public_key, public_pem(x25519.X25519PrivateKey.generate()), "signs no tokens"),
        "another curve": (load_public_key, public_pem(ec.generate_private_key(ec.SECP256K1())), "signs no tokens"),
        "no private half": (load_private_key, json.dumps(EC256), "d is missing"),
    }
    for load, text, message in refused.values():
        with pytest.raises(ValueError, match=message):
            load(text)


def test_private_jwk_of_two_halves(private_keys: dict[str, Any]) -> None:
    other = private_jwk(ec.generate_private_key(ec.SECP256R1()))
    mixed = {**private_jwk(private_keys["ES256"]), "x": other["x"], "y": other["y"]}
    with pytest.raises(ValueError, match="not those of a private EC key"):
        load_private_key(json.dumps(mixed))


@pytest.mark.parametrize("alg", ["ES384", "RS256", "HS256", "EdDSA", "none", "ES1"])
def test_pem_must_fit_the_algorithm(private_keys: dict[str, Any], alg: str) -> None:
    with pytest.raises(ValueError, match="alg"):
        load_public_key(public_pem(private_keys["ES256"]), alg=alg)


@pytest.mark.parametrize("alg", ["ES256", "RS1", "RSA", "HS256"])
def test_rsa_pem_must_fit_the_algorithm(private_keys: dict[str, Any], alg: str) -> None:
    with pytest.raises(ValueError, match="alg"):
        load_public_key(public_pem(private_keys["RS256"]), alg=alg)


def test_rsa_pem_with_a_long_exponent(private_keys: dict[str, Any]) -> None:
    numbers = private_keys["RS256"].public_key().public_numbers()
    slow = rsa.RSAPublicNumbers(e=numbers.n - 2, n=numbers.n).public_key()
    pem = slow.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    with pytest.raises(ValueError, match="exponent has more than 64 bits"):
        load_public_key(pem, alg="RS256")


def test_secret_text() -> None:
    plain = load_secret("x" * 31 + "é\n", alg="HS256", kid="k")
    assert plain.verifying == plain.signing == ("x" * 31 + "é").encode()
    assert load_secret(json.dumps(OCT), alg="HS256").thumbprint == thumbprint(parse_jwk(OCT).key)  # type: ignore[arg-type]
    assert "xxx" not in repr(plain)


def test_secret_refusals(private_keys: dict[str, Any]) -> None:
    der = (
        private_keys["ES256"]
        .public_key()
        .public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    refused = {
        "short": ("x" * 31, "HS256", "too few"),
        "pem": (public_pem(private_keys["ES256"]), "HS256", "asymmetric"),
        "der": (der, "HS256", "asymmetric"),
        "ssh": ("ssh-ed25519 " + "A" * 60, "HS256", "asymmetric"),
        "public jwk": (json.dumps(EC256), "HS256", "does not fit|for ES256"),
        "algorithm": ("x" * 64, "ES256", "does not fit a secret"),
        "jwk for another": (json.dumps(OCT), "HS384", "alg is HS256, not HS384"),
    }
    for text, alg, message in refused.values():
        with pytest.raises(ValueError, match=message):
            load_secret(text, alg=alg)


def test_kid_of_a_jwk_must_agree() -> None:
    assert load_secret(json.dumps({**OCT, "kid": "a"}), alg="HS256").kid == "a"
    with pytest.raises(ValueError, match="kid of the JWK is another"):
        load_secret(json.dumps({**OCT, "kid": "a"}), alg="HS256", kid="b")


# --- signing and publishing


def test_public_half_does_not_sign() -> None:
    with pytest.raises(ValueError, match="no private half"):
        issue_token(CLAIMS, load_public_key(json.dumps(EC256)))


def test_kid_of_the_key_wins_over_headers() -> None:
    material = load_secret("x" * 32, alg="HS256", kid="k")
    assert jwt.get_unverified_header(issue_token(CLAIMS, material, headers={"kid": "other"}))["kid"] == "k"


def test_secrets_are_not_published(private_keys: dict[str, Any]) -> None:
    secret = load_secret("x" * 32, alg="HS256", kid="s")
    private = load_private_key(private_pem(private_keys["RS256"]), alg="RS256", kid="r")
    with pytest.raises(ValueError, match="no public half"):
        public_jwk(secret)
    published = public_jwk_set([secret, private])
    assert [set(key) for key in published["keys"]] == [{"kty", "n", "e", "kid", "alg", "use"}]

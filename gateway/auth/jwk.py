"""JSON Web Keys: text to keys, strictly, and public keys to JSON.

What a reader of keys must not let pass: a second member of one name, a key for another use, a private key where a
public one belongs, a key too short for its algorithm. No message names a value of a key.

Source: RFC 7517 (JWK), RFC 7518 (parameters), RFC 7638 (thumbprints), RFC 8037 (OKP).
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import orjson
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm
from jwt.exceptions import InvalidKeyError

from fastpath.strict import decode_base64url
from fastpath.token import ALGORITHMS

PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | ed448.Ed448PublicKey
PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey
AsymmetricKey = PublicKey | PrivateKey

MIN_RSA_BITS = 2048
MAX_RSA_BITS = 8192
"""A longer modulus makes each verification a denial of service."""
MAX_EXPONENT_BITS = 64
"""As a longer exponent: 40 ms with one of 3,072 bits, of a key that whoever asks brings along (DPoP, an enrolment).

Source: OPENSSL_RSA_MAX_PUBEXP_BITS, which OpenSSL asks of keys over 3,072 bits alone.
"""

SECRET_BYTES = {"HS256": 32, "HS384": 48, "HS512": 64}
_EC_ALG = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}
_EC_CURVE = {"secp256r1": ("P-256", 32), "secp384r1": ("P-384", 48), "secp521r1": ("P-521", 66)}
_OKP_BYTES = {"Ed25519": 32, "Ed448": 57}
_PRIVATE_MEMBERS = ("d", "p", "q", "dp", "dq", "qi", "oth")
_FAMILY = {"oct": "HS", "RSA": ("RS", "PS"), "EC": "ES", "OKP": "EdDSA"}


@dataclass(frozen=True, slots=True)
class Jwk:
    """One key of a JWK; `key` is a secret (bytes), or a public or private key."""

    kid: str | None
    alg: str
    key: bytes | AsymmetricKey = field(repr=False)


def parse_json(text: str | bytes) -> Any:
    """A JSON text in UTF-8 without duplicate members. Raises: ValueError."""
    try:
        return json.loads(
            text.decode() if isinstance(text, bytes) else text,
            object_pairs_hook=_without_duplicates,
            parse_constant=_no_constant,
        )
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError):
        raise ValueError("not JSON in UTF-8 without a byte order mark") from None


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        names = [name for name, _ in pairs]
        doubled = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"duplicate member {_shown(doubled)}")
    return members


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _shown(name: object) -> str:
    """A member's name as it may stand in a message; SEC: a longer one may be key material in the wrong place."""
    return repr(name) if isinstance(name, str) and len(name) <= 32 else "of a long name"


def parse_jwk(jwk: object, *, alg: str | None = None, private: bool = False, strip: bool = False) -> Jwk:
    """One JWK as a key that verifies, or with `private` one that signs; it must fit `alg` if that is given.

    `strip` takes the public half of a private key instead of refusing it.
    Raises: ValueError, which names the member.
    """
    if not isinstance(jwk, dict):
        raise ValueError("not a JSON object")
    kty = _string(jwk, "kty")
    if kty not in _FAMILY:
        raise ValueError(f"kty {_shown(kty)} is not oct, RSA, EC or OKP")
    _check_use(jwk, "sign" if private else "verify")
    kid = _string(jwk, "kid") if "kid" in jwk else None
    declared = _string(jwk, "alg") if "alg" in jwk else None
    if declared is not None and declared not in ALGORITHMS:
        raise ValueError(f"alg {_shown(declared)} is not one that tokens are signed with")
    if None not in (alg, declared) and alg != declared:
        raise ValueError(f"alg is {declared}, not {alg}")
    key = _secret(jwk) if kty == "oct" else _asymmetric(jwk, kty, private=private, strip=strip)
    return Jwk(kid, resolve_alg(key, alg or declared), key)


def resolve_alg(key: bytes | AsymmetricKey, alg: str | None) -> str:
    """`alg` if the key fits it; without one, the only algorithm the key has. Raises: ValueError."""
    if isinstance(key, bytes):
        return _secret_alg(key, alg)
    if isinstance(key, rsa.RSAPublicKey | rsa.RSAPrivateKey):
        return _rsa_alg(key, alg)
    if isinstance(key, ec.EllipticCurvePublicKey | ec.EllipticCurvePrivateKey):
        only = _EC_ALG.get(key.curve.name)
    elif isinstance(
        key, ed25519.Ed25519PublicKey | ed25519.Ed25519PrivateKey | ed448.Ed448PublicKey | ed448.Ed448PrivateKey
    ):
        only = "EdDSA"
    else:
        only = None
    if only is None:
        raise ValueError("a key of a kind that signs no tokens")
    if alg not in (None, only):
        raise ValueError(f"alg {alg} does not fit the key, which is for {only}")
    return only


def _secret_alg(secret: bytes, alg: str | None) -> str:
    if alg is None:
        raise ValueError("alg is missing, and a secret fits several")
    if alg not in SECRET_BYTES:
        raise ValueError(f"alg {alg} does not fit a secret")
    if len(secret) < SECRET_BYTES[alg]:
        raise ValueError(f"{len(secret)} bytes of secret are too few, {alg} takes at least {SECRET_BYTES[alg]}")
    return alg


def _rsa_alg(key: rsa.RSAPublicKey | rsa.RSAPrivateKey, alg: str | None) -> str:
    if alg is None:
        raise ValueError("alg is missing, and an RSA key fits several")
    if alg not in ALGORITHMS or not alg.startswith(("RS", "PS")):
        raise ValueError(f"alg {alg} does not fit an RSA key")
    if not MIN_RSA_BITS <= key.key_size <= MAX_RSA_BITS:
        raise ValueError(f"an RSA key of {key.key_size} bits, not {MIN_RSA_BITS} to {MAX_RSA_BITS}")
    public = key.public_key() if isinstance(key, rsa.RSAPrivateKey) else key
    if public.public_numbers().e.bit_length() > MAX_EXPONENT_BITS:
        raise ValueError(f"an RSA key whose exponent has more than {MAX_EXPONENT_BITS} bits")
    return alg


def _string(jwk: dict[str, Any], name: str) -> str:
    value = jwk.get(name)
    if not isinstance(value, str) or not value:
        raise ValueError(f"{name} is {'not a non-empty string' if name in jwk else 'missing'}")
    return value


def _check_use(jwk: dict[str, Any], operation: str) -> None:
    if jwk.get("use", "sig") != "sig":
        raise ValueError("use is not sig")
    if "key_ops" not in jwk:
        return
    operations = jwk["key_ops"]
    if not isinstance(operations, list) or not all(isinstance(each, str) for each in operations):
        raise ValueError("key_ops is not an array of strings")
    if len(set(operations)) != len(operations):
        raise ValueError("key_ops names an operation twice")
    if operation not in operations:
        raise ValueError(f"key_ops has no {operation}")


def _octets(jwk: dict[str, Any], name: str, length: int | None = None) -> bytes:
    text = _string(jwk, name)
    try:
        value = decode_base64url(text)
    except ValueError:
        raise ValueError(f"{name} is not canonical base64url without padding") from None
    if length is not None and len(value) != length:
        raise ValueError(f"{name} has {len(value)} bytes, not {length}")
    return value


def _secret(jwk: dict[str, Any]) -> bytes:
    secret = _octets(jwk, "k")
    refuse_asymmetric_secret(secret)
    return secret


def refuse_asymmetric_secret(secret: bytes) -> None:
    """SEC: a public key taken for a secret lets everyone who knows it sign tokens. Raises: ValueError."""
    if b"-----BEGIN" in secret or secret.startswith((b"ssh-", b"ecdsa-sha2-")):
        raise ValueError("the secret is the text of an asymmetric key")
    try:
        serialization.load_der_public_key(secret)
    except Exception:  # whatever it is, it is no public key
        return
    raise ValueError("the secret is an asymmetric key")


def _asymmetric(jwk: dict[str, Any], kty: str, *, private: bool, strip: bool) -> AsymmetricKey:
    found = [name for name in _PRIVATE_MEMBERS if name in jwk]
    if found and not private and not strip:
        raise ValueError(f"{found[0]} is a private member, where a public key belongs")
    if private and "d" not in found:
        raise ValueError("d is missing, where a private key belongs")
    _check_members(jwk, kty, found if private else ())
    members = {name: value for name, value in jwk.items() if private or name not in _PRIVATE_MEMBERS}
    algorithm: Any = {"RSA": RSAAlgorithm, "EC": ECAlgorithm, "OKP": OKPAlgorithm}[kty]
    try:
        key: AsymmetricKey = algorithm.from_jwk(members)
        _check_pair(key)
    except (InvalidKeyError, ValueError):
        raise ValueError(f"the members are not those of {'a private' if private else 'a public'} {kty} key") from None
    return key


def _check_pair(key: AsymmetricKey) -> None:
    """SEC: a private key whose public half is another key's would sign under a name that is not its own."""
    if isinstance(key, ec.EllipticCurvePrivateKey):
        numbers = key.private_numbers()
        derived = ec.derive_private_key(numbers.private_value, key.curve).public_key()
        if derived.public_numbers() != numbers.public_numbers:
            raise ValueError("two halves of different keys")


def _check_members(jwk: dict[str, Any], kty: str, private: Iterable[str]) -> None:
    if kty == "RSA":
        for name in ("n", "e", *private):
            _octets(jwk, name)
        return
    crv = _string(jwk, "crv")
    lengths = _OKP_BYTES if kty == "OKP" else dict(_EC_CURVE.values())
    if crv not in lengths:
        raise ValueError(f"crv {_shown(crv)} is not {' or '.join(lengths)}")
    for name in ("x", "y", *private) if kty == "EC" else ("x", *private):
        _octets(jwk, name, lengths[crv])


# --- keys to JSON


def _base64url(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()


def _base64url_uint(value: int) -> str:
    return _base64url(value.to_bytes((value.bit_length() + 7) // 8 or 1, "big"))


def public_members(key: PublicKey) -> dict[str, str]:
    """The members of a JWK that make the public key: what a thumbprint is taken of."""
    if isinstance(key, rsa.RSAPublicKey):
        rsa_numbers = key.public_numbers()
        return {"kty": "RSA", "n": _base64url_uint(rsa_numbers.n), "e": _base64url_uint(rsa_numbers.e)}
    if isinstance(key, ec.EllipticCurvePublicKey):
        crv, size = _EC_CURVE[key.curve.name]
        ec_numbers = key.public_numbers()
        x, y = (_base64url(value.to_bytes(size, "big")) for value in (ec_numbers.x, ec_numbers.y))
        return {"kty": "EC", "crv": crv, "x": x, "y": y}
    crv = "Ed25519" if isinstance(key, ed25519.Ed25519PublicKey) else "Ed448"
    return {"kty": "OKP", "crv": crv, "x": _base64url(key.public_bytes_raw())}


def thumbprint(key: bytes | PublicKey) -> str:
    """The same for the same key whatever its kid or spelling (RFC 7638, SHA-256).

    SEC: that of a secret is for comparing only, it tells guesses from the truth.
    """
    members = {"kty": "oct", "k": _base64url(key)} if isinstance(key, bytes) else public_members(key)
    return _base64url(hashlib.sha256(orjson.dumps(members, option=orjson.OPT_SORT_KEYS)).digest())

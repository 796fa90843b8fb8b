"""Keys that verify and sign tokens: from PEM, JWK or JWK set text to what `fastpath.token.Key` takes.

Raises everywhere: ValueError, which says what is wrong and where, and never shows key material.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jwt
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

import fastpath.rsa
from gateway.auth.jwk import (
    AsymmetricKey,
    Jwk,
    PrivateKey,
    PublicKey,
    parse_json,
    parse_jwk,
    public_members,
    refuse_asymmetric_secret,
    resolve_alg,
    thumbprint,
)

MAX_KEY_TEXT_BYTES = 1_048_576
_FAST_BITS = 2048
_HASH: dict[str, hashes.HashAlgorithm] = {"256": hashes.SHA256(), "384": hashes.SHA384(), "512": hashes.SHA512()}


class SignatureCheck:
    """A public key bound to the one algorithm it verifies: the material of a `fastpath.token.Key`.

    Shapes: `verifies(signature, data)` says whether the key has signed `data`.
    """

    __slots__ = ("alg", "verifies")

    def __init__(self, alg: str, public_key: PublicKey) -> None:
        self.alg = alg
        judged = partial(_is_signed, public_key.verify, _verify_arguments(alg))
        modulus = _fast_modulus(alg, public_key)
        self.verifies: Callable[[bytes, bytes], bool] = (
            judged if modulus is None else fastpath.rsa.Check(modulus, judged).verifies
        )


def _is_signed(verify: Callable[..., None], arguments: tuple[object, ...], signature: bytes, data: bytes) -> bool:
    """What cryptography says."""
    try:
        verify(signature, data, *arguments)
    except InvalidSignature:
        return False
    return True


def _fast_modulus(alg: str, key: PublicKey) -> fastpath.rsa.Modulus | None:
    """What verifies faster than cryptography, where the processor and the key allow."""
    if fastpath.rsa.WAYS[0] == "plain" or not alg.startswith("RS") or not isinstance(key, rsa.RSAPublicKey):
        return None
    numbers = key.public_numbers()
    if key.key_size != _FAST_BITS or numbers.e != fastpath.rsa.EXPONENT:
        return None
    return fastpath.rsa.Modulus(numbers.n, alg[2:])


def _verify_arguments(alg: str) -> tuple[object, ...]:
    """Source: RFC 7518, 3.3 to 3.5: the salt of PS* is as long as the hash."""
    if alg == "EdDSA":
        return ()
    digest = _HASH[alg[2:]]
    if alg.startswith("ES"):
        return (ec.ECDSA(digest),)
    if alg.startswith("RS"):
        return (padding.PKCS1v15(), digest)
    return (padding.PSS(padding.MGF1(digest), salt_length=digest.digest_size), digest)


@dataclass(frozen=True, slots=True)
class KeyMaterial:
    """One key and its algorithm.

    Shapes: `verifying` is the material of a `fastpath.token.Key`; `signing` is None where only the public half is
    known; equal `thumbprint` means the same key, whatever its kid.
    """

    kid: str | None
    alg: str
    thumbprint: str = field(repr=False)
    verifying: bytes | SignatureCheck = field(repr=False)
    signing: bytes | PrivateKey | None = field(repr=False, default=None)
    public_key: PublicKey | None = field(repr=False, default=None)


def _from_secret(secret: bytes, alg: str, kid: str | None) -> KeyMaterial:
    return KeyMaterial(kid, alg, thumbprint(secret), secret, secret)


def _from_asymmetric(key: AsymmetricKey, alg: str, kid: str | None) -> KeyMaterial:
    private = key if isinstance(key, PrivateKey) else None
    public: PublicKey = key.public_key() if isinstance(key, PrivateKey) else key
    return KeyMaterial(kid, alg, thumbprint(public), SignatureCheck(alg, public), private, public)


def _from_jwk(jwk: Jwk, kid: str | None) -> KeyMaterial:
    if None not in (jwk.kid, kid) and jwk.kid != kid:
        raise ValueError("kid of the JWK is another one")
    chosen = kid or jwk.kid
    if isinstance(jwk.key, bytes):
        return _from_secret(jwk.key, jwk.alg, chosen)
    return _from_asymmetric(jwk.key, jwk.alg, chosen)


def load_secret(text: str | bytes, *, alg: str, kid: str | None = None) -> KeyMaterial:
    """A shared secret for HS*: an `oct` JWK, or the text itself without the line end at its end.

    Raises: ValueError if it is too short for the algorithm or looks like an asymmetric key.
    """
    raw = text.encode() if isinstance(text, str) else text
    if raw.lstrip().startswith(b"{"):
        return _from_jwk(parse_jwk(parse_json(raw), alg=alg), kid)
    secret = raw.removesuffix(b"\n").removesuffix(b"\r")
    refuse_asymmetric_secret(secret)
    return _from_secret(secret, resolve_alg(secret, alg), kid)


def load_public_key(text: str | bytes, *, alg: str | None = None, kid: str | None = None) -> KeyMaterial:
    """A public key from PEM or a JWK. Raises: ValueError, also for a private key."""
    raw = text.encode() if isinstance(text, str) else text
    if raw.lstrip().startswith(b"{"):
        return _from_jwk(_asymmetric_only(parse_jwk(parse_json(raw), alg=alg)), kid)
    _check_one_pem(raw, "PUBLIC KEY")
    try:
        key: Any = serialization.load_pem_public_key(raw)
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError("not a public key in PEM or JWK") from None
    return _from_asymmetric(key, resolve_alg(key, alg), kid)


def load_private_key(text: str | bytes, *, alg: str | None = None, kid: str | None = None) -> KeyMaterial:
    """A private key from PEM (not encrypted) or a JWK. Raises: ValueError."""
    raw = text.encode() if isinstance(text, str) else text
    if raw.lstrip().startswith(b"{"):
        return _from_jwk(_asymmetric_only(parse_jwk(parse_json(raw), alg=alg, private=True)), kid)
    _check_one_pem(raw, "PRIVATE KEY")
    try:
        key: Any = serialization.load_pem_private_key(raw, password=None)
    except TypeError:
        raise ValueError("the private key is encrypted") from None
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError("not a private key in PEM or JWK") from None
    return _from_asymmetric(key, resolve_alg(key, alg), kid)


def _asymmetric_only(jwk: Jwk) -> Jwk:
    if isinstance(jwk.key, bytes):
        raise ValueError("kty is oct, where an asymmetric key belongs")
    return jwk


def _check_one_pem(raw: bytes, label: str) -> None:
    blocks = raw.count(b"-----BEGIN ")
    if blocks != 1:
        raise ValueError(f"{blocks} PEM blocks, not one" if blocks else "not a key in PEM or JWK")
    if f"{label}-----".encode() not in raw:
        raise ValueError(f"the PEM block is not a {label}")


# --- key sets


@dataclass(frozen=True, slots=True)
class KeyFault:
    """A key of a set that must not be used: `index` in the set, its `kid` if that is known."""

    index: int
    kid: str | None
    reason: str

    def __str__(self) -> str:
        return f"keys[{self.index}]: {self.reason}"


@dataclass(frozen=True, slots=True)
class KeySet:
    keys: tuple[KeyMaterial, ...]
    faults: tuple[KeyFault, ...]


def read_key_set(text: str | bytes, *, strip: bool = False) -> KeySet:
    """The usable keys of a JWK set, and why the others are not.

    SEC: a kid used twice makes all keys of it unusable: which of them (a secret, a public key?) a token means would be
    the sender's choice.

    `strip` takes private keys by their public half instead of refusing them.
    Raises: ValueError if the text is no JWK set at all.
    """
    if len(text) > MAX_KEY_TEXT_BYTES:
        raise ValueError(f"longer than {MAX_KEY_TEXT_BYTES} bytes")
    document = parse_json(text)
    entries = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise ValueError("not a JWK set: a JSON object with an array of keys")
    doubled = _doubled_kids(entries)
    keys: list[KeyMaterial] = []
    faults: list[KeyFault] = []
    for index, entry in enumerate(entries):
        kid = _kid_of(entry)
        if kid in doubled:
            faults.append(KeyFault(index, kid, doubled[kid]))
            continue
        try:
            keys.append(_from_jwk(parse_jwk(entry, strip=strip), None))
        except ValueError as error:
            faults.append(KeyFault(index, kid, str(error)))
    return KeySet(tuple(keys), tuple(faults))


def load_key_set(text: str | bytes) -> tuple[KeyMaterial, ...]:
    """The keys of a JWK set in which every key is good. Raises: ValueError, which names each fault."""
    key_set = read_key_set(text)
    if key_set.faults:
        raise ValueError("; ".join(map(str, key_set.faults)))
    if not key_set.keys:
        raise ValueError("no keys")
    return key_set.keys


def _kid_of(entry: object) -> str | None:
    kid = entry.get("kid") if isinstance(entry, dict) else None
    return kid if isinstance(kid, str) else None


def _doubled_kids(entries: list[object]) -> dict[str | None, str]:
    kinds: dict[str, list[bool]] = {}
    for entry in entries:
        kid = _kid_of(entry)
        if kid is not None and isinstance(entry, dict):
            kinds.setdefault(kid, []).append(entry.get("kty") == "oct")
    return {
        kid: "kid of a secret and of a public key" if len(set(secret)) > 1 else "kid of several keys"
        for kid, secret in kinds.items()
        if len(secret) > 1
    }


# --- signing and publishing


def issue_token(claims: Mapping[str, Any], key: KeyMaterial, *, headers: Mapping[str, Any] | None = None) -> str:
    """A compact JWS of the claims, under the key's algorithm and kid. Raises: ValueError without a private half."""
    if key.signing is None:
        raise ValueError("the key has no private half to sign with")
    named = {} if key.kid is None else {"kid": key.kid}
    return jwt.encode(dict(claims), key.signing, algorithm=key.alg, headers={**(headers or {}), **named})


def public_jwk(key: KeyMaterial) -> dict[str, str]:
    """The public key as a JWK for others to verify with. Raises: ValueError for a secret."""
    if key.public_key is None:
        raise ValueError("a secret has no public half")
    named = {} if key.kid is None else {"kid": key.kid}
    return {**public_members(key.public_key), **named, "alg": key.alg, "use": "sig"}


def public_jwk_set(keys: list[KeyMaterial] | tuple[KeyMaterial, ...]) -> dict[str, list[dict[str, str]]]:
    """A JWK set of the public keys among `keys`; secrets are left out."""
    return {"keys": [public_jwk(key) for key in keys if key.public_key is not None]}

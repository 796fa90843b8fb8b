"""30,000 generated and damaged tokens: never more lenient than PyJWT, and every refusal beyond PyJWT's has its reason.

PyJWT is asked with every check it has: one algorithm, the key's audience, the issuer; exp, aud, iss and sub required.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import json
import random
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, tzinfo
from functools import lru_cache
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from joserfc import jwk as joserfc_jwk
from joserfc import jwt as joserfc_jwt
from joserfc.jws import JWSRegistry

from fastpath.token import Key, TokenError, Verified, Verifier
from gateway.auth.keys import KeyMaterial, issue_token, load_private_key, load_secret

TOKENS = 100_000
NOW = 1_700_000_000.25
ISSUER = "https://id.example"
HASHES = {"HS256": "sha256", "HS384": "sha384", "HS512": "sha512"}

ALLOWED_BEYOND_PYJWT = {
    ("malformed", "the token is not three parts of base64url"): "one token has one spelling: no padding, no foreign "
    "character skipped, no spare bits; a detached payload is none",
    (
        "malformed",
        "the header is not JSON in UTF-8",
    ): "json.loads guesses UTF-16, UTF-32 and byte order marks, knows NaN",
    ("malformed", "the payload is not JSON in UTF-8"): "as for the header; a lone surrogate has no UTF-8",
    ("malformed", "the header has a duplicate member"): "which of the two counts differs between readers",
    ("malformed", "the payload has a duplicate member"): "which of the two counts differs between readers",
    ("malformed", "the payload is nested too deeply"): "bounded work",
    ("malformed", "the header is nested too deeply"): "bounded work",
    ("malformed", "the payload has an escaped NUL"): "neither PostgreSQL's text nor a C string holds one",
    ("malformed", "the header has an escaped NUL"): "neither PostgreSQL's text nor a C string holds one",
    ("malformed", "the payload has an integer beyond 64 bits"): "readers round it, each in its way",
    ("malformed", "the header has an integer beyond 64 bits"): "readers round it, each in its way",
    ("too-large", "the token is longer than the gateway accepts"): "bounded work before anything is authenticated",
    ("header", "the header embeds a key or asks for an extension"): "a key is never taken from a token, RFC 8725, 3.10",
    ("header", "typ is not that of a bearer token"): "another kind of JWT of the same issuer, RFC 8725, 3.11",
    ("header", "cty is not a string"): "RFC 7515, 4.1.10",
    ("claims", "exp is not a number of seconds from 1970 to 9999"): "PyJWT takes text, booleans and 1e30, RFC 7519, 2",
    ("claims", "nbf is not a number of seconds from 1970 to 9999"): "PyJWT takes text and booleans, RFC 7519, 2",
    ("claims", "iat is not a number of seconds from 1970 to 9999"): "PyJWT takes text and booleans, RFC 7519, 2",
    ("claims", "scope is not a string or an array of strings"): "RFC 8693, 4.2",
    ("claims", "jti is not a non-empty string"): "tokens are revoked by jti",
    ("subject", "sub is not a non-empty string"): "an empty name is nobody's",
    ("audience", "the token is for more than one of our audiences"): "a token is for one of our audiences",
    ("bound", "the token is bound to a key of the sender's"): "a bearer proves no key, RFC 7800, 3.1",
    ("role", "the role is not the key's"): "the key decides the role",
    ("lifetime", "the token lives longer than the key allows"): "the role's maximum lifetime",
    ("not-yet-valid", "the token is not valid yet"): "PyJWT cuts off the fraction of nbf",
    ("issued-in-future", "the token was issued in the future"): "PyJWT cuts off the fraction of iat",
}


class Clock(datetime):
    @classmethod
    def now(cls, tz: tzinfo | None = None) -> datetime:
        return datetime.fromtimestamp(NOW, UTC)


def b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def pem(key: Any) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


MATERIAL: dict[str, KeyMaterial] = {
    key.kid or "": key
    for key in (
        load_secret(bytes(range(1, 33)), alg="HS256", kid="patient"),
        load_secret(bytes(range(2, 34)), alg="HS256", kid="clerk"),
        load_secret(bytes(range(3, 67)), alg="HS512", kid="admin"),
        load_private_key(pem(rsa.generate_private_key(65537, 2048)), alg="RS256", kid="partner"),
        load_private_key(pem(ec.derive_private_key(12345, ec.SECP256R1())), alg="ES256", kid="doctor"),
        load_private_key(pem(ed25519.Ed25519PrivateKey.from_private_bytes(bytes(32))), alg="EdDSA", kid="auditor"),
    )
}
SECRETS = [kid for kid, key in MATERIAL.items() if key.alg in HASHES]
ASYMMETRIC = [kid for kid in MATERIAL if kid not in SECRETS]
AUDIENCES = {kid: f"aud-{kid}" for kid in MATERIAL}
PYJWT_KEYS: dict[str, Any] = {kid: key.public_key or key.signing for kid, key in MATERIAL.items()}


def make_verifier() -> Verifier:
    return Verifier(
        [
            Key(kid, key.alg, key.verifying, issuer=ISSUER, audiences={AUDIENCES[kid]}, role=kid, max_lifetime_s=3600)
            for kid, key in MATERIAL.items()
        ],
        cache_size=64,
    )


# --- the oracle


@lru_cache(maxsize=4096)
def pyjwt_kid(segment: str) -> str | None:
    try:
        return jwt.get_unverified_header(f"{segment}.e30.").get("kid")
    except jwt.PyJWTError:
        return None


def pyjwt_claims(token: str) -> dict[str, Any] | None:
    kid = pyjwt_kid(token.partition(".")[0])
    if kid not in MATERIAL:
        return None
    try:
        return jwt.decode(
            token,
            PYJWT_KEYS[kid],
            [MATERIAL[kid].alg],
            {"require": ["exp", "aud", "iss", "sub"]},
            audience=[AUDIENCES[kid]],
            issuer=ISSUER,
        )
    except (jwt.PyJWTError, binascii.Error, UnicodeError):
        return None


# --- the generator: a sound token, changed in its claims, its header, its JSON text, its key or its characters

JUNK: list[Any] = [None, True, False, 0, 1, -1, 1.5, "", "x", "0", [], ["x"], {}, {"a": 1}, 1e30, 10**18]
TIMES: list[Any] = [
    NOW - 600, NOW - 10, int(NOW), NOW, NOW + 0.5, int(NOW) + 1, NOW + 600, NOW + 3600, NOW + 7200, 0, -1, 1e12, 1e30,
    str(int(NOW) + 60), f" {int(NOW) + 60} ", "soon", True, None, 253402300799, 253402300800, 10**400, -0.0,
]  # fmt: skip
CLAIM_VALUES: dict[str, list[Any]] = {
    "exp": TIMES,
    "nbf": TIMES,
    "iat": TIMES,
    "iss": [ISSUER, ISSUER.upper(), [ISSUER], "https://evil.example"],
    "aud": [["aud-patient"], ["aud-patient", "x"], ["aud-patient", "aud-clerk"], "aud-clerk", ["aud-patient"] * 2, "x"],
    "sub": ["pat-0001", "", " ", "é\U0001f600", "a" * 6500],
    "jti": ["a1", "", "a\0b"],
    "cnf": [{"jkt": "a"}, {}],
    "role": ["patient", "admin", ["patient"], ""],
    "scope": ["a b", "", ["a"], [1], {"a": 1}],
    "name": ["Zoë", "\u2028", "\ud800", "a\0b", 2**63, 10**19, -(10**19), 1e400, float("nan")],
    "deep": [eval("[" * n + "]" * n) for n in (3, 62, 63, 64, 90)],
}
HEADER_VALUES: dict[str, list[Any]] = {
    "alg": ["HS256", "HS384", "HS512", "RS256", "ES256", "none", "None", "hs256", "EdDSA", None, 1, ["HS256"]],
    "kid": [*MATERIAL, "nobody", "", None, 1, ["patient"], "patient\0"],
    "typ": ["JWT", "jwt", "at+jwt", "dpop+jwt", "JOSE+JSON", None, 1, ""],
    "crit": [[], ["exp"], ["b64"], "exp", None],
    "b64": [True, False, None],
    "jwk": [{"kty": "oct", "k": "AAAA"}, None],
    "jku": ["https://evil.example"],
    "x5u": ["https://evil.example"],
    "x5c": [[], ["MIIB"]],
    "x5t": ["a"],
    "zip": ["DEF"],
    "cty": ["JWT", "json"],
    "note": ["a\0b", 10**30, "\ud800", float("nan"), eval("[" * 70 + "]" * 70), {"a": [1]}],
}
ENCODINGS = ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-8-sig", "latin-1", "utf-7"]
NOT_JSON = ["NaN", "-Infinity", "1e999", "01", "1.", "'a'", '"\\ud800"', "tru", ""]
LAST_MEMBERS = [
    *[f', "x": {value}' for value in NOT_JSON],
    *[f', "{name}": "a"' for name in ("sub", "alg", "kid", "x", "exp")],
    ', "x": [{"b": 1, "c": 2, "b": 3}]',
    ', "x": {"a": [{"b": 1, "c": [1, {"d": 1, "b": 2}]}, {"b": 1}], "b": 2}',
    ", ",
    "} {",
]
CHARACTERS = "AQgwz059-_=+/. \n\t\0é%.e"


class Generator:
    """Tokens of one seed; HS tokens are signed here, the others taken from a few signed once."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._pool = {kid: [self._issued(kid) for _ in range(20)] for kid in ASYMMETRIC}
        self._texts: list[Callable[[str], str]] = [
            self._insert,
            self._replace,
            self._delete,
            self._pad,
            self._spare_bits,
            self._swap_parts,
            self._standard_alphabet,
            self._flip_bit,
            self._empty_part,
            lambda token: token + ".",
            lambda token: token + self._random.choice(["\n", " ", "=", "\0", "A", "é"]),
            lambda token: self._random.choice(["\n", " ", "Bearer ", "."]) + token,
        ]

    def token(self) -> str:
        """One token; about a third are sound."""
        choice = self._random.random()
        if choice < 0.04:
            token = self._random.choice(self._pool[self._random.choice(ASYMMETRIC)])
            token = self._der(token) if token.startswith(ES_START) and choice < 0.004 else token
        else:
            token = self._signed(self._random.choice(SECRETS))
        if self._random.random() < 0.25:
            token = self._random.choice(self._texts)(token)
        return token

    def _claims(self, kid: str) -> dict[str, Any]:
        start = int(NOW) - self._random.randrange(600)
        optional = {"nbf": start, "jti": f"j{start}", "role": kid, "scope": "a b"}
        some = {name: value for name, value in optional.items() if self._random.random() < 0.5}
        return {"iss": ISSUER, "aud": AUDIENCES[kid], "sub": "pat-0001", "exp": start + 700, "iat": start, **some}

    def _issued(self, kid: str) -> str:
        return issue_token(self._claims(kid), MATERIAL[kid])

    def _signed(self, kid: str) -> str:
        header = {"alg": MATERIAL[kid].alg, "kid": kid, "typ": "JWT"}
        claims = self._claims(kid)
        choice = self._random.random()
        if choice < 0.35:
            self._change(claims, CLAIM_VALUES)
        elif choice < 0.5:
            self._change(header, HEADER_VALUES)
        parts = [
            json.dumps(part, ensure_ascii=choice < 0.8).encode("utf-8", "surrogatepass") for part in (header, claims)
        ]
        if choice > 0.82:
            which = self._random.random() < 0.8
            parts[which] = self._damaged_json(parts[which].decode())
        return self._seal(kid, parts, header.get("alg"))

    def _change(self, members: dict[str, Any], values: dict[str, list[Any]]) -> None:
        for _ in range(self._random.choice([1, 1, 1, 2])):
            name = self._random.choice(list(values))
            choice = self._random.random()
            if choice < 0.1:
                members.pop(name, None)
            else:
                members[name] = self._random.choice(JUNK if choice < 0.3 else values[name])

    def _seal(self, kid: str, parts: list[bytes], alg: Any) -> str:
        data = ".".join(map(b64, parts))
        if alg in ("none", "None") and self._random.random() < 0.5:
            return f"{data}."
        signer = kid if self._random.random() < 0.97 else self._random.choice(SECRETS)
        secret: Any = MATERIAL[signer].signing
        if self._random.random() < 0.01:  # the classic: a public key's text as the secret
            secret = b64(repr(PYJWT_KEYS["partner"].public_numbers()).encode()).encode()
        hash_name = HASHES.get(alg, "sha256") if isinstance(alg, str) else "sha256"
        return f"{data}.{b64(hmac.digest(secret, data.encode(), hash_name))}"

    def _damaged_json(self, text: str) -> bytes:
        choice = self._random.randrange(8)
        if choice == 0:
            return text.encode(self._random.choice(ENCODINGS), "replace")
        if choice == 1:
            return text.replace('"sub"', '"s\\u0075b"').replace("}", ', "sub": "pat-0002"}').encode()
        if choice == 2:
            return f" \n{text}\t\r\n".encode()
        if choice == 3:
            place = self._random.randrange(len(text))
            return (text[:place] + self._random.choice('"{},:\\\0\x01\x7f') + text[place:]).encode()
        return (text[:-1] + self._random.choice(LAST_MEMBERS) + "}").encode()

    # --- changes of the characters, without a new signature

    def _insert(self, token: str) -> str:
        place = self._random.randrange(len(token))
        return token[:place] + self._random.choice(CHARACTERS) + token[place:]

    def _replace(self, token: str) -> str:
        place = self._random.randrange(len(token))
        return token[:place] + self._random.choice(CHARACTERS) + token[place + 1 :]

    def _delete(self, token: str) -> str:
        place = self._random.randrange(len(token))
        return token[:place] + token[place + self._random.choice([1, 1, 4, 40]) :]

    def _pad(self, token: str) -> str:
        parts = token.split(".")
        which = self._random.randrange(len(parts))
        parts[which] += "=" * (-len(parts[which]) % 4)
        return ".".join(parts)

    def _spare_bits(self, token: str) -> str:
        alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
        return token[:-1] + alphabet[alphabet.index(token[-1]) ^ 1] if token[-1] in alphabet else token

    def _swap_parts(self, token: str) -> str:
        parts = token.split(".")
        self._random.shuffle(parts)
        return ".".join(parts)

    def _standard_alphabet(self, token: str) -> str:
        return token.replace("-", "+").replace("_", "/")

    def _flip_bit(self, token: str) -> str:
        place = self._random.randrange(len(token))
        return token[:place] + chr(ord(token[place]) ^ 1 << self._random.randrange(7)) + token[place + 1 :]

    def _empty_part(self, token: str) -> str:
        parts = token.split(".")
        parts[self._random.randrange(len(parts))] = ""
        return ".".join(parts)

    def _der(self, token: str) -> str:
        head, _, signature = token.rpartition(".")
        raw = base64.urlsafe_b64decode(signature + "==")
        return f"{head}.{b64(encode_dss_signature(int.from_bytes(raw[:32], 'big'), int.from_bytes(raw[32:], 'big')))}"


ES_START = issue_token({}, MATERIAL["doctor"]).partition(".")[0]


def joserfc_key(kid: str) -> Any:
    public = MATERIAL[kid].public_key
    if public is None:
        return joserfc_jwk.import_key(MATERIAL[kid].signing, "oct")
    text = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return joserfc_jwk.import_key(text, {"doctor": "EC", "partner": "RSA", "auditor": "OKP"}[kid])


def verdict(verifier: Verifier, token: str) -> Verified | TokenError:
    try:
        return verifier.verify(token, NOW)
    except TokenError as error:
        return error


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:EdDSA is deprecated")
def test_never_more_lenient_than_pyjwt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jwt.api_jwt, "datetime", Clock)
    generator, verifier = Generator(20), make_verifier()
    joserfc_keys = {kid: joserfc_key(kid) for kid in MATERIAL}
    beyond: Counter[tuple[str, str]] = Counter()
    accepted = 0
    for _ in range(TOKENS):
        token = generator.token()
        theirs, ours = pyjwt_claims(token), verdict(verifier, token)
        if isinstance(ours, TokenError):
            beyond[ours.code, ours.detail] += theirs is not None
            continue
        assert ours.claims == theirs, f"PyJWT refuses or reads otherwise: {token}"
        accepted += 1
        if accepted % 100 == 0:
            registry = JWSRegistry(algorithms=[ours.key.alg], strict_check_header=False)
            assert joserfc_jwt.decode(token, joserfc_keys[ours.key.kid], registry=registry).claims == theirs, token
    beyond = +beyond
    assert not beyond.keys() - ALLOWED_BEYOND_PYJWT.keys()
    assert not ALLOWED_BEYOND_PYJWT.keys() - beyond.keys(), "a reason without a case"
    assert accepted > TOKENS // 4, "mostly refusing shows nothing"

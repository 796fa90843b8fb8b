"""The token verifier: every refusal in a table, and what a cached token is checked against again."""

from __future__ import annotations

import base64
import gc
import hashlib
import hmac
import json
import math
import pickle
from typing import Any

import pytest

from fastpath.token import Key, TokenError, Verified, Verifier
from gateway.auth.keys import issue_token, load_private_key

SECRET = bytes(range(32))
NOW = 1_700_000_000
ISSUER = "https://id.example"
HEADER = {"typ": "JWT", "alg": "HS256", "kid": "patient-1"}
CLAIMS = {
    "iss": ISSUER,
    "aud": "patient-app",
    "sub": "pat-0001",
    "iat": NOW - 10,
    "exp": NOW + 600,
    "jti": "a1",
    "role": "patient",
}
ABSENT = object()


def b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def seal(header: bytes, payload: bytes, secret: bytes = SECRET, hash_name: str = "sha256") -> str:
    data = f"{b64(header)}.{b64(payload)}"
    return f"{data}.{b64(hmac.digest(secret, data.encode(), hash_name))}"


def token(header: dict[str, Any] | None = None, **claims: Any) -> str:
    """A token of the patient key, with header members and claims changed, or left out where ABSENT."""
    headers, body = {**HEADER, **(header or {})}, {**CLAIMS, **claims}
    parts = [{name: value for name, value in part.items() if value is not ABSENT} for part in (headers, body)]
    return seal(*(json.dumps(part).encode() for part in parts))


def key(kid: str | None = "patient-1", alg: str = "HS256", material: Any = SECRET, **fields: Any) -> Key:
    fields = {
        "issuer": ISSUER,
        "audiences": {"patient-app"},
        "role": "patient",
        "max_lifetime_s": 3600,
        **fields,
    }
    return Key(kid, alg, material, **fields)


def verifier(*keys: Key, **options: Any) -> Verifier:
    return Verifier(keys or (key(),), **{"known_audiences": {"patient-app", "staff-portal"}, **options})


def refusal(verify: Verifier, text: str | bytes, now_s: float = NOW) -> str:
    with pytest.raises(TokenError) as caught:
        verify.verify(text, now_s)
    assert str(caught.value) == f"{caught.value.code}: {caught.value.detail}"
    return caught.value.code


# --- what is accepted


def test_verified_says_what_the_token_says() -> None:
    attachment = object()
    mine = key(attachment=attachment)
    verified = verifier(mine).verify(token(), NOW)
    assert (verified.claims, verified.audience, verified.subject) == (CLAIMS, "patient-app", "pat-0001")
    assert (verified.jti, verified.expires_at_s, verified.principal) == ("a1", NOW + 600, None)
    assert verified.key is mine
    assert verified.key.attachment is attachment


ACCEPTED = {
    "bytes": (token().encode(), {}),
    "no typ": (token({"typ": ABSENT}), {}),
    "typ in lower case": (token({"typ": "jwt"}), {}),
    "access token type": (token({"typ": "at+JWT"}), {}),
    "access token media type": (token({"typ": "application/at+jwt"}), {}),
    "unknown header member": (token({"x-note": {"a": [1]}}), {}),
    "audience in an array": (token(aud=["patient-app"]), {}),
    "audience among strangers": (token(aud=["other", "patient-app", "third"]), {}),
    "no jti": (token(jti=ABSENT), {}),
    "no role": (token(role=ABSENT), {}),
    "scope": (token(scope="a b"), {}),
    "scope as an array": (token(scope=["a", "b"]), {}),
    "scp": (token(scp=["a"]), {}),
    "no iat": (token(iat=ABSENT), {}),
    "float dates": (token(iat=NOW - 0.5, nbf=NOW - 0.5, exp=NOW + 9.5), {}),
    "nbf now": (token(nbf=NOW), {}),
    "iat now": (token(iat=NOW), {}),
    "longest life": (token(iat=NOW - 600, exp=NOW + 3000), {}),
    "no sub, none required": (token(sub=ABSENT), {"require_sub": False}),
    "no kid, one key": (token({"kid": ABSENT}), {"require_kid": False}),
    "expired within the leeway": (token(exp=NOW), {"leeway_s": 1}),
    "nbf within the leeway": (token(nbf=NOW + 1), {"leeway_s": 1}),
    "iat within the leeway": (token(iat=NOW + 1), {"leeway_s": 1}),
    "equal names in different objects": (token(a={"b": {"b": 1}}, b=[{"b": 1}, {"b": 1}]), {}),
    "64 levels": (token(deep=json.loads("[" * 63 + "]" * 63)), {}),
    "largest integers": (token(a=2**63 - 1, b=-(10**18 - 1), c=10**19 - 1), {}),
    "any unicode": (token(name="Zoë \U0001f600 \x7f"), {}),
}


@pytest.mark.parametrize(("text", "options"), ACCEPTED.values(), ids=ACCEPTED)
def test_accepted(text: str | bytes, options: dict[str, Any]) -> None:
    verify = verifier(**options)
    first = verify.verify(text, NOW)
    assert verify.verify(text, NOW) is first, "the second time from the cache"


ALGORITHM_KEYS = {
    "HS384": ("sha384", 48),
    "HS512": ("sha512", 64),
}


@pytest.mark.parametrize("alg", ALGORITHM_KEYS)
@pytest.mark.parametrize("length", [64, 200], ids=["secret within a block", "secret longer than a block"])
def test_longer_hashes(alg: str, length: int) -> None:
    hash_name, signature_bytes = ALGORITHM_KEYS[alg]
    secret = hashlib.shake_128(b"s").digest(length)
    text = seal(json.dumps({**HEADER, "alg": alg}).encode(), json.dumps(CLAIMS).encode(), secret, hash_name)
    assert verifier(key(alg=alg, material=secret)).verify(text, NOW).subject == "pat-0001"
    assert refusal(verifier(key(alg=alg, material=secret[:-1] + b"?")), text) == "signature"


# --- what is refused


def repeat_last_byte_with_spare_bits(text: str) -> str:
    """The same signature bytes, spelled with spare bits that are not zero: 32 bytes leave 2 of them."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    return text[:-1] + alphabet[alphabet.index(text[-1]) | 1]


def raw_payload(payload: bytes) -> str:
    return seal(json.dumps(HEADER).encode(), payload)


def raw_header(header: bytes) -> str:
    return seal(header, json.dumps(CLAIMS).encode())


BODY = json.dumps(CLAIMS)
REFUSED: dict[str, tuple[str | bytes, str]] = {
    # form
    "empty": ("", "malformed"),
    "one part": ("abc", "malformed"),
    "two parts": ("abc.def", "malformed"),
    "four parts": (token() + ".abc", "malformed"),
    "empty header": ("." + token().split(".", 1)[1], "malformed"),
    "empty payload": ("a..b", "malformed"),
    "trailing dot": (token() + ".", "malformed"),
    "leading space": (" " + token(), "malformed"),
    "trailing newline": (token() + "\n", "malformed"),
    "padding": (token() + "=", "malformed"),
    "spare bits": (repeat_last_byte_with_spare_bits(token()), "malformed"),
    "standard base64": (token().replace("-", "+").replace("_", "/") + "+", "malformed"),
    "not ascii": (token() + "é", "malformed"),
    "not ascii bytes": (token().encode() + b"\xe9", "malformed"),
    "nul": (token() + "\0", "malformed"),
    "lone surrogate": (token() + "\ud800", "malformed"),
    "8193 bytes": ("a" * 8193, "too-large"),
    "a large good token": (token(pad="a" * 6200), "too-large"),
    # JSON
    "header is no json": (raw_header(b"{"), "malformed"),
    "header is an array": (raw_header(b"[]"), "malformed"),
    "payload is an array": (raw_payload(b"[1]"), "malformed"),
    "payload is null": (raw_payload(b"null"), "malformed"),
    "utf-16": (raw_payload(BODY.encode("utf-16")), "malformed"),
    "utf-16 without mark": (raw_payload(BODY.encode("utf-16-le")), "malformed"),
    "utf-32": (raw_payload(BODY.encode("utf-32")), "malformed"),
    "byte order mark": (raw_payload(b"\xef\xbb\xbf" + BODY.encode()), "malformed"),
    "latin-1": (raw_payload(BODY.replace("pat-0001", "pät").encode("latin-1")), "malformed"),
    "overlong utf-8": (raw_payload(BODY.encode().replace(b"pat-0001", b"\xc0\xaf")), "malformed"),
    "surrogate in utf-8": (raw_payload(BODY.encode().replace(b"pat-0001", b"\xed\xa0\x80")), "malformed"),
    "lone surrogate escape": (raw_payload(BODY.replace("pat-0001", "\\ud800").encode()), "malformed"),
    "nan": (raw_payload(BODY[:-1].encode() + b',"x":NaN}'), "malformed"),
    "infinite number": (raw_payload(BODY[:-1].encode() + b',"x":1e999}'), "malformed"),
    "trailing comma": (raw_payload(BODY[:-1].encode() + b",}"), "malformed"),
    "two documents": (raw_payload(BODY.encode() + b"{}"), "malformed"),
    "duplicate claim": (raw_payload(BODY[:-1].encode() + b',"sub":"pat-0002"}'), "malformed"),
    "duplicate claim, same value": (raw_payload(BODY[:-1].encode() + b',"sub":"pat-0001"}'), "malformed"),
    "duplicate claim, escaped": (raw_payload(BODY[:-1].encode() + b',"s\\u0075b":"pat-0002"}'), "malformed"),
    "duplicate deep": (raw_payload(BODY[:-1].encode() + b',"x":[{"a":{"b":1,"c":2,"b":3}}]}'), "malformed"),
    "duplicate in header": (raw_header(b'{"alg":"HS256","kid":"patient-1","kid":"patient-1"}'), "malformed"),
    "escaped nul": (token(name="a\0b"), "malformed"),
    "65 levels": (token(deep=json.loads("[" * 64 + "]" * 64)), "malformed"),
    "integer beyond 64 bits": (token(n=10**20), "malformed"),
    "negative beyond 64 bits": (token(n=-(10**19)), "malformed"),
    # header
    "no alg": (token({"alg": ABSENT}), "header"),
    "alg is a number": (token({"alg": 256}), "header"),
    "alg is a list": (token({"alg": ["HS256"]}), "header"),
    "alg none": (token({"alg": "none"}), "algorithm"),
    "alg None": (token({"alg": "None"}), "algorithm"),
    "alg in lower case": (token({"alg": "hs256"}), "algorithm"),
    "alg of encryption": (token({"alg": "dir"}), "algorithm"),
    "alg of another hash": (token({"alg": "HS384"}), "algorithm"),
    "alg of another family": (token({"alg": "RS256"}), "algorithm"),
    "none without signature": (token({"alg": "none"}).rpartition(".")[0] + ".", "algorithm"),
    "no kid": (token({"kid": ABSENT}), "header"),
    "empty kid": (token({"kid": ""}), "header"),
    "kid is a number": (token({"kid": 1}), "header"),
    "kid is a list": (token({"kid": ["patient-1"]}), "header"),
    "kid is null": (token({"kid": None}), "header"),
    "unknown kid": (token({"kid": "patient-2"}), "unknown-key"),
    "kid with a path": (token({"kid": "../../dev/null"}), "unknown-key"),
    "crit": (token({"crit": ["exp"], "exp": 1}), "header"),
    "empty crit": (token({"crit": []}), "header"),
    "b64": (token({"b64": False}), "header"),
    "b64 true": (token({"b64": True}), "header"),
    "jwk": (token({"jwk": {"kty": "oct", "k": b64(SECRET)}}), "header"),
    "jku": (token({"jku": "https://evil.example/keys"}), "header"),
    "x5u": (token({"x5u": "https://evil.example/cert"}), "header"),
    "x5c": (token({"x5c": []}), "header"),
    "x5t": (token({"x5t": "a"}), "header"),
    "x5t#S256": (token({"x5t#S256": "a"}), "header"),
    "zip": (token({"zip": "DEF"}), "header"),
    "enc": (token({"enc": "A128GCM"}), "header"),
    "cty is a number": (token({"cty": 1}), "header"),
    "typ is a number": (token({"typ": 1}), "header"),
    "typ of a logout token": (token({"typ": "logout+jwt"}), "header"),
    "typ of a proof": (token({"typ": "dpop+jwt"}), "header"),
    "typ of the json serialization": (token({"typ": "JOSE+JSON"}), "header"),
    # signature
    "no signature": (token().rpartition(".")[0] + ".", "signature"),
    "41 characters of signature": (token()[:-2], "malformed"),
    "signature of 31 bytes": (token().rpartition(".")[0] + "." + b64(bytes(31)), "signature"),
    "zero signature": (token().rpartition(".")[0] + "." + b64(bytes(32)), "signature"),
    "another secret": (seal(json.dumps(HEADER).encode(), BODY.encode(), b"x" * 32), "signature"),
    "another payload": (
        ".".join((token().split(".")[0], token(sub="pat-0002").split(".")[1], token().split(".")[2])),
        "signature",
    ),
    # times
    "no exp": (token(exp=ABSENT), "claims"),
    "exp now": (token(exp=NOW), "expired"),
    "exp within this second": (token(exp=NOW + 0.9), "expired"),
    "exp is a string": (token(exp=str(NOW + 600)), "claims"),
    "exp is true": (token(exp=True), "claims"),
    "exp is null": (token(exp=None), "claims"),
    "exp is a list": (token(exp=[NOW + 600]), "claims"),
    "exp is far": (token(exp=1e30), "claims"),
    "exp after 9999": (token(exp=253402300800), "claims"),
    "exp is negative": (token(exp=-1), "claims"),
    "exp 1970": (token(exp=0), "expired"),
    "nbf later": (token(nbf=NOW + 1), "not-yet-valid"),
    "nbf later in this second": (token(nbf=NOW + 0.5), "not-yet-valid"),
    "nbf is a string": (token(nbf="0"), "claims"),
    "nbf is false": (token(nbf=False), "claims"),
    "nbf is negative": (token(nbf=-1), "claims"),
    "iat later": (token(iat=NOW + 1), "issued-in-future"),
    "iat is a string": (token(iat="0"), "claims"),
    "iat is null": (token(iat=None), "claims"),
    "lives too long": (token(iat=NOW - 1, exp=NOW + 3600), "lifetime"),
    "lives too long, by a fraction": (token(iat=NOW, exp=NOW + 3600.5), "lifetime"),
    "lives too long since nbf": (token(iat=ABSENT, nbf=NOW - 1, exp=NOW + 3600), "lifetime"),
    "lives too long from now": (token(iat=ABSENT, exp=NOW + 3601), "lifetime"),
    "iat of 1970": (token(iat=0), "lifetime"),
    # issuer, audience, subject
    "no iss": (token(iss=ABSENT), "issuer"),
    "another iss": (token(iss=ISSUER + "/"), "issuer"),
    "iss is a list": (token(iss=[ISSUER]), "issuer"),
    "no aud": (token(aud=ABSENT), "audience"),
    "aud is null": (token(aud=None), "audience"),
    "aud is a number": (token(aud=1), "audience"),
    "aud is an object": (token(aud={"patient-app": 1}), "audience"),
    "aud is empty": (token(aud=""), "audience"),
    "aud is an empty list": (token(aud=[]), "audience"),
    "aud unknown": (token(aud="other"), "audience"),
    "aud of another key": (token(aud="staff-portal"), "audience"),
    "aud of both": (token(aud=["patient-app", "staff-portal"]), "audience"),
    "aud twice": (token(aud=["patient-app", "patient-app"]), "audience"),
    "aud with a number": (token(aud=["patient-app", 1]), "audience"),
    "aud with a list": (token(aud=[["patient-app"]]), "audience"),
    "no sub": (token(sub=ABSENT), "subject"),
    "empty sub": (token(sub=""), "subject"),
    "sub is a number": (token(sub=1), "subject"),
    "sub is null": (token(sub=None), "subject"),
    # bound to a key of the sender's, which nobody checks
    "cnf of a DPoP key": (token(cnf={"jkt": "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"}), "bound"),
    "cnf of a certificate": (token(cnf={"x5t#S256": "bwcK0esc3ACC3DB2Y5_lESsXE8o9ltc05O89jdN-dg2"}), "bound"),
    "cnf empty": (token(cnf={}), "bound"),
    "cnf null": (token(cnf=None), "bound"),
    "cnf spelt with an escape": (raw_payload(json.dumps(CLAIMS)[:-1].encode() + b', "\\u0063nf": {}}'), "bound"),
    # the rest
    "another role": (token(role="platform_admin"), "role"),
    "roles in a list": (token(role=["patient"]), "role"),
    "role is null": (token(role=None), "role"),
    "scope is an object": (token(scope={"a": 1}), "claims"),
    "scope with a number": (token(scope=["a", 1]), "claims"),
    "scope with a list": (token(scope=[["a"]]), "claims"),
    "scp is a number": (token(scp=1), "claims"),
    "scp is null": (token(scp=None), "claims"),
    "scope is null": (token(scope=None), "claims"),
    "empty jti": (token(jti=""), "claims"),
    "jti is a number": (token(jti=1), "claims"),
    "jti is null": (token(jti=None), "claims"),
}


@pytest.mark.parametrize(("text", "code"), REFUSED.values(), ids=REFUSED)
def test_refused(text: str | bytes, code: str) -> None:
    verify = verifier()
    assert refusal(verify, text) == code
    assert len(verify) == 0, "what is refused is not kept"


def test_refused_sub_even_where_none_is_required() -> None:
    assert refusal(verifier(require_sub=False), token(sub="")) == "subject"


def test_longest_token_is_accepted_and_one_byte_more_is_not() -> None:
    text = token(pad="a" * 5908)
    verify = verifier(max_token_bytes=len(text))
    assert 8192 - 3 <= len(text) <= 8192
    assert verify.verify(text, NOW).subject == "pat-0001"
    assert refusal(verifier(max_token_bytes=len(text) - 1), text) == "too-large"


def test_claim_checks_run_on_claims_that_are_there() -> None:
    verify = verifier(checks=[("units", lambda value: isinstance(value, list), "an array")])
    assert verify.verify(token(), NOW).subject == "pat-0001"
    assert verify.verify(token(units=["a"]), NOW).subject == "pat-0001"
    with pytest.raises(TokenError, match="claims: units is not an array"):
        verify.verify(token(units="a"), NOW)


@pytest.mark.parametrize("now_s", [float("nan"), float("inf"), -1.0, 1e12], ids=str)
def test_no_time_no_verdict(now_s: float) -> None:
    verify = verifier()
    verify.verify(token(), NOW)
    with pytest.raises(ValueError, match="now_s"):
        verify.verify(token(), now_s)


@pytest.mark.parametrize("text", [None, 1, bytearray(token().encode()), type("S", (str,), {})(token())], ids=repr)
def test_only_str_and_bytes(text: Any) -> None:
    with pytest.raises(TypeError):
        verifier().verify(text, NOW)


# --- keys


def test_leaked_patient_key_mints_no_staff_token() -> None:
    staff = key("staff-1", material=b"s" * 32, audiences={"staff-portal"}, role="practitioner")
    verify = verifier(key(), staff)
    claims = {"aud": "staff-portal", "role": "practitioner"}
    assert refusal(verify, token(**claims)) == "audience"
    assert refusal(verify, token({"kid": "staff-1"}, **claims)) == "signature"
    assert refusal(verify, token(role="practitioner")) == "role"


def test_token_without_kid_takes_the_only_key_of_its_algorithm() -> None:
    other = key("b", alg="HS384", material=bytes(48))
    text = token({"kid": ABSENT})
    assert verifier(key(), other, require_kid=False).verify(text, NOW).key.kid == "patient-1"
    assert refusal(verifier(key(), key("c"), require_kid=False), text) == "unknown-key"
    assert verifier(key(None), require_kid=False).verify(text, NOW).key.kid is None
    assert refusal(verifier(key(None), require_kid=False), token()) == "unknown-key"


BAD_KEYS = {
    "unknown algorithm": ({"alg": "none"}, "algorithm"),
    "algorithm of encryption": ({"alg": "dir"}, "algorithm"),
    "empty kid": ({"kid": ""}, "kid"),
    "31 bytes": ({"material": bytes(31)}, "at least 32"),
    "47 bytes for HS384": ({"alg": "HS384", "material": bytes(47)}, "at least 48"),
    "63 bytes for HS512": ({"alg": "HS512", "material": bytes(63)}, "at least 64"),
    "text for a secret": ({"material": "s" * 32}, "secret of bytes"),
    "pem for a secret": ({"material": b"-----BEGIN PUBLIC KEY-----" + bytes(32)}, "asymmetric"),
    "ssh key for a secret": ({"material": b"ssh-rsa " + bytes(32)}, "asymmetric"),
    "secret for RS256": ({"alg": "RS256"}, "public key"),
    "no lifetime": ({"max_lifetime_s": 0}, "lifetime"),
}


@pytest.mark.parametrize(("fields", "message"), BAD_KEYS.values(), ids=BAD_KEYS)
def test_bad_key(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        key(**fields)


@pytest.mark.parametrize(
    ("options", "keys", "message"),
    [
        ({}, [key(), key()], "two keys"),
        ({}, [key(None)], "without kid"),
        ({"max_token_bytes": 0}, [key()], "max_token_bytes"),
        ({"max_token_bytes": 8193}, [key()], "max_token_bytes"),
        ({"leeway_s": -1}, [key()], "leeway_s"),
        ({"leeway_s": float("nan")}, [key()], "leeway_s"),
    ],
    ids=["one kid twice", "no kid", "no bytes", "too many bytes", "negative leeway", "leeway is no number"],
)
def test_bad_verifier(options: dict[str, Any], keys: list[Key], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        verifier(*keys, **options)


def test_secret_does_not_show() -> None:
    mine = key(material=b"hunter2-hunter2-hunter2-hunter2-")
    verified = verifier(mine).verify(
        seal(json.dumps(HEADER).encode(), BODY.encode(), b"hunter2-hunter2-hunter2-hunter2-"), NOW
    )
    assert "hunter2" not in repr(mine) + repr(verified) + repr([getattr(mine, name) for name in dir(mine)])
    assert "pat-0001" not in repr(verified)
    with pytest.raises(TypeError):
        pickle.dumps(mine)


def test_key_is_immutable() -> None:
    with pytest.raises(AttributeError):
        key().role = "platform_admin"  # type: ignore[misc]


# --- ECDSA signatures: r || s, each of a fixed length


EC_PRIVATE = {
    "ES256": ("P-256", 32),
    "ES384": ("P-384", 48),
    "ES512": ("P-521", 66),
}


@pytest.fixture(scope="module")
def ec_pem() -> str:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    return (
        ec.derive_private_key(0x1234567, ec.SECP256R1())
        .private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        .decode()
    )


def test_ecdsa_signature_has_one_form(ec_pem: str) -> None:
    material = load_private_key(ec_pem, kid="e")
    verify = verifier(key("e", alg="ES256", material=material.verifying), cache_size=0)
    for number in range(300):  # r or s begins with a zero byte in one of 128, with its highest bit set in 3 of 4
        good = issue_token({**CLAIMS, "n": number}, material)
        assert verify.verify(good, NOW).subject == "pat-0001"
    head, _, signature = good.rpartition(".")
    raw = base64.urlsafe_b64decode(signature + "==")
    from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

    der = encode_dss_signature(int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big"))
    wrong = {
        "der": der,
        "r is zero": bytes(32) + raw[32:],
        "s is zero": raw[:32] + bytes(32),
        "both zero": bytes(64),
        "63 bytes": raw[:63],
        "65 bytes": raw + b"\0",
        "zero padded": b"\0" + raw[:32] + b"\0" + raw[32:],
        "halves swapped": raw[32:] + raw[:32],
        "all ones": b"\xff" * 64,
        "empty": b"",
    }
    for what, forged in wrong.items():
        assert refusal(verify, f"{head}.{b64(forged)}") == "signature", what


# --- the cache


def test_cached_token_expires() -> None:
    verify = verifier()
    verified = verify.verify(token(), NOW)
    assert verify.verify(token(), NOW + 599.9) is verified
    assert verify.hits == 1
    assert refusal(verify, token(), NOW + 600) == "expired"


def test_cached_token_is_not_valid_before_its_time() -> None:
    verify = verifier()
    verify.verify(token(nbf=NOW, iat=ABSENT), NOW)
    assert refusal(verify, token(nbf=NOW, iat=ABSENT), NOW - 1) == "not-yet-valid"
    verify.verify(token(), NOW)
    assert refusal(verify, token(), NOW - 11) == "issued-in-future"


def test_revoked_by_jti_in_every_spelling() -> None:
    verify = verifier()
    first, second = token(), token(extra=1)
    verify.verify(first, NOW)
    verify.revoke_jti("a1")
    assert [refusal(verify, text) for text in (first, second)] == ["revoked", "revoked"]
    assert verify.verify(token(jti="a2"), NOW).jti == "a2"


def test_revocations_are_forgotten_after_expiry() -> None:
    verify = verifier(leeway_s=5)
    verify.revoke_jti("a1", NOW + 600)
    verify.revoke_jti("for ever")
    verify.forget_revoked(NOW + 604)
    assert refusal(verify, token(), NOW + 604) == "revoked"
    verify.forget_revoked(NOW + 605)
    assert verify.revoked == {"for ever": math.inf}


def test_retired_key_while_cached() -> None:
    verify = verifier()
    verify.verify(token(), NOW)
    verify.retire("patient-1")
    assert refusal(verify, token()) == "unknown-key"
    assert refusal(verify, token(jti="new")) == "unknown-key"
    with pytest.raises(KeyError):
        verify.retire("patient-1")


def test_replaced_key_while_cached() -> None:
    verify = verifier()
    verify.verify(token(), NOW)
    with pytest.raises(ValueError, match="epoch"):
        verify.replace(key(material=b"n" * 32))
    verify.replace(key(material=b"n" * 32, epoch=1))
    assert refusal(verify, token()) == "unknown-key"
    assert refusal(verify, token(jti="new")) == "signature"
    fresh = seal(json.dumps(HEADER).encode(), BODY.encode(), b"n" * 32)
    assert verify.verify(fresh, NOW).key.epoch == 1


def test_principal_stays_with_the_token() -> None:
    verify = verifier()
    principal = object()
    verify.verify(token(), NOW).principal = principal
    assert verify.verify(token(), NOW).principal is principal
    verify.clear()
    assert verify.verify(token(), NOW).principal is None


def test_cache_is_bounded_by_number() -> None:
    verify = verifier(cache_size=10)
    for number in range(100):
        verify.verify(token(jti=str(number)), NOW)
        assert len(verify) <= 10
    assert len(verify) >= 5


def test_cache_is_bounded_by_text() -> None:
    verify = verifier(cache_size=16)
    for number in range(40):
        verify.verify(token(jti=str(number), pad="p" * 4000), NOW)
    assert len(verify) <= 2, "a generation of 8 holds 8 KiB: one such token"


def test_token_in_use_outlives_the_flood() -> None:
    verify = verifier(cache_size=10)
    mine = verify.verify(token(), NOW)
    for number in range(100):
        verify.verify(token(jti=str(number)), NOW)
        assert verify.verify(token(), NOW) is mine


def test_no_cache() -> None:
    verify = verifier(cache_size=0)
    assert verify.verify(token(), NOW) is not verify.verify(token(), NOW)
    assert len(verify) == 0


def test_refused_tokens_grow_nothing() -> None:
    verify = verifier()
    head = token().rpartition(".")[0]
    texts = [f"{head}.{b64(hashlib.sha256(str(number).encode()).digest())}" for number in range(2000)]
    refusal(verify, texts[0])
    gc.collect()
    before = len(gc.get_objects())
    for text in texts:
        refusal(verify, text)
    gc.collect()
    assert len(gc.get_objects()) <= before + 5
    assert (len(verify), verify.misses) == (0, 2001)


def test_verified_cannot_be_made_up() -> None:
    with pytest.raises(AttributeError):
        Verified().subject = "pat-0002"  # type: ignore[misc]

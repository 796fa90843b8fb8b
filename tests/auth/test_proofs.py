"""What proves somebody, without a gateway around it: PKCE, one-time codes, DPoP, sealing; with the RFCs' vectors."""

from __future__ import annotations

import base64
import json
import time
import uuid

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from joserfc import jwk as joserfc_jwk

from gateway.auth import pkce, totp
from gateway.auth.dpop import MAX_AGE_S, is_thumbprint, read_proof
from gateway.auth.passwords import DUMMY, PasswordRefused, hash_password, matches
from gateway.auth.vault import Unsealable, Vault, box_of, load_or_make_key
from gateway.errors import TokenRequestRefused
from tests.auth.kit import CHALLENGE, VERIFIER, dpop, thumbprint

# --- PKCE (RFC 7636)


def test_pkce_as_in_appendix_b():
    assert pkce.challenge_of(VERIFIER) == CHALLENGE
    assert pkce.proves(VERIFIER, CHALLENGE)


@pytest.mark.parametrize(
    "verifier",
    ["", VERIFIER[:-1], VERIFIER + "\n", VERIFIER[:-1] + "K", "a" * 42, "a" * 129, VERIFIER[:-1] + "/", CHALLENGE],
)
def test_what_is_no_verifier(verifier):
    assert not pkce.proves(verifier, CHALLENGE)


def test_how_long_a_verifier_may_be():
    for length in (43, 128):
        assert pkce.proves("a" * length, pkce.challenge_of("a" * length))
    for length in (42, 129):
        assert not pkce.proves("a" * length, pkce.challenge_of("a" * length))


@pytest.mark.parametrize(
    ("text", "good"),
    [(CHALLENGE, True), (CHALLENGE + "=", False), (CHALLENGE[:-1], False), (CHALLENGE[:-1] + "+", False), ("", False),
     (CHALLENGE + "\n", False)],
)  # fmt: skip
def test_what_is_a_challenge(text, good):
    assert pkce.is_challenge(text) is good


# --- one-time codes (RFC 6238)


@pytest.mark.parametrize(
    ("at_s", "code"),
    [(59, "94287082"), (1111111109, "07081804"), (1111111111, "14050471"), (1234567890, "89005924"),
     (2000000000, "69279037"), (20000000000, "65353130")],
)  # fmt: skip
def test_totp_as_in_appendix_b(at_s, code):
    secret = b"12345678901234567890"
    assert totp.code_at(secret, at_s // 30, 8) == code
    assert totp.step_of(secret, code[2:], at_s) == at_s // 30


def test_codes_count_one_step_before_and_after():
    secret, now_s = totp.new_secret(), 1_800_000_000.0
    here = int(now_s) // 30
    steps = [totp.step_of(secret, totp.code_at(secret, here + offset), now_s) for offset in (-2, -1, 0, 1, 2)]
    assert steps == [0, here - 1, here, here + 1, 0]


@pytest.mark.parametrize("code", ["", "12345", "1234567", "abcdef", "\u0661\u0662\u0663\u0664\u0665\u0666", "\ud800"])
def test_what_is_no_code(code):
    assert totp.step_of(b"s" * 20, code, 59.0) == 0


def test_what_an_authenticator_app_reads():
    uri = totp.uri_of(bytes(range(20)), "a@b", "Care gate")
    assert uri == "otpauth://totp/Care%20gate:a%40b?secret=AAAQEAYEAUDAOCAJBIFQYDIOB4IBCEQT&issuer=Care%20gate"


# --- DPoP (RFC 9449)

EXAMPLE = (
    "eyJ0eXAiOiJkcG9wK2p3dCIsImFsZyI6IkVTMjU2IiwiandrIjp7Imt0eSI6IkVDIiwieCI6Imw4dEZyaHgtMzR0VjNoUklDUkRZOXpDa0RscEJoR"
    "jQyVVFVZldWQVdCRnMiLCJ5IjoiOVZFNGpmX09rX282NHpiVFRsY3VOSmFqSG10NnY5VERWclUwQ2R2R1JEQSIsImNydiI6IlAtMjU2In19.eyJqdG"
    "kiOiItQndDM0VTYzZhY2MybFRjIiwiaHRtIjoiUE9TVCIsImh0dSI6Imh0dHBzOi8vc2VydmVyLmV4YW1wbGUuY29tL3Rva2VuIiwiaWF0IjoxNTYy"
    "MjYyNjE2fQ.2-GxA6T8lP4vfrg8v-FdWP0A0zdrj8igiMLvqRMUvwnQg4PtFLbdLXiOSsX0x7NVY-FNyJK70nfbV37xRZT3Lg"
)
"""RFC 9449, figure 2; its claims are in figure 4's form, its thumbprint in section 6.1."""
EXAMPLE_URL = "https://server.example.com/token"
URL = "https://api.test/auth/v1/token"


def test_the_proof_of_the_rfc():
    proof = read_proof(EXAMPLE, "POST", EXAMPLE_URL, 1562262616)
    assert proof.thumbprint == "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"
    assert proof.until_s == 1562262616 + 2 * MAX_AGE_S
    with pytest.raises(TokenRequestRefused):
        read_proof(EXAMPLE, "POST", EXAMPLE_URL, 1562262616 + MAX_AGE_S + 1)
    with pytest.raises(TokenRequestRefused):
        read_proof(EXAMPLE[:-2] + "AA", "POST", EXAMPLE_URL, 1562262616)


KEY = ec.generate_private_key(ec.SECP256R1())
OTHER = ec.generate_private_key(ec.SECP256R1())


def of_key(key, alg):
    """A proof of a key of any kind, by joserfc's JWK and PyJWT's signature: neither is ours."""
    kinds = {ec.EllipticCurvePrivateKey: joserfc_jwk.ECKey, rsa.RSAPrivateKey: joserfc_jwk.RSAKey}
    kind = next((k for base, k in kinds.items() if isinstance(key, base)), joserfc_jwk.OKPKey)
    made = kind.import_key(key.public_key())
    claims = {"htm": "POST", "htu": URL, "iat": int(time.time()), "jti": str(uuid.uuid4())}
    public = {name: value for name, value in made.as_dict().items() if name != "kid"}
    return jwt.encode(claims, key, alg, {"typ": "dpop+jwt", "jwk": public}), made.thumbprint()


@pytest.mark.parametrize(
    ("key", "alg"),
    [
        pytest.param(KEY, "ES256", id="ES256"),
        pytest.param(ec.generate_private_key(ec.SECP384R1()), "ES384", id="ES384"),
        pytest.param(ed25519.Ed25519PrivateKey.generate(), "EdDSA", id="EdDSA"),
        pytest.param(RSA := rsa.generate_private_key(public_exponent=65537, key_size=2048), "PS256", id="PS256"),
        pytest.param(RSA, "RS256", id="RS256"),
    ],
)
def test_proofs_of_every_algorithm(key, alg):
    text, expected = of_key(key, alg)
    proof = read_proof(text, "POST", URL, time.time())
    assert proof.thumbprint == expected
    assert is_thumbprint(proof.thumbprint)


@pytest.mark.parametrize(
    "htu", [URL, URL + "?a=b", URL + "#x", "https://api.test:443/auth/v1/token", "HTTPS://API.test/auth/v1/token"]
)
def test_one_url_in_several_spellings(htu):
    assert read_proof(dpop(KEY, htu=htu), "POST", URL, time.time()).thumbprint == thumbprint(KEY)


def now(offset=0):
    return int(time.time()) + offset


PRIVATE = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(KEY))
BAD_PROOFS = {
    "nothing": lambda: "",
    "garbage": lambda: "a.b.c",
    "two parts": lambda: ".".join(dpop(KEY).split(".")[:2]),
    "four parts": lambda: dpop(KEY) + ".x",
    "two proofs": lambda: f"{dpop(KEY)},{dpop(KEY)}",
    "padding": lambda: dpop(KEY) + "=",
    "not ascii": lambda: dpop(KEY) + "\u00e9",
    "too long": lambda: dpop(KEY, more="x" * 5_000),
    "another typ": lambda: dpop(KEY, typ="JWT"),
    "no typ": lambda: dpop(KEY, typ=None),
    "no jwk": lambda: dpop(KEY, jwk={}),
    "a jwk that is none": lambda: dpop(KEY, jwk={"kty": "EC"}),
    "a private jwk": lambda: dpop(KEY, jwk=PRIVATE),
    "another key's signature": lambda: dpop(KEY, sign=OTHER),
    "another algorithm than the key's": lambda: dpop(KEY, sign="k" * 64, alg="HS256"),
    "a secret": lambda: dpop(
        KEY, sign="k" * 64, alg="HS256", jwk={"kty": "oct", "k": base64.b64encode(b"k" * 64).decode()}
    ),
    "no signature": lambda: dpop(KEY).rpartition(".")[0] + ".",
    "another method": lambda: dpop(KEY, htm="GET"),
    "no method": lambda: dpop(KEY, htm=None),
    "another URL": lambda: dpop(KEY, htu="https://evil.test/auth/v1/token"),
    "another path": lambda: dpop(KEY, htu=URL + "/"),
    "another scheme": lambda: dpop(KEY, htu="http://api.test/auth/v1/token"),
    "a URL with a user": lambda: dpop(KEY, htu="https://x@api.test/auth/v1/token"),
    "a URL that is none": lambda: dpop(KEY, htu="https://[api"),
    "no URL": lambda: dpop(KEY, htu=None),
    "too old": lambda: dpop(KEY, iat=now(-MAX_AGE_S - 5)),
    "of the future": lambda: dpop(KEY, iat=now(MAX_AGE_S + 5)),
    "no time": lambda: dpop(KEY, iat=None),
    "no jti": lambda: dpop(KEY, jti=None),
    "empty jti": lambda: dpop(KEY, jti=""),
    "long jti": lambda: dpop(KEY, jti="j" * 257),
    "jti of another type": lambda: dpop(KEY, jti=7),
}


@pytest.mark.parametrize("proof", BAD_PROOFS.values(), ids=BAD_PROOFS.keys())
def test_bad_proofs(proof):
    with pytest.raises(TokenRequestRefused) as caught:
        read_proof(proof(), "POST", URL, time.time())
    assert caught.value.members["error"] == "invalid_dpop_proof"


@pytest.mark.parametrize("iat", [True, "1562262616", 1.5, 1e400], ids=str)
def test_times_of_another_type(iat):
    with pytest.raises(TokenRequestRefused):
        read_proof(dpop(KEY, iat=iat), "POST", URL, time.time())


def test_one_proof_has_one_digest_whatever_its_spelling():
    """An ECDSA signature has a second valid form: what is used up is the id, not the text."""
    text = dpop(KEY, jti="same")
    head, body, signature = text.split(".")
    raw = base64.urlsafe_b64decode(signature + "==")
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    other = raw[:32] + (order - int.from_bytes(raw[32:], "big")).to_bytes(32, "big")
    twin = f"{head}.{body}.{base64.urlsafe_b64encode(other).rstrip(b'=').decode()}"
    digests = {read_proof(t, "POST", URL, time.time()).digest for t in (text, twin, dpop(KEY, jti="same"))}
    assert len(digests) == 1
    assert read_proof(dpop(OTHER, jti="same"), "POST", URL, time.time()).digest not in digests


# --- passwords


def test_a_hash_is_of_its_password_and_of_no_other():
    made = hash_password("correct horse battery")
    assert made.startswith("$argon2id$v=19$m=65536,t=3,p=1$"), "what the database's check wants"
    assert matches(made, "correct horse battery")
    assert not matches(made, "correct horse batterx")
    assert not matches(DUMMY, "")


def test_what_follows_the_longest_password_counts():
    made = hash_password("0123456789ab" + "x" * 1_012)
    assert matches(made, "0123456789ab" + "x" * 1_012)
    assert not matches(made, "0123456789ab" + "x" * 1_013)


@pytest.mark.parametrize(
    ("password", "reason"),
    [
        ("short", "fewer"),
        ("", "fewer"),
        ("x" * 1_025, "bytes"),
        ("aaaaaaaaaaaaaa", "guess"),
        ("I am Anna 12345", "guess"),
    ],
)
def test_passwords_that_are_not_set(password, reason):
    with pytest.raises(PasswordRefused, match=reason) as caught:
        hash_password(password, "anna")
    assert not password or password not in str(caught.value)


# --- sealing


def test_what_is_sealed_opens_in_its_place_alone():
    vault, other = Vault(b"k" * 32), Vault(b"l" * 32)
    sealed = vault.factors.seal(b"secret", b"one")
    assert vault.factors.open(sealed, b"one") == b"secret"
    assert vault.factors.seal(b"secret", b"one") != sealed
    for box, about, text in (
        (vault.factors, b"two", sealed), (vault.forms, b"one", sealed), (other.factors, b"one", sealed),
        (vault.factors, b"one", sealed[:-1]), (vault.factors, b"one", b""),
    ):  # fmt: skip
        with pytest.raises(Unsealable):
            box.open(text, about)
    assert vault.alias("anna") == vault.alias("anna") != other.alias("anna")


def test_a_successor_opens_by_its_predecessor_alone():
    sealed = box_of("cgr_first").seal(b"cgr_second", b"")
    assert box_of("cgr_first").open(sealed, b"") == b"cgr_second"
    with pytest.raises(Unsealable):
        box_of("cgr_other").open(sealed, b"")


def test_the_site_key_is_made_once_and_read_by_its_owner_alone(tmp_path):
    path = tmp_path / "new" / "accounts.key"
    made = load_or_make_key(path)
    assert load_or_make_key(path) == made
    assert path.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in path.parent.iterdir()] == ["accounts.key"]
    path.chmod(0o640)
    with pytest.raises(ValueError, match="chmod"):
        load_or_make_key(path)
    with pytest.raises(ValueError, match="bytes"):
        Vault(b"short")

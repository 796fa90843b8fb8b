"""The gateway's word about a request: accepted as PyJWT makes it, refused in every other shape."""

from __future__ import annotations

import base64
import hashlib
import hmac

import jwt
import orjson
import pytest

from gateway.agent.context_token import ContextRefused, ContextVerifier

KEY = b"0123456789abcdef0123456789abcdef"
NOW_S = 1_800_000_000
CLAIMS = {"sub": "s", "aud": "unit-a", "exp": NOW_S + 30, "patient": "pat-0001"}


def signed(header, claims, key=KEY):
    parts = b".".join(encode(part if isinstance(part, bytes) else orjson.dumps(part)) for part in (header, claims))
    return (parts + b"." + encode(hmac.digest(key, parts, hashlib.sha256))).decode()


def encode(raw):
    return base64.urlsafe_b64encode(raw).rstrip(b"=")


HEADER = {"alg": "HS256", "typ": "JWT"}
VALID = signed(HEADER, CLAIMS)


def test_a_token_of_pyjwt_is_accepted():
    assert ContextVerifier("unit-a", KEY).verify(jwt.encode(CLAIMS, KEY, "HS256"), NOW_S) == CLAIMS


@pytest.mark.parametrize(("at_s", "accepted"), [(30, True), (34, True), (35, False), (1000, False)])
def test_expiry_with_leeway(at_s, accepted):
    verifier = ContextVerifier("unit-a", KEY, leeway_s=5)
    if accepted:
        assert verifier.verify(VALID, NOW_S + at_s)
    else:
        with pytest.raises(ContextRefused, match="expired"):
            verifier.verify(VALID, NOW_S + at_s)


@pytest.mark.parametrize(
    ("token", "reason"),
    [
        pytest.param("", "malformed", id="empty"),
        pytest.param("a.b", "malformed", id="two parts"),
        pytest.param(VALID + ".x", "malformed", id="four parts"),
        pytest.param(VALID + "=", "malformed", id="padding"),
        pytest.param(VALID[:-1] + "!", "malformed", id="alphabet"),
        pytest.param("a" * 9000 + ".b.c", "malformed", id="too long"),
        pytest.param("\u20ac" + VALID, "signature", id="not ascii"),
        pytest.param(signed(HEADER, CLAIMS, b"x" * 32), "signature", id="another key"),
        pytest.param(VALID[1:], "signature", id="cut"),
        pytest.param(jwt.encode(CLAIMS, None, "none"), "signature", id="none"),
        pytest.param(signed({"alg": "HS384"}, CLAIMS), "algorithm", id="another algorithm"),
        pytest.param(signed({"alg": "HS256", "crit": ["x"]}, CLAIMS), "algorithm", id="crit"),
        pytest.param(signed({}, CLAIMS), "algorithm", id="no algorithm"),
        pytest.param(signed(HEADER, {**CLAIMS, "aud": "unit-b"}), "audience", id="another unit"),
        pytest.param(signed(HEADER, {**CLAIMS, "aud": ["unit-a"]}), "audience", id="list of units"),
        pytest.param(signed(HEADER, {"aud": "unit-a"}), "malformed", id="no expiry"),
        pytest.param(signed(HEADER, {**CLAIMS, "exp": "soon"}), "malformed", id="expiry as text"),
        pytest.param(signed(HEADER, {**CLAIMS, "exp": True}), "malformed", id="expiry as boolean"),
        pytest.param(signed(HEADER, b"[]"), "malformed", id="claims not an object"),
        pytest.param(signed(HEADER, b"{"), "malformed", id="claims not json"),
    ],
)
def test_refused(token, reason):
    with pytest.raises(ContextRefused, match=f"^{reason}$"):
        ContextVerifier("unit-a", KEY).verify(token, NOW_S)


def test_short_key_is_refused():
    with pytest.raises(ValueError, match="32"):
        ContextVerifier("unit-a", KEY[:31])

"""Keys of other issuers in a verifier: who names an issuer is judged by that issuer's keys, and by no others."""

from __future__ import annotations

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from fastpath.token import Key, TokenError, UnknownKey, Verifier
from gateway.auth.keys import SignatureCheck

NOW = 1_700_000_000
SECRET = b"a secret of more than thirty-two bytes, for tests"
OURS, THEIRS, OTHERS = "https://us", "https://them", "https://others"
PRIVATE = {name: ec.generate_private_key(ec.SECP256R1()) for name in (THEIRS, OTHERS)}


def mapping(claims):
    if claims.get("group") != "nurses":
        raise TokenError("role", "no role")
    return "nurse", "staff", {"iss": claims["iss"], "sub": claims["sub"], "role": "nurse"}, 600.0


def key_of(issuer, kid, **more):
    return Key(
        kid, "ES256", SignatureCheck("ES256", PRIVATE[issuer].public_key()), issuer=issuer, audiences=["api"],
        max_lifetime_s=3_600, mapping=mapping, **more,
    )  # fmt: skip


@pytest.fixture
def verifier():
    made = Verifier(
        [Key("k", "HS256", SECRET, issuer=OURS, audiences=["staff"], role="clerk")], known_audiences=["staff", "api"]
    )
    made.set_issuer(THEIRS, [key_of(THEIRS, "k")])
    made.set_issuer(OTHERS, [key_of(OTHERS, "k"), key_of(OTHERS, "k2")])
    return made


def token(issuer=THEIRS, kid="k", signer=None, **claims):
    payload = {
        "iss": issuer, "aud": "api", "sub": "s", "iat": NOW, "exp": NOW + 600, "group": "nurses", "patient": "p",
        **claims,
    }  # fmt: skip
    signer = signer or issuer
    secret, alg = (SECRET, "HS256") if signer == OURS else (PRIVATE[signer], "ES256")
    return jwt.encode(payload, secret, alg, {"kid": kid} if kid else None)


def refusal(verifier, text):
    with pytest.raises(TokenError) as caught:
        verifier.verify(text, NOW)
    return caught.value


def test_one_kid_is_a_key_of_each(verifier):
    found = verifier.verify(token(), NOW)
    assert (found.role, found.audience, found.key.issuer) == ("nurse", "staff", THEIRS)
    assert found.claims == {"iss": THEIRS, "sub": "s", "role": "nurse"}, "what is not mapped does not come in"
    assert verifier.verify(token(OTHERS), NOW).key.issuer == OTHERS
    ours = verifier.verify(token(OURS, aud="staff"), NOW)
    assert (ours.role, ours.claims["patient"]) == ("clerk", "p")


@pytest.mark.parametrize("issuer", [OURS, THEIRS, OTHERS])
@pytest.mark.parametrize("signer", [OURS, THEIRS, OTHERS])
def test_a_key_signs_for_its_own_issuer_alone(verifier, issuer, signer):
    text = token(issuer, signer=signer, aud="staff" if issuer == OURS else "api")
    if issuer == signer:
        assert verifier.verify(text, NOW).key.issuer == issuer
    else:
        assert refusal(verifier, text).code in ("algorithm", "signature")


@pytest.mark.parametrize(
    ("made", "code"),
    [
        (lambda: token(kid=None), "header"),
        (lambda: token(group="doctors"), "role"),
        (lambda: token(aud="staff"), "audience"),
        (lambda: token(aud=["api", "staff"]), "audience"),
        (lambda: token(exp=NOW + 601), "lifetime"),
        (lambda: token(exp=NOW - 1), "expired"),
        (lambda: token("https://nobody", signer=THEIRS), "algorithm"),
        (lambda: token("https://nobody", kid="k2", signer=OTHERS), "unknown-key"),
    ],
    ids=[
        "no-kid",
        "no-role",
        "our-audience",
        "two-audiences",
        "longer-than-its-role",
        "expired",
        "nobody",
        "kid-of-another",
    ],
)
def test_refused(verifier, made, code):
    assert refusal(verifier, made()).code == code


def test_an_unknown_kid_says_whose(verifier):
    error = refusal(verifier, token(kid="new"))
    assert isinstance(error, UnknownKey)
    assert (error.code, error.issuer, error.kid) == ("unknown-key", THEIRS, "new")
    error = refusal(verifier, token(OURS, kid="new", aud="staff"))
    assert (error.issuer, error.kid) == (None, "new")


def test_other_keys_replace_what_there_was(verifier):
    kept = key_of(OTHERS, "k2")
    verifier.set_issuer(OTHERS, [kept])
    text, stays = token(OTHERS, kid="k2"), token(THEIRS)
    first, other = verifier.verify(text, NOW), verifier.verify(stays, NOW)
    verifier.set_issuer(OTHERS, [kept, key_of(OTHERS, "k3")])
    assert verifier.hit(text, NOW) is first, "the same key again: remembered still"
    verifier.set_issuer(OTHERS, [])
    assert verifier.hit(text, NOW) is None
    assert refusal(verifier, text).code == "unknown-key"
    assert verifier.hit(stays, NOW) is other


def test_what_a_provider_may_not_have(verifier):
    with pytest.raises(ValueError, match="a kid each"):
        verifier.set_issuer(THEIRS, [key_of(THEIRS, "a"), key_of(THEIRS, "a")])
    with pytest.raises(ValueError, match="its name"):
        verifier.set_issuer(THEIRS, [key_of(OTHERS, "a")])


def test_a_payload_that_is_none_is_refused_after_its_signature(verifier):
    head, _, signature = token().split(".")
    assert refusal(verifier, f"{head}.e30.{signature}").code in ("signature", "algorithm")
    assert refusal(verifier, f"{head}.eyJh.{signature}").code in ("signature", "algorithm")

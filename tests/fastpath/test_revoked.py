"""Revocations by session, subject, unit and moment, against a plain model; a remembered token is looked up again only
after something was revoked."""

from __future__ import annotations

import jwt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastpath.revoked import KINDS, Revoked
from fastpath.token import Key, TokenError, Verifier

NOW = 1_700_000_000
SECRET = b"a secret of more than thirty-two bytes, for tests"
FAR = NOW + 1e6

names = st.sampled_from(["a", "b"])
optional = st.none() | names
rules = st.lists(
    st.tuples(st.sampled_from(KINDS), names, st.sampled_from([NOW - 10.0, NOW + 10.5]), optional, optional, optional),
    max_size=4,
)
tokens = st.fixed_dictionaries(
    {
        "jti": optional,
        "sid": st.none() | names | st.just(7),
        "sub": names,
        "iss": names,
        "units": st.none() | names | st.lists(names, max_size=2),
        "audience": names,
        "role": optional,
        "issued_s": st.sampled_from([-1.0, NOW - 10.0, NOW + 0.0, NOW + 11.0]),
    }
)


def model(found_rules, token):
    """The same in plain words."""
    for kind, value, before_s, issuer, audience, role in found_rules:
        if kind == "jti" and token["jti"] == value:
            return True
        if kind == "session" and token["sid"] == value:
            return True
        if kind in ("jti", "session"):
            continue
        if token["issued_s"] >= before_s:
            continue
        if issuer not in (None, token["iss"]) or audience not in (None, token["audience"]):
            continue
        if role not in (None, token["role"]):
            continue
        units = token["units"] if isinstance(token["units"], list) else [token["units"]]
        if kind == "before" or (kind == "subject" and token["sub"] == value):
            return True
        if kind == "unit" and value in [token["iss"], *units]:
            return True
    return False


@settings(max_examples=400)
@given(rules, tokens)
def test_as_the_model(found_rules, token):
    revoked = Revoked()
    for kind, value, before_s, issuer, audience, role in found_rules:
        revoked.revoke(kind, value, before_s, FAR, issuer, audience, role)
    claims = {name: token[name] for name in ("sid", "iss", "units") if token[name] is not None}
    found = revoked.refuses(claims, token["jti"], token["sub"], token["audience"], token["role"], token["issued_s"])
    assert found == model(found_rules, token)


def token_of(**claims):
    payload = {"iss": "us", "aud": "staff", "sub": "s", "exp": NOW + 600, "iat": NOW, "jti": "j", **claims}
    return jwt.encode({k: v for k, v in payload.items() if v is not None}, SECRET, "HS256", {"kid": "k"})


@pytest.fixture
def verifier():
    return Verifier([Key("k", "HS256", SECRET, issuer="us", audiences=["staff"], role="nurse")])


@pytest.mark.parametrize(
    ("rule", "claims"),
    [
        (("session", "S", 0.0, FAR), {"sid": "S"}),
        (("subject", "s", NOW + 1.0, FAR), {}),
        (("subject", "s", NOW + 1.0, FAR, "us", "staff", "nurse"), {}),
        (("subject", "s", NOW - 1.0, FAR), {"iat": None}),
        (("unit", "north", NOW + 1.0, FAR), {"units": ["south", "north"]}),
        (("unit", "north", NOW + 1.0, FAR), {"units": "north"}),
        (("before", "", NOW + 1.0, FAR), {}),
        (("before", "", NOW + 1.0, FAR, None, None, "nurse"), {}),
    ],
    ids=lambda value: "-".join(map(str, value[:1] + value[4:])) if isinstance(value, tuple) else "",
)
@pytest.mark.parametrize("seen", [False, True], ids=["new", "remembered"])
def test_a_token_is_refused_from_then_on(verifier, rule, claims, seen):
    text = token_of(**claims)
    if seen:
        verifier.verify(text, NOW)
        assert verifier.hit(text, NOW) is not None
    verifier.revocations.revoke(*rule)
    assert verifier.hit(text, NOW) is None
    for _ in range(2):
        with pytest.raises(TokenError) as caught:
            verifier.verify(text, NOW)
        assert caught.value.code == "revoked"


@pytest.mark.parametrize(
    "rule",
    [
        ("session", "other", 0.0, FAR),
        ("subject", "s", float(NOW), FAR),
        ("subject", "s", NOW + 1.0, FAR, "them"),
        ("unit", "north", NOW + 1.0, FAR),
        ("before", "", float(NOW), FAR),
        ("before", "", NOW + 1.0, FAR, None, "patient-app"),
        ("before", "", NOW + 1.0, FAR, None, None, "clerk"),
    ],
    ids=str,
)
def test_others_stay_and_are_looked_up_once(verifier, rule):
    text = token_of(units=["south"])
    first = verifier.verify(text, NOW)
    verifier.revocations.revoke(*rule)
    assert verifier.hit(text, NOW) is first, "remembered still"
    assert verifier.verify(text, NOW) is first


def test_what_has_run_out_is_forgotten(verifier):
    revoked = verifier.revocations
    for kind in KINDS:
        revoked.revoke(kind, "x", NOW + 1.0, NOW + 5.0)
    revoked.revoke("subject", "y", NOW + 1.0, FAR, "us")
    assert {rule[0] for rule in revoked.rules()} == {"session", "subject", "unit", "before"}
    verifier.forget_revoked(NOW + 6.0)
    assert revoked.rules() == [("subject", "y", NOW + 1.0, FAR, "us", None, None)]
    assert revoked.jtis == {}


def test_of_two_the_later_counts():
    revoked = Revoked()
    revoked.revoke("subject", "s", NOW + 5.0, FAR)
    revoked.revoke("subject", "s", NOW + 1.0, FAR - 1)
    assert revoked.rules() == [("subject", "s", NOW + 5.0, FAR, None, None, None)]


def test_verifiers_that_share(verifier):
    other = Verifier([Key("k", "HS256", SECRET, issuer="us", audiences=["staff"], role="nurse")])
    text = token_of()
    other.verify(text, NOW)
    verifier.revocations.revoke("jti", "j", 0.0, FAR)
    other.share(verifier.revocations)
    with pytest.raises(TokenError, match="revoked"):
        other.verify(text, NOW)


def test_another_kind_is_refused():
    with pytest.raises(ValueError, match="revoked is a jti"):
        Revoked().revoke("tenant", "x", 0.0, FAR)

"""What another issuer's claims mean here, and what of them never comes in."""

from __future__ import annotations

import pytest

from fastpath.token import TokenError
from gateway.auth.mapping import ClaimMapping, MappedRole, look_up

ROLES = (
    MappedRole("doctor", "groups", "doctors", 600.0),
    MappedRole("nurse", "/realm_access/roles", "nurse", 300.0),
    MappedRole("clerk", "https://id/kind", "clerk", 900.0),
)
MAPPING = ClaimMapping("staff", ROLES, {"units": "hospital_units", "org": "/tenant/0/id", "purpose": "pou"})
BASE = {"iss": "https://them", "sub": "s", "aud": "api", "exp": 2, "iat": 1}


@pytest.mark.parametrize(
    ("claims", "role", "lifetime_s"),
    [
        ({"groups": ["x", "doctors"]}, "doctor", 600.0),
        ({"groups": "doctors"}, "doctor", 600.0),
        ({"realm_access": {"roles": ["nurse"]}}, "nurse", 300.0),
        ({"groups": ["doctors"], "realm_access": {"roles": ["nurse"]}}, "doctor", 600.0),
        ({"https://id/kind": "clerk"}, "clerk", 900.0),
    ],
    ids=["list", "text", "pointer", "first-counts", "url"],
)
def test_roles(claims, role, lifetime_s):
    found = MAPPING({**BASE, **claims})
    assert (found[0], found[1], found[3]) == (role, "staff", lifetime_s)
    assert (found[2]["role"], found[2]["aud"]) == (role, "staff")


@pytest.mark.parametrize(
    "claims",
    [
        {}, {"role": "doctor"}, {"groups": "doctors "}, {"groups": {"doctors": True}}, {"groups": [["doctors"]]},
        {"realm_access": {"roles": "nurses"}}, {"realm_access": ["roles", "nurse"]}, {"groups": True},
        {"groups": "DOCTORS"},
    ],
    ids=str,
)  # fmt: skip
def test_no_role(claims):
    with pytest.raises(TokenError) as caught:
        MAPPING({**BASE, **claims})
    assert caught.value.code == "role"


def test_only_what_is_mapped_comes_in():
    claims = {
        **BASE, "groups": "doctors", "patient": "p", "units": ["their-own"], "org": "o", "role": "admin",
        "act": {"sub": "x"}, "hospital_units": ["north"], "tenant": [{"id": "t-1"}], "scope": "a b", "jti": "j",
        "sid": "S", "cnf": {"jkt": "k"}, "email": "a@b", "purpose": "TREAT",
    }  # fmt: skip
    mapped = MAPPING(claims)[2]
    assert mapped == {
        **BASE, "aud": "staff", "role": "doctor", "units": ["north"], "org": "t-1", "scope": "a b", "jti": "j",
        "sid": "S",
    }  # fmt: skip


@pytest.mark.parametrize("claim", ["nonce", "at_hash", "c_hash"])
def test_an_id_token_is_no_access_token(claim):
    with pytest.raises(TokenError, match="ID token"):
        MAPPING({**BASE, "groups": "doctors", claim: "x"})


@pytest.mark.parametrize(
    ("source", "value"),
    [
        ("a", {"b": [1, {"c/d": 2, "e~f": 3}]}), ("/a/b/0", 1), ("/a/b/1/c~1d", 2), ("/a/b/1/e~0f", 3),
        ("/a/b/2", None),
        ("/a/b/-1", None), ("/a/x", None), ("/a/b/0/y", None), ("a.b", 7), ("/", 8), ("/a/b/٠", None),
    ],
)  # fmt: skip
def test_pointers(source, value):
    assert look_up({"a": {"b": [1, {"c/d": 2, "e~f": 3}]}, "a.b": 7, "": 8}, source) == value

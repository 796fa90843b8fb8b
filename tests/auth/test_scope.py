"""Scopes of grants: what was asked for and the role may have, and never more than before."""

from __future__ import annotations

from urllib.parse import parse_qs, urlsplit

import pytest

from gateway.auth.scope import granted_scope, is_scope
from gateway.errors import TokenRequestRefused
from tests.auth.kit import claims_of

pytestmark = pytest.mark.usefixtures("quick")
MOST = ("user/Observation.rs", "user/Patient.r", "user/Condition.cruds")
ALL = " ".join(MOST)

GRANTED = {
    "nothing asked": (None, None, ALL),
    "one": ("user/Patient.r", None, "user/Patient.r"),
    "less of one": ("user/Condition.r", None, "user/Condition.r"),
    "version 1": ("user/Observation.read", None, "user/Observation.read"),
    "twice": ("user/Patient.r user/Patient.r", None, "user/Patient.r"),
    "with others": ("openid user/Patient.r offline_access", None, "user/Patient.r"),
    "more of one": ("user/Patient.rs user/Observation.s", None, "user/Observation.s"),
    "as before": (None, "user/Patient.r", "user/Patient.r"),
    "less than before": ("user/Condition.r", "user/Condition.cruds user/Patient.r", "user/Condition.r"),
    "before the role had less": (None, "user/Patient.r user/Patient.cruds", "user/Patient.r"),
    "nothing before": (None, "", ""),
}


@pytest.mark.parametrize(("asked", "within", "expected"), GRANTED.values(), ids=GRANTED.keys())
def test_granted(asked, within, expected):
    assert granted_scope(MOST, asked, within=within) == expected


REFUSED = {
    "another type": (MOST, "user/Immunization.r", None),
    "another context": (MOST, "patient/Patient.r", None),
    "every type": (MOST, "user/*.r", None),
    "a restriction": (MOST, "user/Observation.rs?category=laboratory", None),
    "no resource": (MOST, "openid", None),
    "more than before": (MOST, "user/Condition.cruds", "user/Condition.r"),
    "what was not there before": (MOST, "user/Patient.r", ""),
    "two spaces": (MOST, "user/Patient.r  user/Condition.r", None),
    "a space at the end": (MOST, "user/Patient.r ", None),
    "a line break": (MOST, "user/Patient.r\nuser/Condition.r", None),
    "a quote": (MOST, 'user/Patient.r"', None),
    "too long": (MOST, "user/Patient.r " * 300 + "x", None),
    "of a role without scopes": (None, "user/Patient.r", None),
}


@pytest.mark.parametrize(("most", "asked", "within"), REFUSED.values(), ids=REFUSED.keys())
def test_refused(most, asked, within):
    with pytest.raises(TokenRequestRefused) as caught:
        granted_scope(most, asked, within=within)
    assert caught.value.members["error"] == "invalid_scope"


def test_a_role_without_scopes_has_none():
    assert granted_scope(None, None) == granted_scope(None, None, within="user/Patient.r") == ""
    assert is_scope("a b")
    assert not is_scope("")


def test_a_login_carries_what_was_asked_for(log_in, refresh):
    given = log_in("weber", scope="user/Patient.r user/Condition.rs user/Immunization.r")
    assert given["scope"] == claims_of(given["access_token"])["scope"] == "user/Patient.r user/Condition.rs"
    less = refresh(given["refresh_token"], scope="user/Condition.r").json
    assert less["scope"] == claims_of(less["access_token"])["scope"] == "user/Condition.r"
    again = refresh(less["refresh_token"]).json
    assert again["scope"] == "user/Patient.r user/Condition.rs", "the refresh token keeps what the login gave"
    more = refresh(again["refresh_token"], scope="user/Observation.rs")
    assert more.json["error"] == "invalid_scope"
    assert refresh(again["refresh_token"]).status_code == 200, "it was not used by that"


def test_a_login_without_a_wish_has_all(log_in):
    assert claims_of(log_in("weber")["access_token"])["scope"] == ALL
    assert "scope" not in log_in("anna")


def test_a_login_page_whose_wish_cannot_be_granted_sends_back(page):
    assert parse_qs(urlsplit(page.open(scope="user/Patient.r").headers["location"]).query)["error"] == ["invalid_scope"]
    for scope, expected in (("user/Immunization.r", "invalid_scope"), ("user/Patient.r", "")):
        page.open(client_id="desk", scope=scope)
        query = parse_qs(urlsplit(page.send("weber").headers["location"]).query)
        assert query.get("error", [""]) == [expected]
        assert ("code" in query) is (not expected)

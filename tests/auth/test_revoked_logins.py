"""Logins end with what revokes them: a refresh token gives nothing to a session that began before the moment."""

from __future__ import annotations

import time

import pytest

from gateway.store.revocation import NewRevocation, RevocationStore
from tests.auth.kit import claims_of

pytestmark = pytest.mark.usefixtures("quick")


def revoke(service, **what):
    RevocationStore(service.gateway.database).add(NewRevocation(author="ada", reason="", **what))
    service.gateway.tokens.feed.refresh()


@pytest.mark.parametrize(
    ("what", "goes_on"),
    [
        (lambda claims: {"kind": "session", "value": claims["sid"]}, False),
        (lambda claims: {"kind": "session", "value": "another"}, True),
        (lambda claims: {"kind": "subject", "value": claims["sub"], "audience": claims["aud"]}, False),
        (lambda claims: {"kind": "subject", "value": claims["sub"], "issuer": claims["iss"]}, False),
        (lambda claims: {"kind": "subject", "value": claims["sub"], "issuer": "https://another"}, True),
        (lambda claims: {"kind": "before", "audience": claims["aud"]}, False),
        (lambda claims: {"kind": "before", "audience": "another"}, True),
        (lambda claims: {"kind": "subject", "value": claims["sub"], "before_s": time.time() - 3_600}, True),
    ],
    ids=["session", "other-session", "audience", "issuer", "other-issuer", "all", "other-audience", "earlier"],
)
def test_refresh(service, log_in, refresh, what, goes_on):
    first = log_in()
    revoke(service, **what(claims_of(first["access_token"])))
    answer = refresh(first["refresh_token"])
    assert answer.status_code == (200 if goes_on else 400), answer.text
    if not goes_on:
        assert answer.json["error"] == "invalid_grant"
        assert log_in()["access_token"], "a new login is welcome"

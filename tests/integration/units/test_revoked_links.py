"""Revocations reach open links: a unit's, one token's, and everything before a moment."""

from __future__ import annotations

import jwt
import pytest

from gateway.cli.main import main
from gateway.relay.frames import GoAway, GoAwayCode
from tests.integration.units.conftest import Link

pytestmark = pytest.mark.integration


@pytest.fixture
def revoke(site):
    def revoke(*arguments):
        assert main(["revoke", *arguments, "--reason", "lost", "--data-dir", str(site.directory)]) == 0

    return revoke


def goaway_of(link):
    frames, _ = link.until_closed()
    return next((frame.code, frame.why) for frame in frames if isinstance(frame, GoAway))


def test_a_revoked_unit_is_shut_out_until_it_is_enabled(site, tmp_path, revoke, wait):
    keys = site.enrolled("site-1", tmp_path)
    links = [Link(site, "site-1", keys, index) for index in range(4)]
    assert len({link.welcome.worker for link in links}) > 1, "more than one worker holds it"
    other = Link(site, "site-2", site.enrolled("site-2", tmp_path / "other"))
    revoke("unit", "site-1")
    assert all(code in (GoAwayCode.UNIT_DISABLED, GoAwayCode.AUTH_EXPIRED) for code, _ in map(goaway_of, links))
    # The command waited for every worker: from its end on there is no 101, whoever takes the dial.
    assert {Link(site, "site-1", keys).status for _ in range(12)} <= {401, 403}
    site.operate("unit", "enable", "site-1")
    # Its next token must be younger than the revocation, and `iat` counts whole seconds.
    wait(lambda: Link(site, "site-1", keys).status == 101)
    assert other.sock.send(b"") == 0
    assert site.fleet()["site-2"]["state"] == "connected"


def test_everything_before_a_moment(site, tmp_path, revoke, wait):
    keys = site.enrolled("site-3", tmp_path)
    link = Link(site, "site-3", keys)
    assert link.status == 101
    revoke("before", "now", "--audience", "unit-link")
    assert goaway_of(link) == (GoAwayCode.AUTH_EXPIRED, "token-revoked")
    wait(lambda: Link(site, "site-3", keys).status == 101)


def test_the_token_of_one_link(site, tmp_path, revoke, monkeypatch):
    keys = site.enrolled("site-5", tmp_path)
    identity = keys.identity("site-5")
    monkeypatch.setattr(type(keys), "identity", lambda self, unit: identity)
    signed = []
    original = type(identity).token

    def token(self, now_s):
        signed.append(original(self, now_s))
        return signed[-1]

    monkeypatch.setattr(type(identity), "token", token)
    first, second = Link(site, "site-5", keys, 0), Link(site, "site-5", keys, 1)
    jti = jwt.decode(signed[0], options={"verify_signature": False})["jti"]
    revoke("jti", jti)
    assert goaway_of(first) == (GoAwayCode.AUTH_EXPIRED, "token-revoked")
    assert site.fleet()["site-5"]["state"] == "connected", "the other link stays"
    assert second.status == 101

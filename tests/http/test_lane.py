"""The compiled lane through the policy answers as the middleware alone does, whatever comes."""

from __future__ import annotations

import itertools
import re
import time
from dataclasses import replace

import falcon.testing
import pytest

from fastpath.routes import RouteTable

ROLES = (None, "member", "nurse", "ward_admin", "partner", "forged")
PATHS = (
    "/v1/who", "/v1/who?verbose=1", "/v1/who?other=1", "/v1/who?access_token=x", "/v1/members/m-1/notes",
    "/v1/members/m-2/notes", "/v1/wards/w-1/beds", "/v1/wards/w%2D1/beds", "/v1/wards/w-9/beds", "/v1/wards/w-1/name",
    "/v1/secret", "/v1/list", "/v1/record", "/v1/nothing", "/relay/v1/connect", "/auth/v1/token",
)  # fmt: skip
FIELDS = ({}, {"Origin": "https://app.test"}, {"Upgrade": "websocket", "Connection": "upgrade"})
CLAIMS = {"member": {"member": "m-1"}, "nurse": {"wards": ["w-1", "w-2"]}, "ward_admin": {"wards": ["w-1"]}}
AUTHORIZATION = {"plain": "Bearer {}", "lower case": "bearer {}", "two spaces": "Bearer  {}", "tail": "Bearer {} x",
                 "list": "Bearer {}, Bearer {}", "basic": "Basic {}", "latin": "Bearer {}\xe9"}  # fmt: skip


def _seen(answer: falcon.testing.Result) -> tuple[object, ...]:
    """An answer without what differs from request to request, or from second to second."""
    fields = {name: re.sub(r"t=\d+", "t", value) for name, value in answer.headers.items() if name != "x-request-id"}
    fields.pop("retry-after", None)
    body = re.sub(r"[0-9a-f-]{36}", "id", answer.text)
    return answer.status, sorted(fields.items()), body


@pytest.fixture
def tokens(token) -> dict[str, str]:
    made = {role: token(role, **CLAIMS.get(role, {})) for role in ROLES if role not in (None, "forged")}
    return {**made, "forged": made["member"][:-6] + "AAAAAA"}


@pytest.mark.parametrize("method", ["GET", "PUT", "OPTIONS", "HEAD"])
def test_answers_as_the_middleware_does(twins, tokens, method) -> None:
    """Every request twice: the second finds what the first left behind."""
    different = []
    for role, path, fields in itertools.product(ROLES, PATHS, FIELDS):
        auth = {"Authorization": f"Bearer {tokens[role]}"} if role else {}
        target, _, query = path.partition("?")
        for _ in range(2):
            one, other = (
                _seen(client.simulate_request(method, target, query_string=query, headers={**auth, **fields}))
                for client in twins
            )
            if one != other:
                different.append((role, path, fields, one, other))
    assert different == []


@pytest.mark.parametrize("form", AUTHORIZATION.values(), ids=AUTHORIZATION)
def test_spellings_of_authorization(twins, tokens, form) -> None:
    value = form.format(tokens["member"], tokens["member"])
    for _ in range(2):
        one, other = (_seen(client.simulate_get("/v1/who", headers={"Authorization": value})) for client in twins)
        assert one == other


@pytest.mark.parametrize("ways", list(itertools.product("ml", repeat=4)), ids="".join)
def test_a_limit_holds_over_both_ways(gateway, both, tokens, ways) -> None:
    """Three a minute: the fourth is refused, whichever way each request goes, and so is a later one that is forged."""
    fields = {"Authorization": f"Bearer {tokens['partner']}"}
    statuses = [both[way].simulate_get("/v1/list", headers=fields).status_code for way in ways]
    assert statuses == [200, 200, 200, 429]


@pytest.mark.parametrize("way", "ml")
def test_what_a_refused_request_took_is_given_back(both, tokens, way) -> None:
    """The address gets its token back when the caller's own limit refuses."""
    fields = {"Authorization": f"Bearer {tokens['partner']}"}
    left = [
        re.search(r'"address";r=(\d+)', both[way].simulate_get("/v1/list", headers=fields).headers["ratelimit"])[1]
        for _ in range(6)
    ]
    assert left == ["49", "48", "47", "47", "47", "47"]


def test_revoked_retired_expired_tokens_are_refused(gateway, both, token) -> None:
    """A token the lane has seen good is refused the moment it no longer is."""
    good = token("member", jti="one")
    fields = {"Authorization": f"Bearer {good}"}
    assert [both["l"].simulate_get("/v1/who", headers=fields).status_code for _ in range(3)] == [200] * 3
    gateway.holder.current.verifier.revoke_jti("one")
    assert both["l"].simulate_get("/v1/who", headers=fields).status_code == 401


def test_a_new_snapshot_decides_at_once(gateway, both, tokens) -> None:
    """After a swap the lane of the old snapshot serves nobody."""
    fields = {"Authorization": f"Bearer {tokens['member']}"}
    assert [both["l"].simulate_get("/v1/who", headers=fields).status_code for _ in range(2)] == [200] * 2
    old = gateway.holder.current
    changed = replace(old, routes=RouteTable(()), version=2)
    gateway.holder.swap(changed)
    assert both["l"].simulate_get("/v1/who", headers=fields).status_code == 404
    gateway.holder.swap(old)
    assert both["l"].simulate_get("/v1/who", headers=fields).status_code == 200


def test_a_refused_token_is_verified_once(gateway, both, tokens) -> None:
    """A flood of forged tokens costs one signature each."""
    verifier = gateway.holder.current.verifier
    for way, forged in (("l", tokens["forged"]), ("m", tokens["forged"][:-6] + "BBBBBB")):
        before = verifier.misses
        for _ in range(2):
            assert both[way].simulate_get("/v1/who", headers={"Authorization": f"Bearer {forged}"}).status_code == 401
        assert verifier.misses - before == 2


def test_a_caller_is_the_same_whoever_finds_out(gateway, both, token) -> None:
    """The lane makes the same principal of a token as the middleware."""
    found, text = [], token("nurse", jti="same", wards=["w-1"])
    for way in "lm":
        gateway.holder.current.verifier.clear()
        assert both[way].simulate_get("/v1/who", headers={"Authorization": f"Bearer {text}"}).status_code == 200
        caller = gateway.holder.current.verifier.verify(text, time.time()).principal
        found.append({name: getattr(caller, name) for name in dir(caller) if name[0] != "_" and name != "grants"})
    assert found[0] == found[1]
    assert found[0]["token_id"] == "same"
    assert found[0]["role"] == "nurse"

"""Scopes through the gateway: what a token's scopes and its role's have in common, over the middleware and the lane."""

from __future__ import annotations

import pytest

from gateway.audit.event import Accesses, decode


@pytest.fixture
def scoped(base):
    """Nurses need scopes; ward_admin, on the same routes, does not."""
    base["roles"]["nurse"]["scopes"] = ["user/*.rs", "user/Task.c", "patient/Observation.rs"]
    base["limits"]["address"] = {"per": "address", "rate": 1000, "burst": 1000}
    for name in ("who", "secret", "record", "ward-write"):
        base["controllers"][name]["scope"] = "none"
    base["controllers"]["ward"] |= {"scope": "Observation.s", "methods": ["GET"]}

    def ping(path, **more):
        return {"path": path, "methods": ["GET", "POST", "PUT", "DELETE"], "audiences": ["staff"],
                "roles": ["nurse", "ward_admin"], "resource": "ping", "unbound_roles": [], **more}  # fmt: skip

    base["controllers"] |= {
        "fhir": ping("/v1/fhir/{path:path}", scope="path:path"),
        "derived": ping("/v1/tasks/{task}", audit={"resource": "Task", "id": "task"}, methods=["GET"]),
        "created": ping("/v1/tasks", audit={"resource": "Task"}, methods=["POST"]),
        "own": ping("/v1/own/{patient}", scope="Observation.r", bind=[{"param": "patient", "claim": "patient"}]),
    }
    base["controllers"]["own"]["unbound_roles"] = []
    return base


@pytest.fixture
def ask(gateway_of, ways, scoped, token):
    """The answer, which is the same by either way, also to a second request."""
    clients = ways(gateway_of(scoped))

    def ask(path, method="GET", role="nurse", **claims):
        fields = {"Authorization": f"Bearer {token(role, **claims)}"}
        answers = [clients[way].simulate_request(method, path, headers=fields) for way in "mlml"]
        assert len({(a.status_code, a.headers.get("WWW-Authenticate")) for a in answers}) == 1
        return answers[0]

    return ask


WARD = "/v1/wards/w1/beds"


@pytest.mark.parametrize(
    ("path", "method", "scope", "status", "needed"),
    [
        pytest.param(WARD, "GET", "user/Observation.s", 200, None, id="exact"),
        pytest.param(WARD, "GET", ["user/Observation.rs"], 200, None, id="as a list"),
        pytest.param(WARD, "GET", "openid user/*.cruds", 200, None, id="wildcard, within the role's"),
        pytest.param(WARD, "GET", "user/Observation.read", 200, None, id="version 1"),
        pytest.param(WARD, "GET", "user/Observation.r", 403, "user/Observation.s", id="another letter"),
        pytest.param(WARD, "GET", "user/Patient.s", 403, "user/Observation.s", id="another type"),
        pytest.param(WARD, "GET", "user/Observation.write", 403, "user/Observation.s", id="write is no read"),
        pytest.param(WARD, "GET", "system/Observation.s", 403, "user/Observation.s", id="a context the role has not"),
        pytest.param(WARD, "GET", "patient/Observation.rs", 403, "user/Observation.s", id="no patient is bound"),
        pytest.param(WARD, "GET", "user/Observation.s?code=x", 403, "user/Observation.s", id="a restriction"),
        pytest.param(WARD, "GET", "user/Observation.sr", 403, "user/Observation.s", id="letters out of order"),
        pytest.param(WARD, "GET", "", 403, "user/Observation.s", id="empty"),
        pytest.param(WARD, "GET", None, 403, "user/Observation.s", id="no scope"),
        pytest.param("/v1/who", "GET", None, 403, None, id="no scope, where any would do"),
        pytest.param("/v1/who", "GET", "openid", 403, None, id="no scope on resources"),
        pytest.param("/v1/who", "GET", "user/Patient.r", 200, None, id="any scope"),
        pytest.param("/v1/own/p1", "GET", "patient/Observation.r", 200, None, id="her own, bound"),
        pytest.param("/v1/own/p2", "GET", "patient/Observation.r", 403, None, id="... and another's"),
        pytest.param("/v1/own/p1", "GET", None, 403, "patient/Observation.r", id="... and what to ask for"),
        pytest.param("/v1/tasks/7", "GET", "user/Task.r", 200, None, id="derived: a read"),
        pytest.param("/v1/tasks/7", "GET", "user/Task.s", 403, "user/Task.r", id="derived: not a search"),
        pytest.param("/v1/tasks", "POST", "user/Task.c", 200, None, id="derived: create"),
        pytest.param("/v1/tasks", "POST", "user/Task.r", 403, "user/Task.c", id="derived: create, refused"),
        pytest.param("/v1/fhir/Patient/7", "GET", "user/Patient.r", 200, None, id="FHIR read"),
        pytest.param("/v1/fhir/Patient", "GET", "user/Patient.r", 403, "user/Patient.s", id="FHIR search"),
        pytest.param("/v1/fhir/%50atient", "GET", "user/Patient.r", 403, "user/Patient.s", id="FHIR, escaped"),
        pytest.param("/v1/fhir/Task", "POST", "user/Task.c", 200, None, id="FHIR create"),
        pytest.param("/v1/fhir/Patient", "POST", "user/*.cruds", 403, "user/Patient.c", id="beyond the role's own"),
        pytest.param("/v1/fhir/Patient/7/$everything", "GET", "user/*.cruds", 403, None, id="an operation"),
        pytest.param("/v1/fhir/Nothing", "GET", "user/*.cruds", 403, None, id="no type"),
    ],
)
def test_scope(ask, path, method, scope, status, needed):
    claims = {"wards": ["w1"], "patient": "p1"} | ({} if scope is None else {"scope": scope})
    answer = ask(path, method, **claims)
    assert answer.status_code == status
    if status == 403 and "/own/p2" not in path:
        assert answer.json["type"] == "urn:caregate:problem:scope-refused"
        told = 'Bearer realm="test", error="insufficient_scope"'
        assert answer.headers["WWW-Authenticate"] == (told if needed is None else f'{told}, scope="{needed}"')


@pytest.fixture
def watched(scoped):
    """The same routes, with scopes that only watch."""
    for name, need in (("ward", "Observation.s"), ("who", "none"), ("fhir", "path:path")):
        scoped["controllers"][name]["scope"] = {"need": need, "shadow": True}
    scoped["controllers"]["derived"]["scope"] = {"shadow": True}
    scoped["upstreams"] = {"fhir": {"endpoints": ["http://127.0.0.1:9"]}}
    scoped["controllers"]["wide"] = {
        "path": "/v1/wide", "methods": ["GET"], "audiences": ["staff"], "roles": ["nurse"], "resource": "ping",
        "scope": {"need": "Observation.s", "shadow": True}, "query": ["_include", "code"],
    }  # fmt: skip
    scoped["controllers"]["granted"] = {
        "path": "/v1/granted", "methods": ["GET"], "audiences": ["staff"], "roles": ["nurse", "ward_admin"],
        "resource": "ping", "scope": "none", "permission": {"name": "ward.write", "shadow": True},
    }  # fmt: skip
    scoped["controllers"]["nobody"] = {
        "path": "/v1/nobody", "methods": ["GET"], "audiences": ["staff"], "roles": ["nurse"], "resource": "ping",
        "scope": {"need": "Patient.d", "shadow": True}, "permission": {"name": "not.given.yet", "shadow": True},
    }  # fmt: skip
    return scoped


@pytest.mark.parametrize(
    ("path", "role", "scope", "shadow"),
    [
        pytest.param(WARD, "nurse", "user/Observation.s", "", id="its scope"),
        pytest.param(WARD, "nurse", "user/Patient.s", "scope", id="another scope"),
        pytest.param(WARD, "nurse", None, "scope", id="no scope"),
        pytest.param(WARD, "ward_admin", None, "", id="a role without scopes"),
        pytest.param("/v1/who", "nurse", "openid", "scope", id="no scope on resources"),
        pytest.param("/v1/tasks/7", "nurse", "user/Task.s", "scope", id="derived, another letter"),
        pytest.param("/v1/tasks/7", "nurse", "user/Task.r", "", id="derived"),
        pytest.param("/v1/fhir/Patient/7/$everything", "nurse", "user/*.rs", "scope", id="an operation"),
        pytest.param("/v1/wide?_include=Observation:subject", "nurse", "user/Observation.s", "scope", id="wide"),
        pytest.param("/v1/wide?_include=Observation:subject", "nurse", "user/*.rs", "", id="wide, of all types"),
        pytest.param("/v1/wide?code=a;b", "nurse", "user/Observation.s", "scope", id="broken"),
        pytest.param("/v1/granted", "nurse", "user/Patient.r", "permission", id="no permission"),
        pytest.param("/v1/granted", "ward_admin", None, "", id="its permission"),
        pytest.param("/v1/nobody", "nurse", "user/*.rs", "permission,scope", id="both"),
    ],
)
def test_a_rule_that_only_watches_is_told_of_and_lets_pass(
    gateway_of, ways, watched, token, monkeypatch, path, role, scope, shadow
):
    gateway = gateway_of(watched)
    noted, events = [], []
    monkeypatch.setattr(gateway.access_log, "write", lambda ctx, status, took: noted.append(ctx))
    encode = Accesses("n").encode
    monkeypatch.setattr(
        gateway.audit, "enqueue_finished", lambda ctx, s: events.append(decode(encode(ctx, s, 1, 1)).detail)
    )
    claims = {"wards": ["w1"]} | ({} if scope is None else {"scope": scope})
    fields = {"Authorization": f"Bearer {token(role, **claims)}"}
    base, _, query = path.partition("?")
    for way in "mlml":
        answer = ways(gateway)[way].simulate_get(base, query_string=query, headers=fields)
        assert answer.status_code == 200
    assert [(ctx.shadow, ctx.rule) for ctx in noted] == [(shadow, "allowed")] * 4
    assert events == [{"shadow": shadow} if shadow else {}] * 4
    text = gateway.metrics.render().decode()
    for rule in filter(None, shadow.split(",")):
        assert f'caregate_shadow_refusals_total{{route="{noted[0].route.name}",rule="{rule}"}} 4.0' in text
    assert bool(shadow) == ("caregate_shadow_refusals_total{" in text)


def test_a_rule_in_force_beside_one_that_watches_refuses(gateway_of, ways, watched, token):
    gateway = gateway_of(watched)
    fields = {"Authorization": f"Bearer {token('nurse', wards=['w2'])}"}
    for way in "mlml":
        answer = ways(gateway)[way].simulate_get(WARD, headers=fields)
        assert answer.json["type"] == "urn:caregate:problem:binding-refused"


def test_scp_where_there_is_no_scope(ask):
    assert ask(WARD, wards=["w1"], scp=["user/Observation.s"]).status_code == 200
    assert ask(WARD, wards=["w1"], scp=["user/Observation.s"], scope="openid").status_code == 403


@pytest.mark.parametrize("scope", [1, None, ["user/*.rs", 1], {"user/*.rs": True}], ids=repr)
def test_a_scope_of_the_wrong_type_is_no_token(ask, token, scope):
    claims = {"wards": ["w1"], "scp": scope} if scope is not None else {"wards": ["w1"], "scp": [None]}
    assert ask(WARD, **claims).status_code == 401


def test_a_role_without_scopes_is_as_before(ask):
    assert ask(WARD, role="ward_admin", wards=["w1"]).status_code == 200
    assert ask(WARD, role="ward_admin", wards=["w1"], scope="openid").status_code == 200


def test_callers_of_one_role_keep_their_own_scopes(ask):
    """What the lane shares among callers of a role must not spread one's scopes to another."""
    for _ in range(2):
        assert ask(WARD, wards=["w1"], scope="user/Observation.s").status_code == 200
        assert ask(WARD, wards=["w1"], scope="user/Patient.s").status_code == 403
        assert ask("/v1/who", wards=["w1"]).status_code == 403

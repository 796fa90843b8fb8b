"""An explanation says what the gateway then does: the same request, explained and made, has one answer."""

from __future__ import annotations

import time
from dataclasses import replace

import falcon.testing
import pytest

from gateway.http.explain import ALL, Asked
from gateway.routing.model import Binding

OWN = "/v1/members/m-1/notes"


def claims(role, **more):
    return {"member": "m-1", **more} if role == "outsider" else more


CASES = [
    pytest.param("GET", OWN, "outsider", {}, "allowed", id="allowed"),
    pytest.param("GET", OWN + "?page=2", "outsider", {}, "allowed", id="with a declared parameter"),
    pytest.param("GET", OWN + "?other=2", "outsider", {}, "query-refused", id="a parameter that is not declared"),
    pytest.param("GET", OWN, None, {}, "token-missing", id="no token"),
    pytest.param("GET", "/v1/members/m-2/notes", "outsider", {}, "not-found", id="another's, hidden"),
    pytest.param("GET", OWN, "everything", {}, "token-invalid", id="another audience"),
    pytest.param("GET", "/v1/staff", "clerk", {}, "role-refused", id="another role"),
    pytest.param("GET", "/v1/staff", "nothing", {}, "allowed", id="its role"),
    pytest.param("GET", "/v1/granted", "nothing", {}, "permission-refused", id="no permission"),
    pytest.param("GET", "/v1/granted", "everything", {}, "allowed", id="its permission"),
    pytest.param("GET", OWN, "outsider", {"exp": int(time.time()) - 60, "iat": int(time.time()) - 600}, "token-invalid",
                 id="expired"),
    pytest.param("GET", OWN, "outsider", {"iss": "https://id.test/other"}, "token-invalid", id="another issuer"),
    pytest.param("GET", OWN, "outsider", {"cnf": {"jkt": "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"}},
                 "token-invalid", id="bound to a key"),
    pytest.param("GET", OWN, "not.a.token", {}, "token-invalid", id="no token at all"),
    pytest.param("POST", OWN, "outsider", {}, "method-not-allowed", id="another method"),
    pytest.param("GET", "/v1/nowhere", "outsider", {}, "not-found", id="nowhere"),
    pytest.param("GET", "/v1/../v1/staff", "nothing", {}, "bad-target", id="dot segments"),
    pytest.param("GET", "/v1//staff", "nothing", {}, "bad-target", id="an empty segment"),
    pytest.param("GET", "/v1/%2e%2e/staff", "nothing", {}, "bad-target", id="encoded dot segments"),
    pytest.param("GET", "/admin/v1/units", "everything", {}, "not-found", id="a reserved path"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "target", "role", "more", "expected"), CASES)
def test_it_is_what_happens(gateway, token, method, target, role, more, expected) -> None:
    text = role if role is None or "." in role else token(role, **claims(role, **more))
    found = gateway.explainer.explain(gateway.holder.current, Asked(method, target, text))
    headers = {} if text is None else {"Authorization": f"Bearer {text}"}
    client = falcon.testing.TestClient(gateway.public)
    path, _, query = target.partition("?")
    answer = client.simulate_request(method, path, query_string=query, headers=headers)
    happened = "allowed" if answer.status_code < 400 else answer.json["type"].rpartition(":")[2]
    assert (found.allowed, found.problem or "allowed") == (happened == "allowed", happened)
    assert happened == expected
    assert found.status == (0 if found.allowed else answer.status_code)


@pytest.mark.parametrize(
    ("target", "role", "step", "rule"),
    [
        pytest.param("/v1/members/m-2/notes", "outsider", "binding", "binding", id="binding"),
        pytest.param(OWN, "everything", "audience", "audience", id="audience"),
        pytest.param("/v1/staff", "clerk", "role", "role", id="role"),
        pytest.param("/v1/granted", "nothing", "permission", "permission", id="permission"),
        pytest.param("/v1/staff", None, "token", "token:missing", id="token"),
        pytest.param("/v1/nowhere", "clerk", "route", "", id="route"),
        pytest.param("/v1//x", "clerk", "target", "", id="target"),
    ],
)
def test_one_step_refuses_what_came_before_passed_and_the_rest_is_not_reached(
    gateway, token, target, role, step, rule
) -> None:
    text = None if role is None else token(role, **claims(role))
    found = gateway.explainer.explain(gateway.holder.current, Asked("GET", target, text))
    outcomes = {one.step: one.outcome for one in found.steps}
    assert [name for name, outcome in outcomes.items() if outcome == "refused"] == [step]
    assert found.rule == rule
    order = [name for name in ALL if name in outcomes]
    at = order.index(step)
    assert {outcomes[name] for name in order[:at]} <= {"passed", "not-asked"}
    after = order[at + 1 :] if step != "token" else ["audience", "role", "permission", "binding"]
    assert {outcomes[name] for name in after} <= {"not-reached"}


def test_an_emergency_opens_what_a_binding_refused_and_nothing_is_noted(gateway, token, monkeypatch) -> None:
    asked_for: list[str] = []

    def case_of(ctx, principal, route, patient):
        asked_for.append(patient)
        return "case-1"

    route = gateway.holder.current.controllers["own"]
    explainer = type(gateway.explainer)(gateway._admission, gateway.explainer._router, case_of)
    text = token("outsider", member="m-1")
    assert not explainer.explain(gateway.holder.current, Asked("GET", "/v1/members/m-2/notes", text)).allowed
    assert asked_for == [], "the route knows no emergency"
    opened = replace(route, break_glass=Binding("member", "", frozenset(), hidden=False, reference="Patient"))
    monkeypatch.setattr(explainer._router, "find", finding(explainer._router.find, opened))
    found = explainer.explain(gateway.holder.current, Asked("GET", "/v1/members/m-2/notes", text))
    assert (found.allowed, found.rule, asked_for) == (True, "break-glass", ["m-2"])


def finding(find, route):
    """A router that finds that route."""

    def found(uri, req=None):
        answer = find(uri, req=req)
        req.context.gateway.route = route
        return answer

    return found


@pytest.mark.parametrize(("patients", "expected"), [(101, "allowed"), (102, "query-refused")])
def test_more_patients_than_are_recorded_are_refused(gateway, token, patients, expected) -> None:
    target = "/v1/records?patient=" + ",".join(map(str, range(patients)))
    found = gateway.explainer.explain(gateway.holder.current, Asked("GET", target, token("nothing")))
    assert (found.problem or "allowed") == expected


def test_an_expired_token_is_told_from_a_forged_one(gateway, token) -> None:
    now = int(time.time())
    expired = token("nothing", exp=now - 60, iat=now - 600)
    forged = token("nothing")[:-4] + "AAAA"
    found = [
        gateway.explainer.explain(gateway.holder.current, Asked("GET", "/v1/staff", text)) for text in (expired, forged)
    ]
    details = [next(step.detail for step in one.steps if step.step == "token") for one in found]
    assert [one.rule for one in found] == [f"token:{detail}" for detail in details]
    assert details[0] == "expired"
    assert details[1] != "expired"


def test_a_revoked_token_is_refused_by_its_step(gateway, token) -> None:
    text = token("nothing", jti="to-be-revoked")
    asked = Asked("GET", "/v1/staff", text)
    assert gateway.explainer.explain(gateway.holder.current, asked).allowed
    gateway.holder.current.verifier.revoke_jti("to-be-revoked", time.time() + 600)
    assert gateway.explainer.explain(gateway.holder.current, asked).rule == "token:revoked"


def test_limits_are_looked_at_and_nothing_is_taken(gateway, token) -> None:
    text = token("outsider", member="m-1", sub="limited")
    asked = Asked("GET", OWN, text)
    left = []
    for _ in range(5):
        found = gateway.explainer.explain(gateway.holder.current, asked)
        (state,) = next(step.facts["limits"] for step in found.steps if step.step == "limit")
        left.append(state["left"])
    assert left == [2] * 5
    client = falcon.testing.TestClient(gateway.public)
    made = [client.simulate_get(OWN, headers={"Authorization": f"Bearer {text}"}).status_code for _ in range(3)]
    assert made == [200, 200, 429]
    found = gateway.explainer.explain(gateway.holder.current, asked)
    assert (found.allowed, found.rule, found.status) == (False, "limit:few", 429)


def test_it_leaves_nothing_with_the_principal_that_the_next_request_would_find(gateway, token) -> None:
    text = token("nothing")
    verified = gateway.holder.current.verifier.verify(text, time.time())
    gateway.explainer.explain(gateway.holder.current, Asked("GET", "/v1/staff", text))
    assert verified.principal is None or "staff" not in verified.principal.grants


def test_it_says_where_the_request_would_go(gateway, token) -> None:
    found = gateway.explainer.explain(gateway.holder.current, Asked("GET", "/v1/north/Patient/p", token("outsider")))
    assert found.would == {"kind": "unit", "unit": "north", "target": "/fhir/Patient/p"}


def test_nothing_of_it_is_counted_as_a_request(gateway, token) -> None:
    before = gateway.metrics.totals("caregate_token_refusals")
    for _ in range(3):
        gateway.explainer.explain(gateway.holder.current, Asked("GET", "/v1/staff", "x.y.z"))
    assert gateway.metrics.totals("caregate_token_refusals") == before

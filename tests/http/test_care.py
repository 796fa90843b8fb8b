"""Purpose of use, consent and limits that only watch, through the gateway, over the middleware and the lane."""

from __future__ import annotations

import json

import gevent
import pytest

from gateway.audit.event import Accesses, decode
from gateway.config import check_consent
from gateway.errors import DatabaseTimeout, DatabaseUnavailable
from gateway.http.explain import Asked
from gateway.routing.kinds import endpoint
from gateway.store.pipeline import StatementFailed


class Answer:
    """A route's resource that counts how often it was reached."""

    def __init__(self):
        self.reached = 0

    def on_request(self, req, resp):
        self.reached += 1
        resp.data = b"{}"


class Hook:
    """A consent hook that answers, raises or waits as it is told."""

    def __init__(self):
        self.asked = []
        self.say = True

    def __call__(self, question, deadline_ns):
        self.asked.append(question)
        if callable(self.say):
            return self.say()
        if isinstance(self.say, Exception):
            raise self.say
        return self.say


@pytest.fixture
def careful(base):
    def route(path, **more):
        return {"path": path, "methods": ["GET"], "audiences": ["staff"], "roles": ["nurse", "ward_admin"],
                "resource": "ping", **more}  # fmt: skip

    consent = {"hook": "asked", "patient": "patient"}
    base["limits"] |= {
        "address": {"per": "address", "rate": 1000, "burst": 1000},
        "watched": {"per": "principal", "rate": 1, "period_s": 3600, "burst": 2, "shadow": True},
        "watched-route": {"per": "route", "rate": 1, "period_s": 3600, "burst": 3, "shadow": True},
    }
    base["upstreams"] = {"fhir": {"endpoints": ["http://127.0.0.1:9"]}}
    base["controllers"] |= {
        "why": route("/v1/why", purpose={"required": ["TREAT", "ETREAT"]}),
        "why-watched": route("/v1/why-watched", purpose={"required": ["TREAT"], "shadow": True}),
        "consented": route("/v1/units/{unit}/patients/{patient}", unbound_roles=["nurse", "ward_admin"],
                           consent={**consent, "roles": ["nurse"]}, purpose={"required": ["TREAT", "HPAYMT"]}),
        "hidden": route("/v1/hidden/{patient}", consent={**consent, "refuse": "hidden"}),
        "claimed": route("/v1/claimed", consent={**consent, "patient": "claim:patient"}),
        "watched": route("/v1/watched/{patient}", consent={**consent, "shadow": True}),
        "in-time": route("/v1/in-time/{patient}", consent=consent, deadline_ms=50),
        "searched": route("/v1/searched", query=["patient", "code", "_include"],
                          consent={**consent, "patient": "query:patient"}, resource=None,
                          upstream={"name": "fhir", "target": "/fhir/Observation"}),
        "written": route("/v1/written", methods=["POST"], consent={**consent, "patient": "body:/subject/reference"}),
        "function": route("/v1/function/{patient}", consent={"function": "portal.consents", "patient": "patient"}),
        "limited": route("/v1/limited", limits=["watched"]),
        "limited-twice": route("/v1/limited-twice", limits=["watched-route", "real"]),
    }  # fmt: skip
    base["limits"]["real"] = {"per": "principal", "rate": 1, "period_s": 3600, "burst": 5}
    del base["controllers"]["searched"]["resource"]
    return base


@pytest.fixture
def hook(monkeypatch):
    monkeypatch.setattr(check_consent, "hook_names", lambda: frozenset({"asked"}))
    return Hook()


@pytest.fixture
def rig(gateway_of, careful, ways, hook, monkeypatch):
    made = gateway_of(careful)
    made.reached = Answer()
    monkeypatch.setattr(made.public._router._resources, "of", lambda route: endpoint(made.reached))
    (authorization,) = [
        step.__self__ for step in made.public._middleware[1] if type(step.__self__).__name__ == "Authorization"
    ]
    made.consents = authorization._care._consents
    made.consents._hooks = {"asked": hook}
    assert made.consents is made._consents
    made.clients = ways(made)
    made.noted = []
    monkeypatch.setattr(made.access_log, "write", lambda ctx, status, took: made.noted.append(ctx.shadow))
    return made


@pytest.fixture(params="ml", ids=["middleware", "lane"])
def ask(rig, token, request):
    def ask(path, role="nurse", method="GET", claims=None, headers=None, **more):
        fields = {"Authorization": f"Bearer {token(role, **(claims or {}))}", **(headers or {})}
        return rig.clients[request.param].simulate_request(method, path, headers=fields, **more)

    return ask


@pytest.mark.parametrize(
    ("field", "claim", "status"),
    [
        pytest.param("TREAT", None, 200, id="the field"),
        pytest.param(None, "ETREAT", 200, id="the claim"),
        pytest.param("TREAT", "TREAT", 200, id="both, the same"),
        pytest.param("TREAT", "ETREAT", 403, id="both, not the same"),
        pytest.param(None, None, 403, id="none"),
        pytest.param("HPAYMT", None, 403, id="another"),
        pytest.param("treat", None, 403, id="lower case"),
        pytest.param("TREAT, ETREAT", None, 403, id="two"),
        pytest.param("", None, 403, id="empty"),
        pytest.param(None, "HRESCH", 403, id="another claim"),
    ],
)
def test_purpose(ask, rig, monkeypatch, field, claim, status):
    events = []
    monkeypatch.setattr(
        rig.audit, "enqueue_finished", lambda ctx, s: events.append(decode(Accesses("n").encode(ctx, s, 1, 1)))
    )
    answer = ask(
        "/v1/why",
        claims={"purpose": claim} if claim else {},
        headers={} if field is None else {"Purpose-Of-Use": field},
    )
    assert answer.status_code == status
    assert rig.reached.reached == (status == 200)
    if status == 200:
        assert events[0].purpose == (field or claim)
    else:
        assert answer.json["type"] == "urn:caregate:problem:purpose-refused"
        assert 'error="insufficient_scope"' in answer.headers["WWW-Authenticate"]
        assert events[0].rule == "purpose"


def test_a_purpose_of_the_wrong_type_is_no_token(ask):
    assert ask("/v1/why", claims={"purpose": ["TREAT"]}).status_code == 401


def test_a_purpose_that_only_watches(ask, rig):
    assert ask("/v1/why-watched").status_code == 200
    assert ask("/v1/why-watched", headers={"Purpose-Of-Use": "TREAT"}).status_code == 200
    assert rig.noted == ["purpose", ""]


CONSENTED = "/v1/units/u1/patients/p1"
TREAT = {"Purpose-Of-Use": "TREAT"}


def test_consent_is_asked_for_every_request_and_never_remembered(ask, rig, hook):
    for say, status in [(True, 200), (False, 403), (True, 200), (True, 200)]:
        hook.say = say
        assert ask(CONSENTED, headers=TREAT).status_code == status
    asked = hook.asked[0]
    assert (asked.unit, asked.patient, asked.subject, asked.role, asked.purpose) == (
        "u1", "p1", "a-nurse", "nurse", "TREAT",
    )  # fmt: skip
    assert (len(hook.asked), rig.reached.reached) == (4, 3)


def test_a_role_it_is_not_for_is_not_asked_about(ask, hook):
    assert ask(CONSENTED, "ward_admin", headers=TREAT).status_code == 200
    assert hook.asked == []


@pytest.mark.parametrize(
    ("path", "say", "status", "code"),
    [
        pytest.param(CONSENTED, False, 403, "consent-refused", id="no"),
        pytest.param(CONSENTED, 1, 403, "consent-refused", id="1 is not True"),
        pytest.param(CONSENTED, None, 403, "consent-refused", id="nothing"),
        pytest.param("/v1/hidden/p1", False, 404, "not-found", id="hidden"),
        pytest.param(CONSENTED, RuntimeError("patient Smith"), 503, "consent-unavailable", id="broken"),
        pytest.param(CONSENTED, DatabaseUnavailable(), 503, "consent-unavailable", id="no database"),
        pytest.param("/v1/hidden/p1", DatabaseTimeout(), 503, "consent-unavailable", id="hidden, too slow"),
        pytest.param("/v1/in-time/p1", lambda: gevent.sleep(30), 503, "consent-unavailable", id="past the deadline"),
    ],
)
def test_consent_refused_or_unknown(ask, rig, hook, path, say, status, code):
    hook.say = say
    answer = ask(path, headers=TREAT)
    assert (answer.status_code, answer.json["type"]) == (status, f"urn:caregate:problem:{code}")
    assert rig.reached.reached == 0
    assert "Smith" not in answer.text
    assert ("Retry-After" in answer.headers) == (status == 503)


def test_nothing_is_asked_before_the_rest_has_passed(ask, hook):
    assert ask(CONSENTED).status_code == 403
    assert ask("/v1/claimed").status_code == 403
    assert hook.asked == []


def test_consent_of_a_claim(ask, hook):
    assert ask("/v1/claimed", claims={"patient": "p7"}).status_code == 200
    assert hook.asked[0].patient == "p7"


@pytest.mark.parametrize(
    ("query", "status", "patient"),
    [
        ("patient=p1", 200, "p1"),
        ("patient=Patient/p1,p1&code=x", 200, "p1"),
        ("patient=p1,p2", 403, None),
        ("patient=p1&patient:Patient=p2", 403, None),
        ("patient=Group/p1", 403, None),
        ("code=x", 400, None),
        ("", 400, None),
        ("patient=p1&_include=Observation:subject", 403, None),
        ("patient=p1;p2", 400, None),
    ],
)
def test_consent_of_a_query(ask, hook, query, status, patient):
    assert ask("/v1/searched", query_string=query).status_code == status
    assert [question.patient for question in hook.asked] == ([patient] if patient else [])


@pytest.mark.parametrize(
    ("body", "status", "patient"),
    [
        ({"subject": {"reference": "Patient/p1"}}, 200, "p1"),
        ({"subject": {"reference": ["Patient/p1", "Patient/p2"]}}, 403, None),
        ({"subject": {"reference": "p1"}}, 403, None),
        ({"subject": {}}, 422, None),
        ([], 422, None),
    ],
)
def test_consent_of_a_body(ask, hook, body, status, patient):
    fields = {"Content-Type": "application/fhir+json"}
    assert ask("/v1/written", method="POST", headers=fields, body=json.dumps(body)).status_code == status
    assert [question.patient for question in hook.asked] == ([patient] if patient else [])


def explained(rig, token, path, **more):
    """The explanation of a nurse's request, and its step of the consent."""
    method, _, target = path.rpartition(" ")
    asked = Asked(method or "GET", target, token("nurse"), purpose="TREAT", **more)
    found = rig.explainer.explain(rig.holder.current, asked)
    return found, next(step for step in found.steps if step.step == "consent")


@pytest.mark.parametrize("say", [True, False, RuntimeError()], ids=["yes", "no", "broken"])
def test_an_explanation_asks_nobody(rig, token, hook, say):
    hook.say = say
    found, step = explained(rig, token, CONSENTED)
    assert (found.allowed, found.rule, step.outcome) == (True, "allowed", "not-asked")
    assert step.detail == "the hook asked would be asked, and is not in a replay (ask_consent)"
    assert (step.facts, hook.asked) == ({"hook": "asked"}, [])
    assert explained(rig, token, "/v1/function/p1")[1].facts == {"function": "portal.consents"}


@pytest.mark.parametrize(
    ("path", "say", "status", "problem", "outcome"),
    [
        pytest.param(CONSENTED, True, 0, "", "passed", id="yes"),
        pytest.param(CONSENTED, False, 403, "consent-refused", "refused", id="no"),
        pytest.param(CONSENTED, 1, 403, "consent-refused", "refused", id="1 is not True"),
        pytest.param("/v1/hidden/p1", False, 404, "not-found", "refused", id="hidden"),
        pytest.param(CONSENTED, RuntimeError("Smith"), 503, "consent-unavailable", "refused", id="broken"),
        pytest.param("/v1/in-time/p1", lambda: gevent.sleep(30), 503, "consent-unavailable", "refused", id="late"),
        pytest.param("/v1/watched/p1", False, 0, "", "passed", id="no, in shadow"),
    ],
)
def test_an_explanation_that_asks_says_what_happens(rig, ask, token, hook, path, say, status, problem, outcome):
    hook.say = say
    found, step = explained(rig, token, path, ask_consent=True)
    assert (found.status, found.problem, step.outcome) == (status, problem, outcome)
    assert len(hook.asked) == 1
    assert rig.reached.reached == 0
    assert ask(path, headers=TREAT).status_code == (status or 200)
    assert hook.asked[0] == hook.asked[1], "the same question"
    assert found.shadow == (["consent"] if "watched" in path else [])
    assert "Smith" not in str(found)


def test_an_explanation_refused_before_asks_nobody_either(rig, token, hook):
    found, step = explained(rig, token, "/v1/claimed", ask_consent=True)
    assert (found.status, step.outcome, hook.asked) == (403, "not-reached", [])


def test_an_explanation_names_what_only_watches(rig, token):
    found = rig.explainer.explain(rig.holder.current, Asked("GET", "/v1/why-watched", token("nurse")))
    assert (found.allowed, found.shadow) == (True, ["purpose"])


@pytest.mark.parametrize("say", [False, RuntimeError()], ids=["no", "broken"])
def test_a_consent_that_only_watches(ask, rig, hook, say):
    hook.say = say
    assert ask("/v1/watched/p1").status_code == 200
    assert rig.noted == ["consent"]


@pytest.mark.parametrize(
    ("answer", "status"),
    [(True, 200), (False, 403), (StatementFailed("42501"), 503), (DatabaseTimeout(), 503)],
    ids=["true", "false", "the function failed", "too slow"],
)
def test_consent_by_a_function(ask, rig, answer, status):
    asked = []

    def call(function, question, claims, deadline_ns):
        asked.append((function, question.patient, json.loads(claims)["role"]))
        if isinstance(answer, Exception):
            raise answer
        return answer

    rig.consents._ask = call
    assert ask("/v1/function/p1").status_code == status
    assert asked == [("portal.consents", "p1", "nurse")]


def test_a_limit_that_only_watches(ask, rig):
    """Two a while: the third is noted; nobody is told of the limit."""
    answers = [ask("/v1/limited") for _ in range(4)]
    assert [a.status_code for a in answers] == [200] * 4
    assert rig.noted == ["", "", "limit:watched", "limit:watched"]
    assert not any("watched" in a.headers["RateLimit"] + a.headers["RateLimit-Policy"] for a in answers)
    text = rig.metrics.render().decode()
    assert 'caregate_shadow_refusals_total{route="limited",rule="limit:watched"} 2.0' in text


def test_a_limit_in_force_beside_one_that_watches(ask, rig):
    statuses = [ask("/v1/limited-twice").status_code for _ in range(7)]
    assert statuses == [200] * 5 + [429] * 2
    assert rig.noted == [""] * 3 + ["limit:watched-route"] * 4

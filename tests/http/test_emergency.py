"""What a case of breaking the glass opens of paths, queries and bodies: one patient, one unit, only reading."""

from __future__ import annotations

import json

import pytest

from gateway.routing.kinds import endpoint

BASE = "https://api.test/{}/fhir"
PATIENT, UNIT = "p-9", "north"
"""Of the case that is open."""
SEARCH, WARDS, ASK, PATH = "/v1/{}/search", "/v1/{}/ward-search", "/v1/{}/ask", "/v1/{}/p/{}"


class Reached:
    """Stands where the unit would: keeps the rule of what reached it."""

    def __init__(self):
        self.rules = []

    def on_request(self, req, resp):
        self.rules.append(req.context.gateway.rule)
        resp.data = b"{}"


@pytest.fixture
def glass(base):
    def route(path, **more):
        return {"path": path, "methods": ["GET"], "audiences": ["staff"], "roles": ["nurse", "ward_admin"],
                "phi": True, "unit": {"unit": "path:unit", "target": "/fhir/Observation"}, **more}  # fmt: skip

    own = {"claim": "patients", "reference": "Patient", "roles": ["nurse"]}
    ward = {"param": "unit", "claim": "units", "roles": ["ward_admin"]}
    base["gateway"]["fhir_bases"] = [BASE.format("{unit}")]
    base["limits"]["address"] = {"per": "address", "rate": 100_000, "burst": 100_000}
    base["units"] = {"north": {"name": "North"}, "south": {"name": "South"}}
    base["break_glass"] = {"roles": ["nurse", "ward_admin"], "reviewers": {"ward_admin": {"sees": "all"}}}
    query = ["patient", "subject", "code", "_include", "org", "subject:Patient.name", "patient:not"]
    base["controllers"] |= {
        "search": route("/v1/{unit}/search", methods=["GET", "HEAD", "DELETE"], query=query, bind=[
            {**own, "param": "query:patient|subject"}, ward],
            break_glass="query:patient|subject"),
        "ward-search": route("/v1/{unit}/ward-search", query=query, unbound_roles=["nurse"], bind=[ward],
                             break_glass="query:patient"),
        "org": route("/v1/{unit}/org", query=query, roles=["nurse"], break_glass="query:patient", bind=[
            {**own, "param": "query:patient"}, {"param": "query:org", "claim": "org"}]),
        "hidden": route("/v1/{unit}/hidden", query=query, roles=["nurse"], break_glass="query:patient",
                        bind=[{**own, "param": "query:patient", "refuse": "hidden"}]),
        "plain": route("/v1/{unit}/plain", query=["patient"], roles=["nurse"], break_glass="query:patient",
                       bind=[{"param": "query:patient", "claim": "patients"}]),
        "shut": route("/v1/{unit}/shut", query=query, roles=["nurse"], bind=[{**own, "param": "query:patient"}]),
        "ask": route("/v1/{unit}/ask", methods=["POST"], scope="Observation.s", bind=[
            {**own, "param": "body:/subject/*/reference"}, ward], break_glass="body:/subject/*/reference"),
        "write": route("/v1/{unit}/write/{patient}", methods=["POST", "GET"], query=query, unbound_roles=["nurse"],
                       bind=[ward], break_glass="patient"),
        "path": route("/v1/{unit}/p/{patient}", query=query, bind=[
            {"param": "patient", "claim": "patients", "roles": ["nurse"]}, ward], break_glass="patient"),
        "me": route("/v1/{unit}/me", roles=["nurse"], bind=[],
                    unit={"unit": "path:unit", "target": "/fhir/Observation?patient={patient}"}),
    }  # fmt: skip
    return json.loads(json.dumps(base))


@pytest.fixture
def ask(gateway_of, glass, ways, token, monkeypatch):
    """Send a request both ways: (status, code, cases asked for); it is the same by either."""
    gateway, reached = gateway_of(glass), Reached()
    monkeypatch.setattr(gateway.public._router._resources, "of", lambda route: endpoint(reached))
    monkeypatch.setattr(gateway.accounting._audit, "record", lambda ctx, status: None)
    used, noted = [], []

    def find(issuer, subject, unit, patient):
        used.append((unit, patient))
        return "case-1" if (subject, unit, patient) == ("a-holder", UNIT, PATIENT) else None

    monkeypatch.setattr(gateway.break_glass._store, "find", find)
    monkeypatch.setattr(gateway.break_glass, "_note", lambda kind, outcome, **more: noted.append((kind, more)))
    clients = ways(gateway)

    def send(path, query="", role="nurse", method="GET", body=None, headers=None, sub="a-holder", **claims):
        claims = {"patients": ["p-1"], "units": ["south"], **claims}
        fields = {"Authorization": f"Bearer {token(role, sub=sub, **claims)}", **(headers or {})}
        if body is not None:
            fields |= {"Content-Type": "application/json"}
        seen = set()
        for way in "ml":
            used.clear()
            noted.clear()
            reached.rules.clear()
            answer = clients[way].simulate_request(
                method, path, query_string=query, headers=fields, body=json.dumps(body) if body is not None else None
            )
            code = (answer.json.get("type", "") if answer.text else "").rpartition(":")[2]
            opened = [(more["unit"], more["patient"], more["purpose"]) for _, more in noted]
            assert opened == ([(UNIT, PATIENT, "BTG")] if reached.rules == ["break-glass"] else []) or not reached.rules
            seen.add((answer.status_code, code, tuple(reached.rules), tuple(used)))
        assert len(seen) == 1, seen
        return seen.pop()

    return send


OPENED = (200, "", ("break-glass",), ((UNIT, PATIENT),))


@pytest.mark.parametrize(
    "query",
    [
        "patient=p-9", "patient=Patient/p-9", "subject=Patient/p-9", "subject:Patient=p-9",
        "patient:Patient=Patient/p-9",
        "patient=https://api.test/north/fhir/Patient/p-9", "p%61tient=p-9,Patient/p-9&code=x",
        "patient=p-9&subject=Patient/p-9",
    ],
)  # fmt: skip
def test_a_search_is_opened_in_every_spelling(ask, query):
    assert ask(SEARCH.format(UNIT), query) == OPENED
    assert ask(SEARCH.format(UNIT), query, method="HEAD")[0] == 200
    if "subject" not in query:
        assert ask(WARDS.format(UNIT), query, "ward_admin") == OPENED


@pytest.mark.parametrize(
    ("query", "status"),
    [
        pytest.param("patient=p-8", 403, id="another patient"),
        pytest.param("patient=p-9,p-8", 403, id="a second one in the list"),
        pytest.param("patient=p-9,p-99", 403, id="a second one, later in the alphabet"),
        pytest.param("patient=p-9,p-1", 403, id="the own one too"),
        pytest.param("patient=p-9&patient=p-8", 403, id="a second parameter"),
        pytest.param("patient=p-9&subject=Patient/p-8", 403, id="by another name"),
        pytest.param("patient=p-9&subject=Group/g", 403, id="a group"),
        pytest.param("patient=p-9&_include=Observation:performer", 403, id="what brings along others"),
        pytest.param("patient=p-9&subject:Patient.name=x", 403, id="a chain"),
        pytest.param("patient=p-9&patient:not=p-8", 403, id="a modifier"),
        pytest.param("patient=https://api.test/south/fhir/Patient/p-9", 403, id="another unit's record"),
        pytest.param("subject=p-9", 403, id="an id that may be of any type"),
        pytest.param("patient=", 403, id="empty"),
        pytest.param("code=x", 400, id="nobody"),
        pytest.param("", 400, id="no query"),
        pytest.param("patient=p-9;p-8", 400, id="a separator to some"),
        pytest.param("patient=p-9&other=1", 400, id="not declared"),
    ],
)
def test_nobody_else_s_record_is_opened(ask, query, status):
    for path, role in ((SEARCH, "nurse"), (WARDS, "ward_admin")):
        answer = ask(path.format(UNIT), query, role)
        wanted = 403 if (path, status) == (WARDS, 400) and query in ("code=x", "") else status
        assert (answer[0], answer[2]) == (wanted, ()), path


@pytest.mark.parametrize(
    ("path", "more"),
    [
        pytest.param(SEARCH.format("south"), {}, id="another unit"),
        pytest.param(SEARCH.format(UNIT), {"sub": "somebody-else"}, id="another's case"),
        pytest.param(SEARCH.format(UNIT), {"method": "DELETE"}, id="a write"),
        pytest.param(SEARCH.format(UNIT), {"headers": {"X-HTTP-Method-Override": "DELETE"}}, id="a write in disguise"),
        pytest.param("/v1/north/shut", {}, id="a route that knows no emergency"),
        pytest.param("/v1/north/org", {}, id="nothing of the organisation"),
        pytest.param("/v1/north/org?org=o-2", {"org": "o-1"}, id="another organisation"),
        pytest.param("/v1/north/me", {}, id="a route of one's own"),
    ],
)
def test_nothing_else_is_opened(ask, path, more):
    path, _, also = path.partition("?")
    query = "" if path.endswith("/me") else "&".join(filter(None, ["patient=p-9", also]))
    status, _, rules, used = ask(path, query, **more)
    assert status in (400, 403)
    assert rules == ()
    if more.get("method") or "shut" in path or "me" in path.split("/"):
        assert used == (), "nobody was asked"


def test_what_is_bound_to_something_else_stays_bound(ask):
    assert ask("/v1/north/org", "patient=p-9&org=o-1", org="o-1") == OPENED


def test_a_hidden_refusal_and_text_that_is_no_reference(ask):
    assert ask("/v1/north/hidden", "patient=p-9") == OPENED
    assert ask("/v1/north/hidden", "patient=p-8")[:2] == (404, "not-found")
    assert ask("/v1/north/plain", "patient=p-9") == OPENED
    assert ask("/v1/north/plain", "patient=p-8")[0] == 403
    assert ask("/v1/north/plain", "patient=Patient/p-9")[0] == 403


def test_one_s_own_needs_no_emergency(ask):
    assert ask(SEARCH.format(UNIT), "patient=p-1") == (200, "", ("allowed",), ())
    assert ask(WARDS.format("south"), "patient=p-8", "ward_admin") == (200, "", ("allowed",), ())
    assert ask(PATH.format("south", "p-8"), "", "ward_admin") == (200, "", ("allowed",), ())


@pytest.mark.parametrize("role", ["nurse", "ward_admin"])
@pytest.mark.parametrize(
    ("subjects", "unit", "status"),
    [
        pytest.param(["Patient/p-9"], UNIT, 200, id="the patient"),
        pytest.param(["Patient/p-9", "Patient/p-9"], UNIT, 200, id="twice"),
        pytest.param(["Patient/p-8"], UNIT, 403, id="another patient"),
        pytest.param(["Patient/p-9", "Patient/p-8"], UNIT, 403, id="a second one"),
        pytest.param(["Group/p-9"], UNIT, 403, id="a group"),
        pytest.param(["Patient/p-9"], "south", 403, id="another unit"),
        pytest.param([], UNIT, 422, id="nobody"),
    ],
)
def test_a_search_by_post(ask, role, subjects, unit, status):
    body = {"subject": [{"reference": text} for text in subjects]}
    answer = ask(ASK.format(unit), method="POST", body=body, role=role, units=["west"])
    assert (answer[0], answer[2]) == (status, ("break-glass",) if status == 200 else ())


def test_a_path_is_opened_for_its_patient_alone(ask):
    for role in ("nurse", "ward_admin"):
        assert ask(PATH.format(UNIT, PATIENT), "", role) == OPENED
        assert ask(PATH.format(UNIT, PATIENT), "code=x&subject=Patient/p-9", role) == OPENED
        for query in ("subject=Patient/p-8", "_include=Observation:performer"):
            assert ask(PATH.format(UNIT, PATIENT), query, role)[::2] == (403, ()), query
        assert ask(PATH.format(UNIT, "p-8"), "", role)[0] == 403
    assert ask(PATH.format("south", PATIENT))[0] == 403
    assert ask("/v1/north/write/p-9", "", "ward_admin") == OPENED
    assert ask("/v1/north/write/p-9", "", "ward_admin", method="POST", body={})[::2] == (403, ())

"""Bindings of query and body, and `/me`: generated requests against the plain model, and what is forwarded."""

from __future__ import annotations

import json
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastpath.target import canonical_path
from gateway.routing.kinds import endpoint
from gateway.routing.target import forward_target
from tests.http.policy_model import ALLOWED, BASE, Plain, Rule, answer

OWN, OTHER, PATH = "p-1", "p-2", "/v1/fhir/Observation"
CLAIMS = {"member": {"patient": OWN, "sub": "m-1"}, "nurse": {"wards": ["w1"], "sub": "n-1", "teams": ["t1", "t2"]}}
DECLARED = (
    "patient", "subject", "code", "_count", "_include", "_revinclude:iterate", "_has:Observation:patient:code",
    "subject:Patient.name", "patient.name", "patient.identifier", "patient:identifier", "patient:not",
    "subject:missing",
)  # fmt: skip
ROUTES = {
    "search": Plain(
        frozenset(DECLARED),
        query={"member": Rule("patient", ("patient", "subject"), "Patient")},
        narrow=frozenset({"member"}),
    ),
    "write": Plain(
        frozenset(),
        body={
            "member": Rule("patient", ("subject", "reference"), "Patient"),
            "nurse": Rule("teams", ("performer", "*", "reference"), "CareTeam", (403, "binding-refused")),
        },
        narrow=frozenset({"member"}),
    ),
    "watched": Plain(
        frozenset({"patient"}), query={"nurse": Rule("sub", ("patient",), "Patient", shadow=True)}
    ),
}  # fmt: skip


@pytest.fixture
def bound(base):
    def route(path, method, roles, **more):
        return {"path": path, "methods": [method], "audiences": ["app", "staff"], "roles": roles,
                "upstream": {"name": "fhir", "target": "/fhir/Observation"}, **more}  # fmt: skip

    base["gateway"]["fhir_bases"] = [BASE]
    base["limits"]["address"] = {"per": "address", "rate": 100_000, "burst": 100_000}
    base["upstreams"] = {"fhir": {"endpoints": ["http://127.0.0.1:9"]}}
    base["controllers"] |= {
        "search": route(PATH, "GET", ["member", "nurse"], query=list(DECLARED), unbound_roles=["nurse"], bind=[
            {"param": "query:patient|subject", "claim": "patient", "reference": "Patient", "roles": ["member"],
             "refuse": "hidden"}]),
        "write": route(PATH, "POST", ["member", "nurse"], bind=[
            {"param": "body:/subject/reference", "claim": "patient", "reference": "Patient", "roles": ["member"],
             "refuse": "hidden"},
            {"param": "body:/performer/*/reference", "claim": "teams", "reference": "CareTeam", "roles": ["nurse"]}]),
        "mine": route("/v1/me/observations", "GET", ["member"], query=["code"], audiences=["app"],
                      upstream={"name": "fhir", "target": "/fhir/Observation?patient={patient}"}),
        "watched-path": route("/v1/watched/{ward}", "GET", ["nurse"], audiences=["staff"], unbound_roles=["nurse"],
                              bind=[{"param": "ward", "claim": "wards", "shadow": True}]),
        "watched": route("/v1/watched", "GET", ["nurse"], query=["patient"], audiences=["staff"],
                         unbound_roles=["nurse"],
                         bind=[{"param": "query:patient", "claim": "sub", "reference": "Patient", "shadow": True}]),
    }  # fmt: skip
    return base


class Recorder:
    """Stands where the service would: keeps what it would be sent."""

    def __init__(self):
        self.seen = []

    def on_request(self, req, resp):
        ctx = req.context.gateway
        stream, body = req.env["wsgi.input"], b""
        while piece := getattr(stream, "read_some", stream.read)(7):
            body += piece
        self.seen.append((forward_target(ctx.route.action.target, ctx), body))
        resp.data = b"{}"


@pytest.fixture
def sent(gateway_of, bound, ways, token, monkeypatch):
    """Send a request both ways: (status, code) and what was forwarded, the same by either."""
    gateway, recorder = gateway_of(bound), Recorder()
    monkeypatch.setattr(gateway.public._router._resources, "of", lambda route: endpoint(recorder))
    clients = ways(gateway)
    tokens = {role: token(role, **claims) for role, claims in CLAIMS.items()}

    def send(method, path, role, query="", body=b"", headers=None, claims=None):
        auth = token(role, **claims) if claims is not None else tokens[role]
        seen = set()
        for way in "lm":
            recorder.seen.clear()
            reply = clients[way].simulate_request(
                method, path, body=body, headers={"Authorization": f"Bearer {auth}", **(headers or {})},
                extras={"QUERY_STRING": query, "RAW_URI": f"{path}?{query}" if query else path},
            )  # fmt: skip
            code = reply.json.get("type", "").rpartition(":")[2] or None
            seen.add(((reply.status_code, code), recorder.seen[0] if recorder.seen else None))
        assert len(seen) == 1, seen
        return seen.pop()

    send.gateway = gateway
    return send


def escaped(text, how):
    """A spelling of the same text: `how` chooses which characters are escaped."""
    return "".join(
        f"%{ord(c):02{'x' if how % 2 else 'X'}}"
        if c in "&=+;#% ," or ((how >> i % 20) & 1 and c.isascii())
        else quote(c)
        for i, c in enumerate(text)
    )


VALUE = st.sampled_from(
    [OWN, OTHER, f"Patient/{OWN}", f"Patient/{OTHER}", f"{BASE}/Patient/{OWN}", f"{BASE}/Patient/{OTHER}",
     f"https://evil.test/fhir/Patient/{OWN}", f"{BASE}.evil.test/Patient/{OWN}", f"Patient/{OWN}/_history/1",
     f"Group/{OWN}", f"#{OWN}", f"{OWN}|x", f"{OWN}\\", "", f"{OWN} ", f"{OWN}\n", OWN.upper(),
     f"Patient/Patient/{OWN}",
     f"patient/{OWN}", f"{OWN};patient={OTHER}", f"/Patient/{OWN}", "true", "é", "urn:uuid:x"]
)  # fmt: skip
NAME = st.sampled_from(
    [*DECLARED, "patient:Patient", "subject:Patient", "patient:Group", "subject:patient", "Patient", "patient ", "",
     "_INCLUDE", "_revinclude", "_has", "_has:Group:member:_id", "patient.organization.name", "access", "code:in"]
)  # fmt: skip
PART = st.builds(
    lambda name, values, how: f"{escaped(name, how)}={escaped(','.join(values), how >> 3)}",
    st.one_of(st.sampled_from(["patient", "subject:Patient", "subject", "code"]), NAME),
    st.lists(st.one_of(st.just(OWN), st.just(f"Patient/{OWN}"), VALUE), min_size=1, max_size=2),
    st.one_of(st.just(0), st.integers(0, 2**24)),
)
QUERY = st.one_of(
    st.lists(PART, max_size=3).map("&".join),
    st.lists(st.one_of(PART, st.sampled_from(["patient", "%zz=1", "patient=%ff", "patient=%00", "code=a;b", "=x"])),
             max_size=3).map("&".join),
)  # fmt: skip
REFERENCE = st.one_of(VALUE, st.sampled_from([f"Patient/{OWN}", "CareTeam/t1", "CareTeam/t2", "CareTeam/t3", "t1"]))
NODE = st.recursive(
    st.one_of(REFERENCE, st.none(), st.integers(), st.just({})),
    lambda below: st.one_of(
        st.lists(below, max_size=2),
        st.dictionaries(st.sampled_from(["reference", "subject", "*", "0", "x"]), below, max_size=2),
    ),
    max_leaves=4,
)
GOOD = st.builds(
    lambda subject, performer: {"subject": {"reference": subject}, "performer": [{"reference": p} for p in performer]},
    st.one_of(st.just(f"Patient/{OWN}"), REFERENCE),
    st.lists(st.one_of(st.just("CareTeam/t1"), REFERENCE), max_size=3),
)
BODY = st.one_of(
    GOOD.map(json.dumps),
    st.fixed_dictionaries({"subject": NODE, "performer": NODE}).map(json.dumps),
    st.sampled_from([
        "", "[]", "{", '{"subject": NaN}', '\ufeff{"subject":{"reference":"Patient/p-1"}}',
        '{"subject":{"reference":"Patient/p-2"},"subject":{"reference":"Patient/p-1"}}',
        '{"subject":{"reference":"Patient/p-1"},"Subject":{"reference":"Patient/p-2"}}',
        '{"subject":{"reference":"Patient/p-1","\\u0072eference":"Patient/p-2"}}',
        '{"\\u0073ubject":{"reference":"Patient/p-1"}}', '{"subject":{"reference":"Patient/p-1"}} ', "[" * 5000,
    ]),
).map(str.encode)  # fmt: skip
TYPE = st.sampled_from(
    ["application/fhir+json"] * 6
    + ["application/json", "application/json; charset=utf-8", "application/json; charset=utf-7", "text/json",
       "application/x-www-form-urlencoded", "application/fhir+xml", "application/json, text/xml", ""]
)  # fmt: skip


def test_queries_are_decided_as_the_model_decides(sent):
    @settings(max_examples=600, deadline=None)
    @given(st.sampled_from(["member", "member", "member", "nurse"]), QUERY)
    def check(role, query):
        try:
            canonical_path(f"{PATH}?{query}")
        except ValueError:
            return  # refused before the policy
        if "access_token" in query:
            return
        expected = answer(ROUTES["search"], role, CLAIMS[role], query, b"", "")
        target = f"/fhir/Observation?{query}" if query else "/fhir/Observation"
        assert sent("GET", PATH, role, query) == (expected, (target, b"") if expected == ALLOWED else None)

    check()


def test_bodies_are_decided_as_the_model_decides(sent):
    @settings(max_examples=500, deadline=None)
    @given(st.sampled_from(["member", "nurse"]), BODY, TYPE)
    def check(role, body, kind):
        expected = answer(ROUTES["write"], role, CLAIMS[role], "", body, kind)
        got = sent("POST", PATH, role, body=body, headers={"Content-Type": kind})
        assert got == (expected, ("/fhir/Observation", body) if expected == ALLOWED else None)

    check()


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("patient=p-1", 200),
        ("patient=Patient/p-1", 200),
        ("subject=Patient/p-1", 200),
        ("subject:Patient=p-1", 200),
        ("patient:Patient=Patient%2Fp-1", 200),
        (f"subject={quote(BASE, safe='')}/Patient/p-1", 200),
        ("p%61tient=p-1,Patient/p-1&patient=p-1&code=x", 200),
        ("subject=p-1", 404),
        ("patient=p-2", 404),
        ("patient=p-1,p-2", 404),
        ("patient=p-1&patient=p-2", 404),
        ("patient=p-1&subject=Patient/p-2", 404),
        ("patient=p-1&p%61tient=p-2", 404),
        ("subject=Group/p-1", 404),
        ("patient=p-1,", 404),
        ("patient=", 404),
        ("", 400),
        ("code=x", 400),
        ("patient=p-1&subject:missing=true", 403),
        ("patient=p-1&patient:not=p-2", 403),
        ("patient=p-1&patient:identifier=x", 403),
        ("patient.identifier=x", 403),
        ("patient=p-1&_include=Observation:subject", 403),
        ("patient=p-1&_%69nclude=Observation:subject", 403),
        ("patient=p-1&_revinclude%3Aiterate=Provenance:target", 403),
        ("patient=p-1&_has:Observation:patient:code=x", 403),
        ("patient=p-1&subject:Patient.name=x", 403),
        ("patient=p-1&code=a;patient=p-2", 400),
        ("patient=p-1&subject:Group=x", 400),
    ],
)
def test_spellings_of_a_patient(sent, query, status):
    (got, _), forwarded = sent("GET", PATH, "member", query)
    assert got == status
    assert (forwarded is not None) == (status == 200)


@pytest.mark.parametrize("field", ["If-None-Exist", "X-HTTP-Method-Override"])
def test_fields_that_would_make_it_another_request(sent, field):
    body = b'{"subject":{"reference":"Patient/p-1"}}'
    kind = {"Content-Type": "application/fhir+json"}
    assert sent("POST", PATH, "member", body=body, headers=kind)[0] == ALLOWED
    assert sent("POST", PATH, "member", body=body, headers={**kind, field: "patient=p-2"})[0] == (403, "search-refused")


def test_a_compressed_body_is_not_read(sent):
    body, fields = b'{"subject":{"reference":"Patient/p-1"}}', {"Content-Type": "application/json"}
    assert sent("POST", PATH, "member", body=body, headers=fields | {"Content-Encoding": "gzip"})[0] == (
        400,
        "not-json",
    )


@pytest.mark.parametrize(
    ("claims", "query", "status", "target"),
    [
        ({"patient": "p-1"}, "", 200, "/fhir/Observation?patient=p-1"),
        ({"patient": "p-1"}, "code=x", 200, "/fhir/Observation?patient=p-1&code=x"),
        ({"patient": "a&patient=b/c"}, "", 200, "/fhir/Observation?patient=a%26patient%3Db%2Fc"),
        ({}, "", 403, None),
        ({"patient": "p-1"}, "patient=p-2", 400, None),
        ({"patient": "p-1"}, "code=x&p%61tient=p-2", 400, None),
    ],
)
def test_me_takes_the_patient_of_the_token(sent, claims, query, status, target):
    """Callers of one role share a grant, which must not carry one's patient to another."""
    for _ in range(2):
        (got, _), forwarded = sent("GET", "/v1/me/observations", "member", query, claims=claims)
        assert (got, forwarded[0] if forwarded else None) == (status, target)


@pytest.mark.parametrize("query", ["patient=p-9", "", "patient=a;b"])
def test_a_shadow_rule_logs_and_lets_through(sent, monkeypatch, query):
    noted = []
    monkeypatch.setattr(sent.gateway.access_log, "write", lambda ctx, status, took: noted.append((ctx.shadow, status)))
    assert sent("GET", "/v1/watched", "nurse", query)[0] == ALLOWED
    assert noted == [("binding:query:patient", 200)] * 2
    text = sent.gateway.metrics.render().decode()
    assert 'caregate_shadow_refusals_total{route="watched",rule="binding:query:patient"} 2.0' in text
    assert sent("GET", "/v1/watched", "nurse", "patient=n-1")[0] == ALLOWED
    assert noted[2:] == [("", 200)] * 2


def test_a_shadow_rule_of_the_path(sent, monkeypatch):
    noted = []
    monkeypatch.setattr(sent.gateway.access_log, "write", lambda ctx, status, took: noted.append(ctx.shadow))
    for ward in ("w1", "w2"):
        assert sent("GET", f"/v1/watched/{ward}", "nurse")[0] == ALLOWED
    assert noted == ["", "", "binding:ward", "binding:ward"]

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastpath.chain import Chain
from gateway.audit.chain import link
from gateway.audit.event import Accesses, action_in, also_named, decode, encode
from gateway.context import Principal, RequestContext
from gateway.errors import BindingRefused, DatabaseUnavailable, TokenInvalid, UnitResponseTimeout
from gateway.routing.model import FunctionAction, Route, RouteKind, UpstreamAction

PRINCIPAL = {
    "subject": "anna",
    "issuer": "https://id",
    "audience": "patient-app",
    "role": "patient",
    "permissions": frozenset(),
    "token_id": "jti-1",
    "key_id": "k",
    "expires_at_s": 0.0,
    "claims": {"patient": "pat-0001", "org": "o-1", "client_id": "app"},
}
ROUTE = {
    "name": "appointments",
    "template": "/p/{patient}",
    "methods": ("GET",),
    "kind": RouteKind.FUNCTION,
    "action": FunctionAction("portal.f", (), 200),
    "audiences": frozenset(),
    "roles": frozenset(),
    "permission": None,
    "phi": True,
    "metadata": {"purpose": "TREAT", "resource_type": "Appointment", "resource_param": "appointment"},
}


class _Snapshot:
    version = 12


def _context(**changes):
    values = {
        "method": "GET", "principal": Principal(**PRINCIPAL), "route": Route(**ROUTE), "rule": "allowed",
        "snapshot": _Snapshot(), "client_address": "192.0.2.1", "started_ns": 5,
    }  # fmt: skip
    return RequestContext(id="r-1", **{**values, **changes})


def _bytes(ctx, status):
    return Accesses("node-1").encode(ctx, status, 1_700_000_000_123, 4_500)


def _event(ctx, status):
    return decode(_bytes(ctx, status))


def test_who_what_where_when():
    ctx = _context(unit="u-1", agent="caregate/1", trace="a" * 32, params={"appointment": "77"}, delivery="dispatched")
    assert orjson.loads(_bytes(ctx, 200)) == {
        "v": 1, "kind": "access", "phase": "outcome", "at_ms": 1_700_000_000_123, "duration_us": 4_500,
        "request_id": "r-1", "outcome": "allowed", "rule": "allowed", "status": 200, "method": "GET",
        "trace": "a" * 32, "delivery": "dispatched", "unit": "u-1", "agent": "caregate/1", "patient": "pat-0001",
        "resource_id": "77", "client_address": "192.0.2.1", "route": "appointments", "action": "R",
        "resource_type": "Appointment", "phi": True, "purpose": "TREAT", "issuer": "https://id", "subject": "anna",
        "role": "patient", "audience": "patient-app", "organisation": "o-1", "client": "app", "token_id": "jti-1",
        "node": "node-1", "config_version": 12,
    }  # fmt: skip


def test_a_denied_attempt_has_the_same_detail():
    allowed = orjson.loads(_bytes(_context(), 200))
    denied = orjson.loads(_bytes(_context(rule="binding", error=BindingRefused()), 403))
    assert list(allowed) == list(denied)
    assert {name for name in allowed if allowed[name] != denied[name]} == {"outcome", "rule", "status"}


@pytest.mark.parametrize(
    ("status", "error", "rule", "outcome", "recorded_rule"),
    [
        (0, None, "allowed", "pending", "allowed"),
        (200, None, "allowed", "allowed", "allowed"),
        (403, BindingRefused(), "binding", "refused", "binding"),
        (401, TokenInvalid(), "token:expired", "refused", "token:expired"),
        (422, BindingRefused(), "", "refused", "binding-refused"),
        (503, DatabaseUnavailable(), "allowed", "failed", "database-unavailable"),
    ],
    ids=["intent", "allowed", "refused", "token", "no-rule", "failed"],
)
def test_outcome_and_rule(status, error, rule, outcome, recorded_rule):
    event = _event(_context(error=error, rule=rule), status)
    assert (event.phase, event.outcome, event.rule) == ("outcome" if status else "intent", outcome, recorded_rule)


@pytest.mark.parametrize(
    ("method", "action"),
    [("GET", "R"), ("HEAD", "R"), ("POST", "C"), ("PUT", "U"), ("PATCH", "U"), ("DELETE", "D"), ("OPTIONS", "E")],
)
def test_action(method, action):
    event = _event(_context(method=method), 200)
    assert (event.action, event.method) == (action, method)


@pytest.mark.parametrize(
    ("params", "claims", "patient"),
    [
        ({"patient": "pat-0002"}, {"patient": "pat-0001"}, "pat-0002"),
        ({}, {"patient": "pat-0001"}, "pat-0001"),
        ({}, {"patient": ["x"]}, ""),
        ({"patient": "a\0b"}, {}, "a\ufffdb"),
        ({"patient": "x" * 1000}, {}, "x" * 256),
        ({"patient": "\ud800"}, {}, "?"),
    ],
    ids=["path-first", "claim", "not-text", "nul", "long", "surrogate"],
)
def test_patient(params, claims, patient):
    assert (
        _event(_context(params=params, principal=Principal(**{**PRINCIPAL, "claims": claims})), 200).patient == patient
    )


FHIR = {**ROUTE, "name": "fhir", "metadata": {"fhir_param": "rest"}, "bases": ("https://gw/{unit}/fhir",)}
TYPE = {**ROUTE, "metadata": {"resource_type": "Observation"}, "query": frozenset({"patient"})}
NOBODY = {**PRINCIPAL, "claims": {}}


@pytest.mark.parametrize(
    ("method", "path", "query", "resource", "key", "patient", "action"),
    [
        ("GET", "Patient/x", "", "Patient", "x", "x", "R"),
        ("GET", "Patient/x", "_summary=true&_id=y", "Patient", "x", "x", "R"),
        ("PUT", "Patient/x", "", "Patient", "x", "x", "U"),
        ("GET", "Patient/x/_history/2", "", "Patient", "x", "x", "R"),
        ("GET", "Patient/x/Observation", "", "Observation", "", "x", "R"),
        ("POST", "Patient/x/$everything", "", "Patient", "x", "x", "E"),
        ("GET", "Patient", "_id=x", "Patient", "", "x", "R"),
        ("GET", "Patient", "name=x", "Patient", "", "", "R"),
        ("GET", "Observation/7", "", "Observation", "7", "", "R"),
        ("GET", "Observation/7", "patient=decoy", "Observation", "7", "", "R"),
        ("GET", "Observation/7/_history/1", "patient=decoy", "Observation", "7", "", "R"),
        ("GET", "Encounter/7/Observation", "patient=x", "Observation", "", "x", "R"),
        ("GET", "Observation", "patient=x", "Observation", "", "x", "R"),
        ("GET", "Observation", "code=1&subject=Patient/x&patient=y", "Observation", "", "x", "R"),
        ("GET", "Observation", "subject:Patient=x", "Observation", "", "x", "R"),
        ("GET", "Observation", "patient=Patient%2Fx", "Observation", "", "x", "R"),
        ("GET", "Observation", "patient=https://gw/u-1/fhir/Patient/x", "Observation", "", "x", "R"),
        ("GET", "Observation", "patient=https://elsewhere/Patient/x", "Observation", "", "", "R"),
        ("GET", "Observation", "patient=x,y", "Observation", "", "x", "R"),
        ("GET", "Observation", "subject=Group/x", "Observation", "", "", "R"),
        ("GET", "Observation", "_id=x", "Observation", "", "", "R"),
        ("GET", "Observation", "&&=&patient&patient=%zz&;", "Observation", "", "", "R"),
        ("POST", "Observation/_search", "patient=x", "Observation", "", "x", "R"),
        ("POST", "Observation", "", "Observation", "", "", "C"),
        ("POST", "_search", "patient=x", "", "", "x", "R"),
        ("POST", "$reindex", "", "", "", "", "E"),
        ("GET", "", "patient=x", "", "", "x", "R"),
        ("GET", "Nothing/x", "", "", "", "", "R"),
        ("GET", "Patient/a b", "", "Patient", "", "", "R"),
    ],
)
@pytest.mark.parametrize("refused", [False, True], ids=["allowed", "refused"])
def test_what_a_fhir_request_is_about(method, path, query, resource, key, patient, action, refused):
    ctx = _context(
        method=method, query=query, params={"unit": "u-1", "rest": path}, route=Route(**FHIR),
        principal=Principal(**NOBODY), **({"rule": "binding", "error": BindingRefused()} if refused else {}),
    )  # fmt: skip
    event = _event(ctx, 403 if refused else 200)
    assert (event.resource_type, event.resource_id, event.patient, event.action) == (resource, key, patient, action)
    assert action_in(ctx.route, ctx) == action, "events beside this one say the same"
    assert (event.route, event.phi, event.outcome) == ("fhir", True, "refused" if refused else "allowed")


@pytest.mark.parametrize(
    ("metadata", "params", "query", "expected"),
    [
        pytest.param(
            {"resource_type": "Observation"}, {}, "patient=Patient/x", ("Observation", "", "x"), id="search of a type"
        ),
        pytest.param({"resource_type": "Note"}, {}, "patient=x", ("Note", "", ""), id="no type of FHIR"),
        pytest.param(
            {"resource_type": "Observation"}, {"patient": "z"}, "patient=x", ("Observation", "", "z"), id="path"
        ),
        pytest.param(
            {"resource_type": "Patient", "resource_param": "id"}, {"id": "x"}, "", ("Patient", "x", "x"), id="a patient"
        ),
    ],
)
def test_what_a_route_of_one_type_is_about(metadata, params, query, expected):
    ctx = _context(
        query=query, params=params, principal=Principal(**NOBODY),
        route=Route(**{**ROUTE, "metadata": metadata, "query": frozenset({"patient"})}),
    )  # fmt: skip
    event = _event(ctx, 200)
    assert (event.resource_type, event.resource_id, event.patient) == expected


@pytest.mark.parametrize(
    ("route", "params", "query", "others"),
    [
        pytest.param(FHIR, {"rest": "Observation"}, "patient=a,b&subject=Patient/c", ["b", "c"], id="several"),
        pytest.param(FHIR, {"rest": "Observation"}, "patient=a&patient=a&patient=Patient%2Fa", [], id="one"),
        pytest.param(FHIR, {"rest": "Patient"}, "_id=a,b", ["b"], id="ids of patients"),
        pytest.param(FHIR, {"rest": "Patient/a/Observation"}, "patient=b", ["b"], id="beside a compartment"),
        pytest.param(FHIR, {"rest": "Observation/7"}, "patient=a,b", [], id="a record"),
        pytest.param(FHIR, {"rest": "Observation"}, "", [], id="nothing"),
        pytest.param(TYPE, {}, "patient=a,b", ["b"], id="a route of one type"),
        pytest.param(TYPE, {"patient": "z"}, "patient=a,b", ["a", "b"], id="beside the path"),
        pytest.param({**TYPE, "query": frozenset()}, {}, "patient=a,b", [], id="no query is taken"),
        pytest.param({**TYPE, "metadata": {"resource_type": "Note"}}, {}, "patient=a,b", [], id="no type of FHIR"),
    ],
)
def test_whom_else_a_request_names(route, params, query, others):
    """A decoy in front of the victim hides nobody."""
    ctx = _context(query=query, params=params, principal=Principal(**NOBODY), route=Route(**route))
    assert also_named(ctx) == others
    assert _event(ctx, 200).patient not in others


@pytest.mark.parametrize(
    ("template", "target", "resource", "action"),
    [
        ("/fhir/Observation/_search", None, "Observation", "R"),
        ("/v1/labs", "/fhir/Observation/_search?_count=5", "Observation", "R"),
        ("/v1/labs", "/fhir/Observation?x=/_search", "Observation", "C"),
        ("/fhir/Patient/{id}/$everything", None, "Patient", "E"),
        ("/fhir", None, "Bundle", "E"),
        ("/v1/documents", "/fhir/Bundle", "Bundle", "C"),
        ("/notes/_search", None, "Note", "C"),
    ],
)
def test_what_a_post_to_a_route_of_one_type_does(template, target, resource, action):
    route = Route(**{**ROUTE, "template": template, "kind": RouteKind.UPSTREAM, "metadata": {"resource_type": resource},
                     "action": UpstreamAction("u", target)})  # fmt: skip
    ctx = _context(method="POST", route=route)
    assert (_event(ctx, 200).action, action_in(route, ctx)) == (action, action)


def test_a_patient_read_by_its_id_stands_there_under_its_name():
    ctx = _context(params={"rest": "Patient/x"}, route=Route(**FHIR), principal=Principal(**NOBODY))
    canonical = Accesses("n", lambda patient: f"p.{patient}{patient}").encode(ctx, 200, 1, 1)
    event = decode(canonical)
    assert (event.patient, event.resource_id) == ("p.xx", "p.xx")


@pytest.mark.parametrize(
    ("route_purpose", "claim", "purpose"),
    [("TREAT", "HRESCH", "TREAT"), ("", "HRESCH", "HRESCH"), ("", None, "")],
    ids=["route-first", "token", "none"],
)
def test_purpose(route_purpose, claim, purpose):
    route = Route(**{**ROUTE, "metadata": {"purpose": route_purpose}})
    principal = Principal(**{**PRINCIPAL, "claims": {"purpose": claim}})
    assert _event(_context(route=route, principal=principal), 200).purpose == purpose


def test_delivery_of_a_relayed_request_comes_from_its_error():
    assert _event(_context(error=UnitResponseTimeout("u-1")), 504).delivery == "dispatched"


def test_nobody_known():
    event = _event(_context(principal=None, route=None, rule="token:malformed"), 401)
    assert (event.subject, event.role, event.route, event.phi, event.action) == ("", "", "", False, "R")


def test_what_is_kept_of_a_route_is_of_that_route():
    """A new configuration has another route of the same name."""
    accesses = Accesses("n")
    for phi in (True, False):
        event = decode(accesses.encode(_context(route=Route(**{**ROUTE, "phi": phi})), 200, 1, 1))
        assert event.phi == phi


class Page(Chain):
    """A chain with room for a record."""

    def __init__(self):
        self.hash, self.sequence, self._map, self._size, self._at = bytes(32), 0, bytearray(4096), 4096, 0

    @property
    def event(self):
        return self._map[44 : self._at]


def _clocked():
    return Accesses("n", clock_ns=lambda: 1_700_000_000_123_456_789, since_ns=lambda: 9_999)


@pytest.mark.parametrize(
    ("whole", "rule", "error", "outcome"),
    [
        pytest.param(True, "", None, "complete", id="whole"),
        pytest.param(False, "", None, "cut", id="cut"),
        pytest.param(True, "unit-response-timeout", UnitResponseTimeout("u-1"), "complete", id="an error's answer"),
    ],
)
def test_completion(whole, rule, error, outcome):
    page = Page()
    ctx = _context(started_ns=2_000, error=error)
    assert _clocked().complete(ctx, 200, whole, page) == 1
    event = decode(page.event)
    assert encode(event) == page.event
    assert (event.phase, event.outcome, event.rule, event.request_id, event.status) == (
        "completion", outcome, rule, "r-1", 200,
    )  # fmt: skip
    assert (event.at_ms, event.duration_us, event.node) == (1_700_000_000_123, 7, "n")


@pytest.mark.parametrize(("started_ns", "took_us"), [(2_000, 7), (50_000, 0)])
def test_what_is_kept_at_once_is_the_event_of_this_moment(started_ns, took_us):
    page, accesses, ctx = Page(), _clocked(), _context(started_ns=started_ns)
    assert accesses.keep(ctx, 200, page) == 1
    assert page.event == accesses.encode(ctx, 200, 1_700_000_000_123, took_us)
    assert page.hash == link(bytes(32), 1, bytes(page.event))


@pytest.mark.parametrize("number", [0, 7, 10, 99, 2**31, 2**63 - 1, -1, -(2**63)])
def test_numbers_are_written_as_they_are(number):
    event = decode(Accesses("n").encode(_context(), 200, number, 0))
    assert event.at_ms == number


TEXT = st.text(max_size=300)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_the_bytes_are_canonical_whatever_callers_send(data):
    claims = data.draw(st.dictionaries(st.sampled_from(["patient", "org", "client_id", "azp", "purpose"]), TEXT))
    ctx = _context(
        principal=Principal(**{**PRINCIPAL, "claims": claims, "subject": data.draw(TEXT), "token_id": data.draw(TEXT)}),
        params=data.draw(st.dictionaries(st.sampled_from(["patient", "unit", "appointment", "rest"]), TEXT)),
        method=data.draw(st.sampled_from(["GET", "OPTIONS", 'B"\\\x7f'])),
        client_address=data.draw(TEXT),
        agent=data.draw(TEXT),
        query=data.draw(TEXT),
        route=data.draw(
            st.sampled_from([None, Route(**ROUTE), Route(**FHIR), Route(**{**ROUTE, "metadata": {}, "phi": False})])
        ),
        snapshot=data.draw(st.sampled_from([None, _Snapshot()])),
    )
    canonical = _bytes(ctx, data.draw(st.sampled_from([0, 200])))
    event = decode(canonical)
    assert encode(event) == canonical

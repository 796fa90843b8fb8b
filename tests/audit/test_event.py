import pytest

from gateway.audit.event import build_event
from gateway.context import Principal, RequestContext
from gateway.errors import BindingRefused, DatabaseUnavailable, TokenInvalid, UnitResponseTimeout
from gateway.routing.model import FunctionAction, Route, RouteKind

PRINCIPAL = Principal(
    subject="anna",
    issuer="https://id",
    audience="patient-app",
    role="patient",
    permissions=frozenset(),
    token_id="jti-1",
    key_id="k",
    expires_at_s=0.0,
    claims={"patient": "pat-0001", "org": "o-1", "client_id": "app"},
)
ROUTE = Route(
    name="appointments",
    template="/p/{patient}",
    methods=("GET",),
    kind=RouteKind.FUNCTION,
    action=FunctionAction("portal.f", (), 200),
    audiences=frozenset(),
    roles=frozenset(),
    permission=None,
    phi=True,
    metadata={"purpose": "TREAT"},
)


class _Snapshot:
    version = 12


def _context(**changes):
    values = {"method": "GET", "principal": PRINCIPAL, "route": ROUTE, "rule": "allowed", "snapshot": _Snapshot()}
    return RequestContext(id="r-1", started_ns=5, client_address="192.0.2.1", **{**values, **changes})


def test_who_what_where():
    event = build_event(_context(unit="u-1"), 200)
    expected = {
        "request_id": "r-1", "phase": "outcome", "outcome": "allowed", "rule": "allowed", "status": 200,
        "method": "GET", "route": "appointments", "action": "R", "phi": True, "patient": "pat-0001", "unit": "u-1",
        "issuer": "https://id", "subject": "anna", "role": "patient", "audience": "patient-app", "organisation": "o-1",
        "client": "app", "token_id": "jti-1", "client_address": "192.0.2.1", "purpose": "TREAT", "delivery": "",
        "config_version": 12, "started_ns": 5,
    }  # fmt: skip
    assert {name: getattr(event, name) for name in expected} == expected


def test_events_of_one_request_have_ids_of_their_own():
    ctx = _context()
    assert build_event(ctx, 0).event_id != build_event(ctx, 200).event_id


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
    event = build_event(_context(error=error, rule=rule), status)
    assert (event.outcome, event.rule) == (outcome, recorded_rule)


@pytest.mark.parametrize(
    ("method", "action"),
    [("GET", "R"), ("HEAD", "R"), ("POST", "C"), ("PUT", "U"), ("PATCH", "U"), ("DELETE", "D"), ("OPTIONS", "E")],
)
def test_action(method, action):
    assert build_event(_context(method=method), 200).action == action


@pytest.mark.parametrize(
    ("params", "claims", "patient"),
    [
        ({"patient": "pat-0002"}, {"patient": "pat-0001"}, "pat-0002"),
        ({}, {"patient": "pat-0001"}, "pat-0001"),
        ({}, {"patient": ["x"]}, ""),
        ({"patient": "a\0b"}, {}, "a\ufffdb"),
        ({"patient": "x" * 1000}, {}, "x" * 256),
    ],
    ids=["path-first", "claim", "not-text", "nul", "long"],
)
def test_patient(params, claims, patient):
    principal = Principal(**{**{n: getattr(PRINCIPAL, n) for n in PRINCIPAL.__slots__}, "claims": claims})
    assert build_event(_context(params=params, principal=principal), 200).patient == patient


def test_delivery_of_a_relayed_request_comes_from_its_error():
    assert build_event(_context(error=UnitResponseTimeout("u-1")), 504).delivery == "dispatched"


def test_nobody_known():
    event = build_event(_context(principal=None, route=None, rule="token:malformed"), 401)
    assert (event.subject, event.role, event.route, event.phi) == ("", "", "", False)

"""Where an answer says something is: told by the gateway's path, if it is the target's own."""

from types import SimpleNamespace

import pytest

from fastpath.routes import RouteTable
from gateway.context import Principal, RequestContext
from gateway.routing.location import host_of, public_location
from gateway.routing.model import Route, RouteKind, UnitAction, UpstreamAction
from gateway.routing.target import forward_target

HOSTS = frozenset({"10.0.8.1:8080", "codes"})


def route(name, template, action, methods=("GET", "POST"), audiences=("staff",)):
    kind = RouteKind.UNIT if isinstance(action, UnitAction) else RouteKind.UPSTREAM
    return Route(name, template, methods, kind, action, frozenset(audiences), frozenset(), None)


def unit(target, name=None):
    return UnitAction(name, None if name else "unit", target, False)


ROUTES = [
    route("fhir", "/units/{unit}/fhir/{path:path}", unit("/fhir/{path}")),
    route("notes", "/units/{unit}/p/{patient}/notes", unit("/fhir/Note"), ("POST",)),
    route("orders", "/orders", unit("/svc/ServiceRequest?x={unit}", "st"), ("POST",)),
    route("order", "/orders/{id}", unit("/svc/ServiceRequest/{id}", "st")),
    route("other", "/other/{path:path}", unit("/svc/{path}", "another")),
    route("scans", "/scans", unit("/wado", "st"), ("POST",)),
    route("hidden", "/secret/{path:path}", unit("/wado/{path}", "st"), audiences=("else",)),
    route("lab", "/units/{unit}/p/{patient}/labs", unit("/lab/Report")),
    route("report", "/units/{unit}/p/{patient}/labs/{id}", unit("/lab/Report/{id}")),
    route("image", "/units/{unit}/images/{id}", unit("/pictures/{id}")),
    route("codes", "/codes/{path:path}", UpstreamAction("codes", "/terms/{path}")),
    route("code", "/code-sets", UpstreamAction("codes", "/terms/CodeSystem"), ("POST",)),
    route("own", "/as/it/is/{path:path}", UpstreamAction("codes", None)),
    route("rest", "/rest/{path:path}", UpstreamAction("rest", "/{path}")),
]
TABLE = RouteTable([(method, one.template, one) for one in ROUTES for method in one.methods])
SNAPSHOT = SimpleNamespace(routes=TABLE, controllers={one.name: one for one in ROUTES})


def told(path, value, method="POST"):
    found, params = TABLE.match(method, path)
    ctx = RequestContext("id", 0, method=method, path=path, route=found, params=params, snapshot=SNAPSHOT)
    ctx.principal = Principal("s", "i", "staff", "nurse", frozenset(), "t", "k", 0.0, {})
    hosts = HOSTS
    if isinstance(found.action, UnitAction):
        ctx.unit, hosts = found.action.unit or params["unit"], frozenset()
    sent = forward_target(found.action.target.partition("?")[0] if found.action.target else None, ctx)
    return public_location(value, ctx, sent, hosts)


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("/units/st/fhir/Observation", "/fhir/Observation/5/_history/1", "/units/st/fhir/Observation/5/_history/1"),
        ("/units/st/fhir/Observation", "/fhir/Patient/7?a=/fhir/b#c", "/units/st/fhir/Patient/7?a=/fhir/b#c"),
        ("/units/st/fhir/Observation", "Observation/5", "/units/st/fhir/Observation/5"),
        ("/units/st/fhir/Observation/4", "5", "/units/st/fhir/Observation/5"),
        ("/units/st/fhir/a", "?page=2", "/units/st/fhir/a?page=2"),
        ("/units/st/fhir/a", "/fhir/b%20c", "/units/st/fhir/b%20c"),
        ("/units/st/fhir/a", "/pictures/9", "/units/st/images/9"),
        ("/units/st/fhir/a", "/elsewhere", "/elsewhere"),
        ("/units/st/p/7/notes", "/fhir/Note/5", "/units/st/fhir/Note/5"),
        ("/units/st/p/7/notes", "/fhir/Noted/5", "/units/st/fhir/Noted/5"),
        ("/units/st/p/7/labs", "/lab/Report/5", "/units/st/p/7/labs/5"),
        ("/orders", "/svc/ServiceRequest/5", "/orders/5"),
        ("/orders", "/svc/ServiceRequest/5/_history/1", "/orders/5/_history/1"),
        ("/scans", "/wado/5", "/scans/5"),
        ("/scans", "/wado", "/scans"),
    ],
)
def test_a_unit(path, value, expected):
    assert told(path, value) == expected


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("/codes/a", "http://10.0.8.1:8080/terms/b?x#y", "/codes/b?x#y"),
        ("/codes/a", "HTTPS://10.0.8.1:8080/terms/b", "/codes/b"),
        ("/codes/a", "//10.0.8.1:8080/terms/b", "/codes/b"),
        ("/codes/a", "http://CODES:80/terms/b", "/codes/b"),
        ("/codes/a", "http://codes/nothing", "/nothing"),
        ("/codes/a", "http://codes", "/"),
        ("/code-sets", "http://codes/terms/CodeSystem/5", "/codes/CodeSystem/5"),
        ("/as/it/is/a", "http://codes/as/it/is/b", "/as/it/is/b"),
        ("/rest/a", "/b", "/rest/b"),
    ],
)
def test_an_upstream(path, value, expected):
    assert told(path, value) == expected


@pytest.mark.parametrize("path", ["/codes/a", "/units/st/fhir/a"])
@pytest.mark.parametrize(
    "value",
    [
        "https://id.example.org/login?next=/fhir/x", "http://10.0.8.1:9999/terms/b", "http://codes@evil/terms/b",
        "//evil.example/fhir/x", "urn:uuid:1", "mailto:a@b", "#part", "", "/fhir/../x/..%2f", "/terms//b", "/fhir/\\b",
        "/fhir/é", "/terms/a b", "http://10.0.8.1:8080\\@evil/terms/b",
    ],
)  # fmt: skip
def test_what_is_left_alone(path, value):
    assert told(path, value) == value


def test_an_absolute_address_at_a_unit_is_the_agents_to_know():
    assert told("/units/st/fhir/a", "http://codes/fhir/b") == "http://codes/fhir/b"


def test_a_host_as_it_is_compared():
    assert [host_of("A:80"), host_of("a:443", "https"), host_of("a:443")] == ["a", "a", "a:443"]

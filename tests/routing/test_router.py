"""The router under a real Falcon application: which resource, which parameters, and what is refused how."""

from __future__ import annotations

from types import SimpleNamespace

import falcon
import falcon.testing
import pytest

from fastpath.routes import RouteConflict, RouteTable, canonical_path
from gateway.context import Principal, RequestContext
from gateway.errors import GatewayError, InternalError, MethodNotMapped, NotFound
from gateway.routing.kinds import ResourceTable, endpoint, entry_points
from gateway.routing.model import FunctionAction, ResourceAction, Route, RouteKind, UnitAction, UpstreamAction
from gateway.routing.router import Router

ACTIONS = {
    RouteKind.FUNCTION: FunctionAction("portal.f", (), 200),
    RouteKind.UPSTREAM: UpstreamAction("u", None),
    RouteKind.UNIT: UnitAction(None, "unit", None, False),
    RouteKind.RESOURCE: ResourceAction("plugin"),
}


def route(name: str, template: str, *methods: str, kind=RouteKind.FUNCTION, **more) -> Route:
    settings = {"audiences": frozenset({"staff"}), "roles": frozenset({"clerk"}), "permission": None}
    return Route(name, template, methods or ("GET",), kind, more.pop("action", ACTIONS[kind]), **settings, **more)


def snapshot(*routes: Route) -> SimpleNamespace:
    return SimpleNamespace(routes=RouteTable([(m, r.template, r) for r in routes for m in r.methods]))


class Recorder:
    """Answers everything with its own name, the route's and the parameters."""

    def __init__(self, name: str) -> None:
        self.name = name

    def on_request(self, req: falcon.Request, resp: falcon.Response) -> None:
        ctx = req.context.gateway
        resp.media = [self.name, ctx.route and ctx.route.name, ctx.params, req.uri_template]


class Plugin:
    """A Falcon resource as anyone would write it."""

    def on_get(self, req: falcon.Request, resp: falcon.Response, **fields: str) -> None:
        resp.media = ["plugin", req.context.gateway.route.name, fields, req.uri_template]

    on_options = on_get


class MakeContext:
    """Stands for accounting: the canonical path, and a snapshot where the test says so."""

    def __init__(self, principal: Principal | None = None, taken: object | None = None) -> None:
        self.principal = principal
        self.taken = taken

    def process_request(self, req: falcon.Request, resp: falcon.Response) -> None:
        path, query = canonical_path(req.env["RAW_URI"])
        ctx = RequestContext(id="r", started_ns=0, method=req.method, path=path, query=query, principal=self.principal)
        ctx.snapshot = self.taken
        req.context.gateway = ctx


def answer(req: falcon.Request, resp: falcon.Response, error: GatewayError, params: dict[str, object]) -> None:
    resp.status = {NotFound: 404, MethodNotMapped: 405, InternalError: 500}[type(error)]
    resp.media = [type(error).__name__, error.detail]
    resp.set_headers(list(error.headers))


FILES = "/files/{patient}/{path:path}"
ROUTES = snapshot(
    route("me", "/portal/me"),
    route("patient", "/portal/{patient}", "GET", "POST"),
    route("files", FILES, kind=RouteKind.UPSTREAM),
    route("lab", "/units/{unit}/lab", kind=RouteKind.UNIT),
    route("slash", "/units/{unit}/lab/", kind=RouteKind.UNIT),
    route("plug", "/plug/{one}/{two}", "GET", "POST", kind=RouteKind.RESOURCE),
    route("lost", "/lost", kind=RouteKind.RESOURCE, action=ResourceAction("gone")),
    route("secret", "/secret/{x}", "PUT", hidden=True),
    route("half", "/half", "GET"),
    route("half-hidden", "/half", "DELETE", hidden=True),
)


def make_client(current=ROUTES, middleware: MakeContext | None = None, **resources) -> falcon.testing.TestClient:
    resources = {
        "function": Recorder("function"),
        "upstream": Recorder("upstream"),
        "unit": Recorder("unit"),
        **resources,
    }
    router = Router(SimpleNamespace(current=current), ResourceTable(entry_points={"plugin": Plugin()}, **resources))
    app = falcon.App(router=router, middleware=[middleware or MakeContext()])
    app.add_error_handler(GatewayError, answer)
    app.add_route("/relay/v1/connect", Plugin())
    app.add_route("/admin/{name}", Recorder("admin"))
    return falcon.testing.TestClient(app)


def call(client: falcon.testing.TestClient, method: str, target: str) -> falcon.testing.Result:
    """Send a raw target; PATH_INFO is what WSGI servers make of it."""
    path, _, query = target.partition("?")
    return client.simulate_request(method, path, query_string=query, extras={"RAW_URI": target})


FOUND = [
    ("literal", "GET", "/portal/me", ["function", "me", {}, "/portal/me"]),
    ("parameter", "POST", "/portal/p1", ["function", "patient", {"patient": "p1"}, "/portal/{patient}"]),
    ("by method", "POST", "/portal/me", ["function", "patient", {"patient": "me"}, "/portal/{patient}"]),
    ("query is not matched", "GET", "/portal/me?a=/b", ["function", "me", {}, "/portal/me"]),
    (
        "rest, decoded",
        "GET",
        "/files/p/a%20b/%C3%A9/",
        ["upstream", "files", {"patient": "p", "path": "a b/é/"}, FILES],
    ),
    ("spelled otherwise", "GET", "/p%6frtal/%6de", ["function", "me", {}, "/portal/me"]),
    ("decoded once", "GET", "/portal/%252e", ["function", "patient", {"patient": "%2e"}, "/portal/{patient}"]),
    ("unit", "GET", "/units/u1/lab", ["unit", "lab", {"unit": "u1"}, "/units/{unit}/lab"]),
    ("trailing slash", "GET", "/units/u1/lab/", ["unit", "slash", {"unit": "u1"}, "/units/{unit}/lab/"]),
    ("Falcon gets fields", "GET", "/plug/1/2", ["plugin", "plug", {"one": "1", "two": "2"}, "/plug/{one}/{two}"]),
    ("the gateway's own", "PATCH", "/admin/x", ["admin", None, {"name": "x"}, "/admin/{name}"]),
]


@pytest.mark.parametrize(("method", "target", "expected"), [c[1:] for c in FOUND], ids=[c[0] for c in FOUND])
def test_found(method, target, expected) -> None:
    result = call(make_client(), method, target)
    assert (result.status_code, result.json) == (200, expected)


def test_matches_the_canonical_path_and_not_path_info() -> None:
    client = make_client()
    result = client.simulate_get("/portal/me", extras={"RAW_URI": "/portal/other"})
    assert result.json[2] == {"patient": "other"}


REFUSED = [
    ("unknown path", "GET", "/nothing", 404, None),
    ("trailing slash", "GET", "/portal/me/", 404, None),
    ("below", "GET", "/portal/me/x", 404, None),
    ("root", "GET", "/", 404, None),
    ("method", "PUT", "/portal/me", 405, "GET, POST"),
    ("HEAD is not implied", "HEAD", "/portal/p1", 405, "GET, POST"),
    ("OPTIONS is not Falcon's", "OPTIONS", "/portal/p1", 405, "GET, POST"),
    ("a method nobody has", "PURGE", "/portal/p1", 405, "GET, POST"),
    ("configured, but not implemented by the resource", "POST", "/plug/1/2", 405, "GET"),
    ("one of the gateway's own", "POST", "/relay/v1/connect", 405, "GET, OPTIONS"),
    ("hidden route shows no methods", "GET", "/secret/1", 404, None),
    ("hidden route shows none among others", "PUT", "/half", 405, "GET"),
    ("resource that is not installed", "GET", "/lost", 500, None),
]


@pytest.mark.parametrize(("method", "target", "status", "allow"), [c[1:] for c in REFUSED], ids=[c[0] for c in REFUSED])
def test_refused(method, target, status, allow) -> None:
    result = call(make_client(), method, target)
    assert (result.status_code, result.headers.get("Allow")) == (status, allow)


def test_hidden_and_unknown_are_told_the_same() -> None:
    client = make_client()
    hidden, unknown = call(client, "GET", "/secret/1"), call(client, "GET", "/nothing")
    assert (hidden.text, hidden.status_code) == (unknown.text, unknown.status_code)


PRINCIPALS = [("of its audience", "staff", 405), ("of another", "patient-app", 404)]


@pytest.mark.parametrize(("audience", "status"), [c[1:] for c in PRINCIPALS], ids=[c[0] for c in PRINCIPALS])
def test_methods_of_a_hidden_route(audience, status) -> None:
    principal = Principal("s", "i", audience, "clerk", frozenset(), "t", "k", 1.0, {})
    assert call(make_client(middleware=MakeContext(principal)), "GET", "/secret/1").status_code == status


def test_a_kind_without_a_resource_is_not_served() -> None:
    assert call(make_client(function=None), "GET", "/portal/me").status_code == 500


def test_a_request_keeps_the_snapshot_it_began_with() -> None:
    old = snapshot(route("old", "/old"))
    client = make_client(middleware=MakeContext(taken=old))
    assert call(client, "GET", "/old").json[1] == "old"
    assert call(client, "GET", "/portal/me").status_code == 404


def test_a_swap_is_seen_by_the_next_request() -> None:
    holder = SimpleNamespace(current=ROUTES)
    router = Router(holder, ResourceTable(function=Recorder("f")))
    app = falcon.App(router=router, middleware=[MakeContext()])
    app.add_error_handler(GatewayError, answer)
    client = falcon.testing.TestClient(app)
    assert call(client, "GET", "/portal/me").status_code == 200
    holder.current = snapshot(route("new", "/new"))
    assert call(client, "GET", "/portal/me").status_code == 404
    assert call(client, "GET", "/new").json[1] == "new"


def test_a_route_that_matches_any_path_gets_none_of_the_gateways_own() -> None:
    client = make_client(snapshot(route("any", "/{path:path}", "GET", "PATCH", "POST")))
    assert call(client, "GET", "/portal/x").json[1] == "any"
    assert call(client, "PATCH", "/admin/x").json == ["admin", None, {"name": "x"}, "/admin/{name}"]
    assert call(client, "GET", "/admin/x/y").status_code == 404
    assert call(client, "POST", "/relay/v1/connect").headers["Allow"] == "GET, OPTIONS"


def test_own_resources_are_checked() -> None:
    router = Router(SimpleNamespace(current=ROUTES), ResourceTable())
    router.add_route("/a/{x}", Recorder("a"))
    with pytest.raises(RouteConflict):
        router.add_route("/a/{y}", Recorder("b"))
    with pytest.raises(RouteConflict):
        router.add_route("/a/{x}", Recorder("b"))
    with pytest.raises(TypeError):
        router.add_route("/b", object())
    router.add_route("/b", Recorder("b"))


class Suffixed:
    def on_get_one(self) -> None: ...
    def on_request_all(self) -> None: ...


def test_endpoint_suffix() -> None:
    resource = Suffixed()
    assert endpoint(resource, "one").responders == {"GET": resource.on_get_one}
    assert set(endpoint(resource, "all").responders) == {"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"}
    with pytest.raises(TypeError, match="Suffixed has no responders for suffix two"):
        endpoint(resource, "two")


def test_entry_points(monkeypatch) -> None:
    ready = Plugin()
    points = [SimpleNamespace(name="of-class", load=lambda: Plugin), SimpleNamespace(name="ready", load=lambda: ready)]
    monkeypatch.setattr(
        "gateway.routing.kinds.metadata.entry_points", lambda group: points if "caregate" in group else []
    )
    found = entry_points()
    assert isinstance(found["of-class"], Plugin)
    assert found["ready"] is ready

"""The policy steps together, through falcon.testing: every refusal as the table of answers says."""

from __future__ import annotations

import contextlib
import time

import falcon
import jwt
import pytest

from gateway.audit.event import Accesses, decode
from gateway.bodies import Body
from gateway.context import RequestContext
from gateway.demo.resources import Ping
from gateway.errors import (
    AuditUnavailable,
    DatabaseTimeout,
    RoleRefused,
    UnitAcceptTimeout,
    UnitNotConnected,
    UnitResponseTimeout,
    UpstreamBroken,
)
from gateway.http.accounting import _unrecorded
from gateway.routing.kinds import endpoint
from gateway.routing.model import RouteKind
from gateway.tracing.w3c import parse_traceparent


@pytest.mark.parametrize(
    ("role", "claims", "path", "status", "code"),
    [
        pytest.param(None, {}, "/v1/who", 401, "token-missing", id="no token"),
        pytest.param("member", {}, "/v1/who", 200, None, id="any audience of the route"),
        pytest.param("nurse", {}, "/v1/who", 200, None, id="another audience of the route"),
        pytest.param("member", {"member": "m1"}, "/v1/members/m1/notes", 200, None, id="own record"),
        pytest.param(
            "member", {"member": "m1"}, "/v1/members/m2/notes", 404, "not-found", id="another's record: hidden"
        ),
        pytest.param("member", {}, "/v1/members/m1/notes", 404, "not-found", id="no claim to bind"),
        pytest.param("member", {"member": ["m1", "m2"]}, "/v1/members/m2/notes", 200, None, id="claim with several"),
        pytest.param("member", {"member": 1}, "/v1/members/1/notes", 404, "not-found", id="a number is not a string"),
        pytest.param("nurse", {"wards": ["w1"]}, "/v1/wards/w1/beds", 200, None, id="own unit"),
        pytest.param("nurse", {"wards": ["w1"]}, "/v1/wards/w2/beds", 403, "binding-refused", id="another unit"),
        pytest.param("nurse", {"wards": "w12"}, "/v1/wards/w1/beds", 403, "binding-refused", id="no substring"),
        pytest.param("nurse", {"wards": ["w1"]}, "/v1/wards/w1/name", 403, "permission-refused", id="no permission"),
        pytest.param("ward_admin", {"wards": ["w1"]}, "/v1/wards/w1/name", 200, None, id="permission"),
        pytest.param("member", {"wards": ["w1"]}, "/v1/wards/w1/beds", 401, "token-invalid", id="another audience"),
        pytest.param("member", {}, "/v1/secret", 404, "not-found", id="hidden from another audience"),
        pytest.param("ward_admin", {}, "/v1/secret", 403, "role-refused", id="role of the same audience"),
        pytest.param("member", {}, "/v1/nothing", 404, "not-found", id="no such route"),
        pytest.param(None, {}, "/v1/nothing", 404, "not-found", id="no such route, no token"),
        pytest.param("member", {}, "/v1/who/", 404, "not-found", id="a trailing slash is another path"),
        pytest.param("member", {"exp": 1}, "/v1/who", 401, "token-invalid", id="expired"),
        pytest.param("member", {"role": "nurse"}, "/v1/who", 401, "token-invalid", id="role claim of another role"),
        pytest.param("member", {"aud": "staff"}, "/v1/who", 401, "token-invalid", id="audience of another role"),
        pytest.param("member", {"exp": int(time.time()) + 9e5}, "/v1/who", 401, "token-invalid", id="lives too long"),
        pytest.param("member", {"secret": "x" * 40}, "/v1/who", 401, "token-invalid", id="wrong key"),
        pytest.param("member", {"kid": "nurse-1"}, "/v1/who", 401, "token-invalid", id="key of another role"),
        pytest.param("member", {"kid": "nobody"}, "/v1/who", 401, "token-invalid", id="unknown key"),
    ],
)
def test_decision(ask, role, claims, path, status, code):
    answer = ask(path, role, claims=claims)
    assert answer.status_code == status
    assert answer.headers["X-Request-Id"]
    if code is None:
        return
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.json["type"] == f"urn:caregate:problem:{code}"
    assert answer.json["request_id"] == answer.headers["X-Request-Id"]


def test_challenges_tell_expired_from_the_rest(ask):
    missing = ask("/v1/who").headers["WWW-Authenticate"]
    expired = ask("/v1/who", "member", claims={"exp": 1}).headers["WWW-Authenticate"]
    wrong = ask("/v1/who", "member", claims={"secret": "x" * 40}).headers["WWW-Authenticate"]
    assert missing == 'Bearer realm="test"'
    assert 'error="invalid_token"' in expired
    assert 'error="invalid_token"' in wrong
    assert expired != wrong


def test_who_tries_what_is_hidden_is_counted_as_refused(ask, gateway):
    for role, claims, path in (
        ("member", {"member": "m1"}, "/v1/members/m2/notes"), ("member", {}, "/v1/secret"), ("member", {}, "/v1/none"),
    ):  # fmt: skip
        assert ask(path, role, claims=claims).status_code == 404
    counted = gateway.metrics.totals("caregate_refusals")
    assert {code: number for (code, _), number in counted.items()} == {
        "binding-refused": 1.0, "token-invalid": 1.0, "not-found": 1.0,
    }  # fmt: skip


def test_hidden_and_missing_have_the_same_body(ask):
    bodies = [
        ask(path, "member", claims={"member": "m1"}).json for path in ("/v1/secret", "/v1/x", "/v1/members/m2/notes")
    ]
    for body in bodies:
        del body["request_id"], body["instance"]
    assert bodies[0] == bodies[1] == bodies[2]


def test_method_not_mapped(ask):
    answer = ask("/v1/wards/w1/beds", "nurse", "DELETE")
    assert answer.status_code == 405
    assert answer.headers["Allow"] == "GET, PUT"


@pytest.mark.parametrize(
    "path", ["/v1//who", "/v1/./who", "/v1/%2e%2e/who", "/v1/a%2fb", "/v1/%00", "/v1/%ff", "/v1/%zz"]
)
def test_target_not_canonical(client, path):
    answer = client.simulate_get("/", extras={"RAW_URI": path, "PATH_INFO": "/"})
    assert answer.status_code == 400
    assert answer.json["type"] == "urn:caregate:problem:bad-target"


@pytest.mark.parametrize(
    ("query", "status"),
    [
        pytest.param("verbose=1", 200, id="declared"),
        pytest.param("other=1", 400, id="not declared"),
        pytest.param("verb%6fse=1", 200, id="declared, escaped"),
        pytest.param("access_token=x", 400, id="a token in the query"),
    ],
)
def test_query(ask, query, status):
    assert ask("/v1/who", "member", query_string=query).status_code == status


def test_token_in_the_query_is_an_invalid_request(ask):
    assert 'error="invalid_request"' in ask("/v1/who", query_string="access_token=x").headers["WWW-Authenticate"]


def test_limit_per_principal_and_its_headers(ask):
    answers = [ask("/v1/list", "partner") for _ in range(5)]
    assert [a.status_code for a in answers] == [200, 200, 200, 429, 429]
    assert all("RateLimit" in a.headers and "RateLimit-Policy" in a.headers for a in answers)
    assert int(answers[3].headers["Retry-After"]) >= 1
    assert ask("/v1/list", "partner", claims={"sub": "another"}).status_code == 200


def test_limit_per_address_comes_before_routing_and_identity(ask):
    statuses = [ask("/v1/nothing").status_code for _ in range(60)]
    assert statuses[:50] == [404] * 50
    assert 429 in statuses[50:]


@pytest.mark.parametrize(
    ("path", "origin", "allowed"),
    [
        pytest.param("/v1/members/m1/notes", "https://app.test", True, id="the audience's origin"),
        pytest.param("/v1/members/m1/notes", "https://staff.test", False, id="another audience's"),
        pytest.param("/v1/wards/w1/beds", "https://staff.test", True, id="staff"),
        pytest.param("/v1/list", "https://app.test", False, id="an audience without origins"),
    ],
)
def test_preflight(client, path, origin, allowed):
    answer = client.simulate_options(path, headers={"Origin": origin, "Access-Control-Request-Method": "GET"})
    assert answer.status_code == 204
    assert answer.headers.get("Access-Control-Allow-Origin") == (origin if allowed else None)
    if allowed:
        assert "GET" in answer.headers["Access-Control-Allow-Methods"]
        assert (answer.headers.get("Access-Control-Allow-Credentials") == "true") == ("staff" in origin)


OWN_RESOURCES = [
    ("/openapi/v1/openapi.json", "GET", ("https://app.test", "https://staff.test")),
    ("/me/access-log", "GET", ("https://app.test",)),
    ("/audit/v1/AuditEvent", "GET", ("https://staff.test",)),
    ("/audit/v1/AuditEvent/abc", "GET", ("https://staff.test",)),
    ("/access/v1/break-glass", "POST", ("https://staff.test",)),
    ("/access/v1/break-glass/abc", "DELETE", ("https://staff.test",)),
    ("/access/v1/break-glass/abc/review", "POST", ("https://staff.test",)),
]


@pytest.fixture
def readable(base):
    """A document in which every resource of the gateway's own is somebody's."""
    base["roles"]["nurse"]["permissions"].append("audit.read")
    base["audit"] = {"own_record": ["member"], "readers": {"nurse": {"sees": "all"}}}
    base["break_glass"] = {"roles": ["nurse"], "reviewers": {"ward_admin": {"sees": "all"}}}
    return base


@pytest.mark.parametrize("way", ["m", "l"])
@pytest.mark.parametrize(("path", "method", "origins"), OWN_RESOURCES, ids=lambda value: str(value)[-24:])
def test_own_resources_follow_the_origins_of_those_who_may_use_them(
    gateway_of, ways, readable, path, method, origins, way
):
    client = ways(gateway_of(readable))[way]
    for origin in ("https://app.test", "https://staff.test", "https://evil.test"):
        asked = {"Origin": origin, "Access-Control-Request-Method": method}
        answer = client.simulate_options(path, headers=asked)
        assert answer.status_code == 204
        assert answer.headers.get("Access-Control-Allow-Origin") == (origin if origin in origins else None)
        if origin in origins:
            assert method in answer.headers["Access-Control-Allow-Methods"].split(", ")
            assert "authorization" in answer.headers["Access-Control-Allow-Headers"]
            credentials = "true" if origin == "https://staff.test" else None
            assert answer.headers.get("Access-Control-Allow-Credentials") == credentials
        made = client.simulate_request(method, path, headers={"Origin": origin})
        assert made.status_code == 401, "its page may read why"
        assert made.headers.get("Access-Control-Allow-Origin") == (origin if origin in origins else None)
        assert "Origin" in made.headers["Vary"]


def test_a_method_that_an_own_resource_has_not_is_not_allowed(gateway_of, ways, readable):
    asked = {"Origin": "https://app.test", "Access-Control-Request-Method": "DELETE"}
    answer = ways(gateway_of(readable))["m"].simulate_options("/me/access-log", headers=asked)
    assert (answer.status_code, answer.headers.get("Access-Control-Allow-Origin")) == (204, None)


@pytest.mark.parametrize("path", ["/me/access-log", "/audit/v1/AuditEvent", "/access/v1/break-glass", "/access/v1/x"])
def test_own_resources_that_are_nobody_s_are_not_there(client, path):
    asked = {"Origin": "https://app.test", "Access-Control-Request-Method": "GET"}
    answer = client.simulate_options(path, headers=asked)
    assert (answer.status_code, answer.headers.get("Access-Control-Allow-Origin")) == (404, None)


def test_preflight_of_what_is_not_there(client):
    fields = {"Origin": "https://app.test", "Access-Control-Request-Method": "GET"}
    assert client.simulate_options("/v1/nothing", headers=fields).status_code == 404
    assert client.simulate_options("/v1/secret", headers=fields).status_code == 404


def test_answers_may_be_read_by_the_audiences_pages(ask):
    answer = ask("/v1/who", "member", headers={"Origin": "https://app.test"})
    assert answer.headers["Access-Control-Allow-Origin"] == "https://app.test"
    assert "Origin" in answer.headers["Vary"]
    refused = ask("/v1/who", headers={"Origin": "https://app.test"})
    assert refused.status_code == 401
    assert refused.headers["Access-Control-Allow-Origin"] == "https://app.test"


def test_phi_is_refused_while_it_cannot_be_audited(ask):
    answer = ask("/v1/record", "nurse")
    assert answer.status_code == 503
    assert answer.json["type"] == "urn:caregate:problem:audit-unavailable"
    assert answer.headers["Retry-After"]
    assert answer.headers["Cache-Control"] == "no-store"


def test_an_application_error_says_nothing(ask, monkeypatch):
    def fail(*_: object) -> None:
        raise RuntimeError("row 17 of patient Smith")

    monkeypatch.setattr("gateway.http.grant.decide", fail)
    answer = ask("/v1/who", "member")
    assert answer.status_code == 500
    assert answer.json["type"] == "urn:caregate:problem:internal"
    assert "Smith" not in answer.text


def test_unsigned_token(ask, client):
    now = int(time.time())
    claims = {"iss": "https://id.test/app", "aud": "app", "sub": "x", "iat": now, "exp": now + 60}
    unsigned = jwt.encode(claims, None, "none", {"kid": "member-1"})
    answer = client.simulate_get("/v1/who", headers={"Authorization": f"Bearer {unsigned}"})
    assert answer.status_code == 401


def test_books_of_a_streamed_answer_close_with_it(ask, gateway, monkeypatch):
    closed = []
    monkeypatch.setattr(gateway.accounting, "close", lambda ctx, status: closed.append((ctx.error, status)))

    def respond(self, req, resp):
        def pieces():
            yield b"one"
            assert closed == []
            yield b"two"

        resp.stream = pieces()

    monkeypatch.setattr("gateway.demo.resources.Ping.on_request", respond)
    monkeypatch.setattr(gateway.public._router._resources, "of", lambda route: endpoint(Ping()))
    assert ask("/v1/list", "partner").content == b"onetwo"
    assert closed == [(None, 200)]


def test_a_cut_answer_is_counted_as_what_cut_it(ask, gateway, monkeypatch):
    closed = []
    monkeypatch.setattr(gateway.accounting, "close", lambda ctx, status: closed.append((ctx.error, status)))

    def respond(self, req, resp):
        def pieces():
            yield b"one"
            raise UpstreamBroken()

        resp.stream = pieces()

    monkeypatch.setattr("gateway.demo.resources.Ping.on_request", respond)
    monkeypatch.setattr(gateway.public._router._resources, "of", lambda route: endpoint(Ping()))
    with pytest.raises(UpstreamBroken):
        ask("/v1/list", "partner")
    assert [(type(error), status) for error, status in closed] == [(UpstreamBroken, 200)]


@pytest.mark.parametrize(
    ("error", "intent", "code", "delivery"),
    [
        pytest.param(None, True, "audit-outcome-unavailable", "dispatched", id="it ran"),
        pytest.param(UnitResponseTimeout("u"), True, "audit-outcome-unavailable", "dispatched", id="it may have run"),
        pytest.param(UnitAcceptTimeout("u"), True, "audit-outcome-unavailable", "unknown", id="who knows"),
        pytest.param(UnitNotConnected("u"), True, "audit-unavailable", "not_dispatched", id="it did not run"),
        pytest.param(DatabaseTimeout(), True, "audit-outcome-unavailable", "unknown", id="the database may have"),
        pytest.param(RoleRefused(), False, "audit-unavailable", "not_dispatched", id="refused"),
    ],
)
def test_what_an_unrecorded_outcome_says_of_the_delivery(error, intent, code, delivery):
    ctx = RequestContext(id="x", started_ns=0, error=error, intent_recorded=intent)
    unrecorded = _unrecorded(ctx)
    assert (unrecorded.code, unrecorded.members["delivery"]) == (code, delivery)


PREFLIGHT = {"Access-Control-Request-Method": "GET"}
HIDDEN_PROBES = [
    pytest.param("member", "GET", {}, id="a token of another audience"),
    pytest.param("member", "GET", {"Origin": "https://app.test"}, id="... from a page"),
    pytest.param("member", "POST", {}, id="another method"),
    pytest.param(None, "OPTIONS", {"Origin": "https://app.test", **PREFLIGHT}, id="preflight"),
    pytest.param(
        None,
        "OPTIONS",
        {"Origin": "https://app.test", "Access-Control-Request-Method": "POST"},
        id="preflight, another method",
    ),
]


@pytest.mark.parametrize(("role", "method", "fields"), HIDDEN_PROBES)
def test_hidden_and_missing_have_the_same_fields(ask, role, method, fields):
    answers = [ask(path, role, method, headers=fields) for path in ("/v1/secret", "/v1/nothing")]
    assert [a.status_code for a in answers] == [404, 404]
    # Only the request's own figures differ.
    own = {"x-request-id", "ratelimit"}
    hidden, missing = [{k: v for k, v in a.headers.items() if k not in own} for a in answers]
    assert hidden == missing
    assert [a.headers["RateLimit"].count(";r=") for a in answers] == [1, 1]


def test_preflight_of_a_hidden_route_from_its_own_page(client):
    answer = client.simulate_options("/v1/secret", headers={"Origin": "https://staff.test", **PREFLIGHT})
    assert answer.status_code == 204
    assert answer.headers["Access-Control-Allow-Origin"] == "https://staff.test"


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        pytest.param({"Authorization": "Bearer x.y.z"}, 401, id="a bad token"),
        pytest.param({"Authorization": "Bearer a b"}, 401, id="not one word"),
        pytest.param({"Authorization": "Bearer a, Bearer b"}, 400, id="two tokens"),
    ],
)
def test_page_may_read_a_refusal_before_routing(client, fields, status):
    answer = client.simulate_get("/v1/who", headers={"Origin": "https://app.test", **fields})
    assert answer.status_code == status
    assert answer.headers["Access-Control-Allow-Origin"] == "https://app.test"


def test_page_may_read_the_refusal_of_an_address_limit(ask):
    answers = [ask("/v1/who", headers={"Origin": "https://app.test"}) for _ in range(55)]
    limited = next(a for a in answers if a.status_code == 429)
    assert limited.headers["Access-Control-Allow-Origin"] == "https://app.test"


@pytest.mark.parametrize(
    ("path", "fields", "query", "route", "rule"),
    [
        pytest.param("/v1/record", {"Authorization": "Bearer x.y.z"}, "", "record", "token:malformed", id="bad token"),
        pytest.param("/v1/record", {"Authorization": "Bearer a b"}, "", "record", "token:malformed", id="not one word"),
        pytest.param("/v1/who", {"Authorization": "Bearer a,b"}, "", "who", "token:ambiguous", id="two tokens"),
        pytest.param("/v1/who", {}, "access_token=x", "who", "token:ambiguous", id="in the query"),
        pytest.param("/v1/nothing", {"Authorization": "Bearer x.y.z"}, "", "", "token:malformed", id="no such route"),
        pytest.param("/v1/record", {}, "", "record", "token:missing", id="no token"),
    ],
)
def test_refusals_before_routing_are_recorded_with_their_route(
    gateway, client, monkeypatch, path, fields, query, route, rule
):
    waited, queued = [], []

    def keep(events):
        return lambda ctx, status: events.append(decode(Accesses("n").encode(ctx, status, 1, 1)))

    monkeypatch.setattr(gateway.audit, "record", keep(waited))
    monkeypatch.setattr(gateway.audit, "enqueue_finished", keep(queued))
    client.simulate_get(path, headers=fields, query_string=query)
    (event,) = waited + queued
    assert (event.route, event.rule, event.outcome) == (route, rule, "refused")
    assert bool(waited) == (route == "record"), "on a phi route the row is there before the answer"


class _Leaky(Ping):
    """Answers as a unit might: with fields that speak of its body."""

    def on_request(self, req, resp):
        resp.data = b"a record"
        for name in (
            "Location",
            "ETag",
            "Content-Encoding",
            "X-Patient",
            "Access-Control-Allow-Origin",
            "Relay-Source",
        ):
            resp.set_header(name, "of-the-unit")
        resp.append_header("Set-Cookie", "record=1")


def test_a_withheld_answer_leaves_none_of_its_fields(ask, gateway, monkeypatch):
    monkeypatch.setattr(gateway.public._router._resources, "of", lambda route: endpoint(_Leaky()))
    monkeypatch.setattr(gateway.audit, "record", unless_outcome)
    answer = ask("/v1/record", "nurse", headers={"Origin": "https://staff.test"})
    assert answer.json["type"] == "urn:caregate:problem:audit-outcome-unavailable"
    assert answer.headers["Relay-Source"] == "gateway"
    assert answer.headers["Access-Control-Allow-Origin"] == "https://staff.test"
    assert "of-the-unit" not in answer.headers.values()
    assert not answer.cookies


def test_what_cannot_be_recorded_has_the_fields_of_its_own_answer_alone(ask, gateway, monkeypatch):
    unrecorded = ask("/v1/record")
    assert unrecorded.status_code == 503
    assert "WWW-Authenticate" not in unrecorded.headers


def test_no_retry_is_invited_when_the_database_froze_under_a_request(ask, gateway, monkeypatch):
    def freeze(self, req, resp):
        raise DatabaseTimeout()

    monkeypatch.setattr("gateway.demo.resources.Ping.on_request", freeze)
    monkeypatch.setattr(gateway.public._router._resources, "of", lambda route: endpoint(Ping()))
    monkeypatch.setattr(gateway.audit, "record", unless_outcome)
    answer = ask("/v1/record", "nurse")
    assert answer.json["type"] == "urn:caregate:problem:audit-outcome-unavailable"
    assert "Retry-After" not in answer.headers


def unless_outcome(ctx, status):
    """An audit trail that was lost between the intent and the outcome."""
    if status:
        raise AuditUnavailable()


def test_without_room_in_the_trail_nothing_is_begun(ask, gateway, monkeypatch):
    monkeypatch.setattr("gateway.demo.resources.Ping.on_request", lambda *_: pytest.fail("it ran"))
    gateway.audit.become(ready=False)
    for path, role in (("/v1/list", "partner"), ("/v1/record", "nurse"), ("/v1/nothing", None)):
        answer = ask(path, role)
        assert (answer.status_code, answer.json["type"]) == (503, "urn:caregate:problem:audit-unavailable")
        assert answer.headers["Retry-After"] == "1"
    gateway.audit.become(ready=True)
    monkeypatch.undo()
    assert ask("/v1/list", "partner").status_code == 200


def test_an_answer_that_could_not_be_written_down_is_withheld(ask, gateway, monkeypatch):
    def full(ctx, status):
        raise AuditUnavailable()

    monkeypatch.setattr(gateway.audit, "enqueue_finished", full)
    answer = ask("/v1/list", "partner")
    assert (answer.status_code, answer.json["type"]) == (503, "urn:caregate:problem:audit-outcome-unavailable")
    assert answer.json["delivery"] == "dispatched"
    refused = ask("/v1/list", "nurse")
    assert (refused.status_code, refused.json["type"]) == (503, "urn:caregate:problem:audit-unavailable")


class _Streamed(Ping):
    def __init__(self, cut):
        self._cut = cut

    def on_request(self, req, resp):
        resp.stream = Body(self._pieces(), lambda: None)

    def _pieces(self):
        yield b"a"
        if self._cut:
            raise UpstreamBroken()
        yield b"b"


@pytest.mark.parametrize(
    ("resource", "method", "phi", "told"),
    [
        pytest.param(Ping(), "GET", True, [(200, True)], id="whole"),
        pytest.param(_Streamed(cut=False), "GET", True, [(200, True)], id="streamed"),
        pytest.param(_Streamed(cut=True), "GET", True, [(200, False)], id="cut"),
        pytest.param(Ping(), "GET", False, [], id="no phi"),
    ],
)
def test_the_end_of_the_transfer_is_recorded(ask, gateway, monkeypatch, resource, method, phi, told):
    events = []
    monkeypatch.setattr(gateway.public._router._resources, "of", lambda route: endpoint(resource))
    monkeypatch.setattr(gateway.audit, "record", lambda ctx, status: events.append(status))
    monkeypatch.setattr(gateway.audit, "completed", lambda ctx, status, whole: events.append((status, whole)))
    with contextlib.suppress(UpstreamBroken):
        ask("/v1/record" if phi else "/v1/list", "nurse" if phi else "partner", method)
    assert events == ([0, 200] if phi else []) + told


@pytest.mark.parametrize(
    ("field", "trace"),
    [
        ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "0af7651916cd43dd8448eb211c80319c"),
        ("cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-what", "0af7651916cd43dd8448eb211c80319c"),
        ("ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", ""),
        ("00-00000000000000000000000000000000-b7ad6b7169203331-01", ""),
        ("00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01", ""),
        ('"}', ""),
    ],
    ids=["good", "later version", "ff", "zeros", "upper case", "quote"],
)
def test_trace_id(field, trace):
    found = parse_traceparent(field)
    assert (found.trace_id if found is not None else "") == trace


@pytest.mark.parametrize("origin", ["https://elsewhere.test", None])
def test_only_the_audience_says_who_may_read(ask, gateway, monkeypatch, origin):
    monkeypatch.setattr(gateway.public._router._resources, "of", lambda route: endpoint(_Leaky()))
    answer = ask("/v1/list", "partner", headers={"Origin": origin} if origin else {})
    assert answer.status_code == 200
    assert "Access-Control-Allow-Origin" not in answer.headers


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        pytest.param(falcon.HTTPConflict(description="Smith"), 409, "conflict", id="409"),
        pytest.param(falcon.HTTPNotFound(), 404, "not-found", id="404"),
        pytest.param(falcon.HTTPMissingHeader("Smith"), 400, "bad-request", id="400"),
        pytest.param(falcon.HTTPUnsupportedMediaType(description="Smith"), 400, "bad-request", id="no class of ours"),
        pytest.param(falcon.HTTPInternalServerError(description="Smith"), 500, "internal", id="500"),
    ],
)
def test_errors_of_a_falcon_resource(ask, gateway, monkeypatch, error, status, code):
    def refuse(self, req, resp):
        raise error

    monkeypatch.setattr("gateway.demo.resources.Ping.on_request", refuse)
    monkeypatch.setattr(gateway.public._router._resources, "of", lambda route: endpoint(Ping()))
    answer = ask("/v1/list", "partner")
    assert (answer.status_code, answer.json["type"]) == (status, f"urn:caregate:problem:{code}")
    assert "Smith" not in answer.text


@pytest.mark.parametrize(
    ("kind", "status"), [(RouteKind.UNIT, 501), (RouteKind.UPSTREAM, 501), (RouteKind.RESOURCE, 200)]
)
def test_upgrade_of_a_forwarded_route(ask, gateway, monkeypatch, kind, status):
    monkeypatch.setattr(gateway.public._router._resources, "of", lambda route: endpoint(Ping()))
    route = gateway.holder.current.controllers["list"]
    object.__setattr__(route, "kind", kind)
    answer = ask("/v1/list", "partner", headers={"Connection": "Upgrade", "Upgrade": "websocket"})
    assert answer.status_code == status

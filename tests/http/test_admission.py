"""Rate limits through a real Falcon application, with a clock that only the test moves."""

from __future__ import annotations

import mmap
from types import SimpleNamespace

import falcon
import falcon.testing
import pytest

from fastpath.bucket import BucketTable, segment_bytes
from fastpath.routes import RouteTable
from gateway.context import Principal, RequestContext
from gateway.errors import RateLimited
from gateway.http.admission import Admission, address_block
from gateway.routing.kinds import ResourceTable
from gateway.routing.model import FunctionAction, Limit, LimitKey, Route, RouteKind, UnitAction
from gateway.routing.router import Router

S = 1_000_000_000


def limit(name: str, per: str, burst: int, interval_s: int = 10) -> Limit:
    return Limit(name, LimitKey(per), interval_s * S, burst, interval_s * burst)


def route(name: str, template: str, *limits: Limit, action=None) -> Route:
    kind = RouteKind.UNIT if action else RouteKind.FUNCTION
    action = action or FunctionAction("portal.f", (), 200)
    return Route(
        name,
        template,
        ("GET",),
        kind,
        action,
        frozenset({"staff"}),
        frozenset({"clerk", "doctor", "patient"}),
        None,
        limits=limits,
    )


def role(*limits: Limit) -> SimpleNamespace:
    return SimpleNamespace(limits=limits)


class MakeContext:
    """Stands for accounting and identity: X-Who is `role subject` of the staff audience."""

    def __init__(self, gateway: Harness) -> None:
        self.gateway = gateway

    def process_request(self, req: falcon.Request, resp: falcon.Response) -> None:
        ctx = RequestContext(id="r", started_ns=0, method=req.method, path=req.path, snapshot=self.gateway.snapshot)
        ctx.client_address = req.get_header("X-Address") or "192.0.2.1"
        req.context.gateway = self.gateway.ctx = ctx

    def process_response(self, req: falcon.Request, resp: falcon.Response, resource: object, ok: bool) -> None:
        resp.set_headers(list(req.context.gateway.limit_headers))


class MakePrincipal:
    def process_request(self, req: falcon.Request, resp: falcon.Response) -> None:
        who = req.get_header("X-Who")
        if who:
            name, subject, *issuer = who.split()
            audience = "patients" if name == "patient" else "staff"
            req.context.gateway.principal = Principal(
                subject, issuer[0] if issuer else "id", audience, name, frozenset(), "", "", 1.0, {}
            )


class Answer:
    def on_request(self, req: falcon.Request, resp: falcon.Response) -> None:
        resp.text = "ok"


class Harness:
    """A gateway of routes, roles and address limits; `now_ns` is its clock."""

    def __init__(self, routes=(), roles=None, address=()) -> None:
        self.now_ns = 1_000 * S
        self.table = BucketTable(mmap.mmap(-1, segment_bytes(100)), 100, b"0123456789abcdef", create=True)
        self.configure(routes, roles, address)
        self.ctx: RequestContext | None = None
        self.admission = Admission(self.table, lambda: self.now_ns)
        router = Router(SimpleNamespace(current=None), ResourceTable(function=Answer(), unit=Answer()))
        app = falcon.App(router=router, middleware=[MakeContext(self), self.admission, MakePrincipal()])
        app.add_error_handler(RateLimited, self.answer)
        app.add_error_handler(Exception, self.other)
        self.client = falcon.testing.TestClient(app)

    def configure(self, routes=(), roles=None, address=()) -> None:
        table = RouteTable([("GET", r.template, r) for r in routes])
        self.snapshot = SimpleNamespace(routes=table, roles=roles or {}, address_limits=address)

    def answer(self, req, resp, error: RateLimited, params) -> None:
        resp.status = 429
        resp.set_header("Retry-After", str(error.retry_after_s))
        resp.set_headers(list(error.headers))

    def other(self, req, resp, error: Exception, params) -> None:
        resp.status = 404

    def get(self, path: str = "/a", who: str | None = "clerk ann", address: str = "192.0.2.1") -> falcon.testing.Result:
        headers = {"X-Address": address} | ({"X-Who": who} if who else {})
        return self.client.simulate_get(path, headers=headers)

    def statuses(self, *calls: dict[str, str]) -> list[int]:
        return [self.get(**call).status_code for call in calls]


# --- what the answer says


def test_every_answer_of_a_limited_route_says_what_is_left() -> None:
    gateway = Harness([route("a", "/a", limit("slow", "principal", 3))])
    seen = [gateway.get() for _ in range(4)]
    assert [r.status_code for r in seen] == [200, 200, 200, 429]
    assert [r.headers["RateLimit"] for r in seen] == [
        '"slow";r=2;t=10', '"slow";r=1;t=20', '"slow";r=0;t=30', '"slow";r=0;t=10',
    ]  # fmt: skip
    assert {r.headers["RateLimit-Policy"] for r in seen} == {'"slow";q=3;w=30'}
    assert [r.headers.get("Retry-After") for r in seen] == [None, None, None, "10"]
    assert gateway.ctx.rule == "limit:slow"


def test_all_policies_are_listed_in_the_order_they_are_taken() -> None:
    roles = {"clerk": role(limit("of-role", "role", 9))}
    limits = [limit("of-route", "route", 5), limit("of-caller", "principal", 7)]
    gateway = Harness([route("a", "/a", *limits)], roles, [limit("of-address", "address", 20)])
    answer = gateway.get()
    assert answer.headers["RateLimit"] == (
        '"of-address";r=19;t=10, "of-role";r=8;t=10, "of-route";r=4;t=10, "of-caller";r=6;t=10'
    )
    assert answer.headers["RateLimit-Policy"] == (
        '"of-address";q=20;w=200, "of-role";q=9;w=90, "of-route";q=5;w=50, "of-caller";q=7;w=70'
    )


WAITS = [
    ("a whole second", 0, "10"),
    ("rounded up", 1, "10"),
    ("less than a second", 10 * S - 1, "1"),
    ("half", 5 * S, "5"),
]


@pytest.mark.parametrize(("passed_ns", "retry_after"), [c[1:] for c in WAITS], ids=[c[0] for c in WAITS])
def test_retry_after_is_whole_seconds_of_which_the_last_is_over(passed_ns, retry_after) -> None:
    gateway = Harness([route("a", "/a", limit("slow", "principal", 1))])
    gateway.get()
    gateway.now_ns += passed_ns
    refused = gateway.get()
    assert (refused.status_code, refused.headers["Retry-After"]) == (429, retry_after)
    gateway.now_ns += int(retry_after) * S
    assert gateway.get().status_code == 200


def test_an_unlimited_route_says_nothing() -> None:
    gateway = Harness([route("a", "/a")])
    assert not {"ratelimit", "ratelimit-policy"} & set(gateway.get().headers)


def test_an_unknown_path_says_what_the_address_has_left() -> None:
    gateway = Harness(address=[limit("all", "address", 2)])
    seen = [gateway.get("/nothing") for _ in range(3)]
    assert [r.status_code for r in seen] == [404, 404, 429]
    assert [r.headers["RateLimit"] for r in seen] == ['"all";r=1;t=10', '"all";r=0;t=20', '"all";r=0;t=10']


# --- whose bucket it is

ONE = {"path": "/a", "who": "clerk ann", "address": "192.0.2.1"}
WHOSE = [
    ("address, another", "address", {"address": "192.0.2.2"}, 200),
    ("address, another caller", "address", {"who": "clerk bob"}, 429),
    ("address, same /64", "address", {"address": "2001:db8::1"}, 200),
    ("principal, another", "principal", {"who": "clerk bob"}, 200),
    ("principal, same subject of another issuer", "principal", {"who": "clerk ann other"}, 200),
    ("principal, another role of the same", "principal", {"who": "doctor ann"}, 429),
    ("principal, another route", "principal", {"path": "/b"}, 429),
    ("principal, another address", "principal", {"address": "192.0.2.2"}, 429),
    ("role, another", "role", {"who": "doctor ann"}, 200),
    ("role, another caller", "role", {"who": "clerk bob"}, 429),
    ("route, another", "route", {"path": "/b"}, 200),
    ("route, another caller", "route", {"who": "doctor bob", "address": "192.0.2.2"}, 429),
]


@pytest.mark.parametrize(("per", "change", "status"), [c[1:] for c in WHOSE], ids=[c[0] for c in WHOSE])
def test_whose_bucket(per, change, status) -> None:
    shared = limit("one", per, 1)
    gateway = Harness([route("a", "/a", shared), route("b", "/b", shared)])
    assert gateway.statuses(ONE, ONE, ONE | change) == [200, 429, status]


UNITS = [
    ("param", UnitAction(None, "unit", None, False), [200, 429, 200]),
    ("fixed", UnitAction("u", None, None, False), [200, 429, 429]),
]


@pytest.mark.parametrize(("action", "statuses"), [c[1:] for c in UNITS], ids=[c[0] for c in UNITS])
def test_per_unit(action, statuses) -> None:
    gateway = Harness([route("a", "/units/{unit}/x", limit("one", "unit", 1), action=action)])
    assert gateway.statuses(*[{"path": f"/units/{unit}/x"} for unit in ("u1", "u1", "u2")]) == statuses


BLOCKS = [
    ("192.0.2.1", "192.0.2.2", False),
    ("192.0.2.1", "::ffff:192.0.2.1", True),
    ("192.0.2.1", "::ffff:c000:201", True),
    ("2001:db8:0:1::1", "2001:db8:0:1:ffff::9", True),
    ("2001:DB8:0:1::1", "2001:db8:0:1::1", True),
    ("2001:db8:0:1::1", "2001:db8:0:2::1", False),
    ("fe80::1%eth0", "fe80::2%eth1", True),
    ("", "unix", False),
]


@pytest.mark.parametrize(("one", "other", "same"), BLOCKS, ids=[f"{c[0]} {c[1]}" for c in BLOCKS])
def test_address_block(one, other, same) -> None:
    assert (address_block(one) == address_block(other)) is same


def test_one_limit_named_twice_is_taken_once() -> None:
    both = limit("one", "principal", 2)
    gateway = Harness([route("a", "/a", both)], {"clerk": role(both)})
    assert gateway.statuses(ONE, ONE, ONE) == [200, 200, 429]
    gateway = Harness([route("a", "/a", limit("one", "address", 2))], address=[limit("one", "address", 2)])
    assert gateway.statuses(ONE, ONE, ONE) == [200, 200, 429]


# --- what a refusal gives back


def test_a_refusal_gives_back_what_was_taken_before() -> None:
    own, shared = limit("own", "principal", 1), limit("shared", "route", 3)
    gateway = Harness([route("a", "/a", shared, own)], address=[limit("address", "address", 4)])
    assert gateway.statuses(*[{"who": "clerk ann"}] * 6) == [200] + [429] * 5
    refused = gateway.get()
    assert refused.headers["RateLimit"] == '"address";r=3;t=10, "shared";r=2;t=10, "own";r=0;t=10'
    assert gateway.ctx.limits_taken == []
    assert gateway.statuses({"who": "clerk bob"}, {"who": "clerk eve"}, {"who": "clerk joe"}) == [200, 200, 429]
    assert gateway.get("/nothing", who=None).status_code == 404, "four of the address: ann, bob, eve and this"
    assert gateway.get("/nothing", who=None).status_code == 429


def test_refused_requests_never_free_a_token() -> None:
    gateway = Harness([route("a", "/a", limit("shared", "route", 2), limit("own", "principal", 1))])
    calls = [{"who": f"clerk {name}"} for name in ("ann", "ann", "ann", "bob", "bob", "eve", "joe")]
    assert gateway.statuses(*calls) == [200, 429, 429, 200, 429, 429, 429]


# --- who takes from what

SHARED = [
    ("no token", None, 5),
    ("role the route does not name", "nurse joe", 5),
    ("another audience", "patient pat", 5),
    ("its own caller", "clerk bob", 2),
]


@pytest.mark.parametrize("per", ["route", "unit"])
@pytest.mark.parametrize(("who", "left"), [c[1:] for c in SHARED], ids=[c[0] for c in SHARED])
def test_who_is_refused_anyway_does_not_empty_a_shared_bucket(per, who, left) -> None:
    action = UnitAction("u", None, None, False) if per == "unit" else None
    gateway = Harness([route("a", "/a", limit("shared", per, 5), action=action)])
    for _ in range(3):
        assert gateway.get(who=who).status_code == 200, "authorization is not part of this application"
    assert gateway.get(who="clerk ann").headers["RateLimit"].startswith(f'"shared";r={left - 1};')


def test_who_is_refused_anyway_still_takes_from_his_own() -> None:
    gateway = Harness([route("a", "/a", limit("own", "principal", 1), limit("address", "address", 2))])
    assert gateway.statuses({"who": "nurse joe"}, {"who": "nurse joe"}) == [200, 429]
    assert gateway.statuses({"who": None}, {"who": None}) == [200, 429]


# --- reload


def test_a_reload_keeps_the_buckets_of_rules_that_stayed() -> None:
    gateway = Harness([route("a", "/a", limit("one", "principal", 1))])
    assert gateway.statuses(ONE) == [200]
    gateway.configure([route("a", "/a", limit("one", "principal", 1))])
    assert gateway.statuses(ONE) == [429]


CHANGES = [
    ("burst", limit("one", "principal", 2)),
    ("rate", limit("one", "principal", 1, 11)),
    ("name", limit("two", "principal", 1)),
    ("whose", limit("one", "role", 1)),
]


@pytest.mark.parametrize("changed", [c[1] for c in CHANGES], ids=[c[0] for c in CHANGES])
def test_a_changed_rule_starts_its_own_buckets(changed) -> None:
    gateway = Harness([route("a", "/a", limit("one", "principal", 1))])
    assert gateway.statuses(ONE) == [200]
    gateway.configure([route("a", "/a", changed)])
    assert gateway.statuses(ONE) == [200]


def test_a_role_and_a_route_of_one_name_have_two_buckets() -> None:
    gateway = Harness([route("clerk", "/a", limit("one", "role", 1))])
    assert gateway.statuses(ONE, ONE) == [200, 429]
    gateway.configure([route("clerk", "/a", limit("one", "route", 1))])
    assert gateway.statuses(ONE, ONE) == [200, 429]


def test_rules_seen_are_bounded() -> None:
    gateway = Harness()
    for number in range(5000):
        gateway.configure([route("a", "/a", limit(f"n{number}", "principal", 1))])
        gateway.admission._rule(gateway.snapshot.routes.match("GET", "/a")[0].limits[0])
    assert len(gateway.admission._rules) <= 4096

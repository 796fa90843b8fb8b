"""The way out against a real socket: what is sent, what comes back, what is repeated, what fails how."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import falcon
import falcon.testing
import gevent
import pytest

from fastpath.routes import RouteTable
from gateway import errors
from gateway.config.model import Upstream
from gateway.context import RequestContext
from gateway.http.problems import row_of
from gateway.http1.body import Body
from gateway.routing.model import Route, RouteKind, UpstreamAction
from gateway.upstream.pool import Pools
from gateway.upstream.resource import UpstreamResource

OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"
HELLO = OK + b"Content-Length: 5\r\n\r\nhello"
Fake = Callable[[Callable[[Any], None]], Any]


class Gateway:
    """A Falcon application with one route to one upstream."""

    def __init__(self, *endpoints: str, route: dict[str, Any] | None = None, **options: int) -> None:
        self.upstream = Upstream(endpoints=endpoints, **options)
        self.pools = Pools()
        self.outcomes: list[str] = []
        self.raised: list[errors.GatewayError] = []
        self.gone: Callable[[], None] | None = None
        self.body: dict[str, Any] = {}
        options_of_route = {"action": UpstreamAction("u", None), **(route or {})}
        self.route = Route(
            "r", "/{rest:path}", ("GET",), RouteKind.UPSTREAM, audiences=frozenset(), roles=frozenset(),
            permission=None, **options_of_route,
        )  # fmt: skip
        resource = UpstreamResource(self.pools, lambda name, outcome: self.outcomes.append(outcome))
        app: Any = falcon.App(middleware=[self])
        app.add_sink(lambda req, resp: resource.on_request(req, resp), "/")
        app.add_error_handler(errors.GatewayError, self._on_error)
        self.client = falcon.testing.TestClient(app)

    def process_request(self, req: Any, resp: Any) -> None:
        ctx = RequestContext("the-id", time.monotonic_ns(), method=req.method, path=req.path, query=req.query_string)
        ctx.client_address = "192.0.2.9"
        ctx.route = self.route
        ctx.snapshot = SimpleNamespace(upstreams={"u": self.upstream}, routes=RouteTable(()), controllers={})
        req.context.gateway = ctx
        req.env["caregate.watch"] = self._watch
        req.env.update(self.body)

    def _watch(self, gone: Callable[[], None] | None) -> None:
        self.gone = gone

    def _on_error(self, req: Any, resp: Any, error: errors.GatewayError, params: Any) -> None:
        self.raised.append(error)
        resp.status = row_of(error).status

    def call(self, method: str = "GET", path: str = "/a", sends: dict[str, Any] | None = None, **more: Any) -> Any:
        self.body = sends or {}
        return self.client.simulate_request(method, path, **more)


def answering(*answers: bytes, keep: list[Any] | None = None) -> Callable[[Any], None]:
    """A script: one answer for each request of a connection; then it waits for the end."""

    def script(peer: Any) -> None:
        for answer in answers:
            request = peer.request()
            if keep is not None:
                keep.append(request)
            peer.say(answer)
        peer.wait_for_end()

    return script


WORDS_OF_A_PROXY = {
    "X-Forwarded-User": "admin", "X-Forwarded-Prefix": "/other", "X-Original-URL": "/admin", "X-Rewrite-URL": "/admin",
    "True-Client-IP": "203.0.113.1",
}  # fmt: skip


class TestSending:
    def test_the_head(self, fake: Fake) -> None:
        seen: list[Any] = []
        upstream = fake(answering(HELLO, keep=seen))
        headers = {
            "Authorization": "Bearer secret", "X-Caregate-Context": "forged", "X-Caregate-Unit": "forged", "X-A": "b",
            "X-Forwarded-For": "203.0.113.1", "Forwarded": "for=203.0.113.1", "X-Request-Id": "forged",
            "TE": "trailers", "Connection": "close, x-hop", "X-Hop": "1", "Keep-Alive": "5", "Accept": "text/plain",
            "Expect": "100-continue",
            "X-Forwarded-Host": "evil", "X-Real-Ip": "203.0.113.1", "Proxy-Authorization": "x", "Host": "gw.example",
            **WORDS_OF_A_PROXY,
        }  # fmt: skip
        Gateway(upstream.url).call(path="/a/b", query_string="q=%20", headers=headers)
        line, fields, body = seen[0]
        assert line == "GET /a/b?q=%20 HTTP/1.1"
        assert fields == {
            "host": upstream.url.removeprefix("http://"), "x-request-id": "the-id", "x-forwarded-proto": "http",
            "forwarded": "for=192.0.2.9;proto=http", "x-forwarded-for": "192.0.2.9", "x-a": "b", "accept": "text/plain",
            "user-agent": fields["user-agent"],
        }  # fmt: skip
        assert body == b""

    def test_the_target_of_the_route(self, fake: Fake) -> None:
        seen: list[Any] = []
        upstream = fake(answering(HELLO, keep=seen))
        Gateway(upstream.url, route={"action": UpstreamAction("u", "/v2/{rest}")}).call(path="/x/y")
        assert seen[0][0] == "GET /v2/x/y HTTP/1.1"

    @pytest.mark.parametrize("field", ["X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override"])
    def test_another_method_is_not_asked_for(self, fake: Fake, field: str) -> None:
        seen: list[Any] = []
        upstream = fake(answering(HELLO, keep=seen))
        gateway = Gateway(upstream.url)
        gateway.call("POST", headers={field: "DELETE"})
        assert [type(error) for error in gateway.raised] == [errors.BadRequest]
        assert not seen
        gateway.call("POST", headers={field: "post"})
        assert seen[0][0].startswith("POST ")

    @pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunks"])
    @pytest.mark.parametrize("method", ["GET", "HEAD"])
    def test_content_that_means_nothing(self, fake: Fake, method: str, chunked: bool) -> None:
        """A server that does not read it would take it for the next request."""
        seen: list[Any] = []
        upstream = fake(answering(HELLO, keep=seen))
        gateway = Gateway(upstream.url)
        gateway.call(method, sends=with_body(b"GET /admin HTTP/1.1\r\nHost: x\r\n\r\n", chunked=chunked))
        assert [type(error) for error in gateway.raised] == [errors.BadRequest]
        assert not seen

    def test_a_short_body(self, fake: Fake) -> None:
        seen: list[Any] = []
        upstream = fake(answering(HELLO, keep=seen))
        Gateway(upstream.url).call("POST", headers={"Content-Type": "text/x"}, sends=with_body(b"payload"))
        assert seen[0][1]["content-type"] == "text/x"
        assert seen[0][1]["content-length"] == "7"
        assert seen[0][2] == b"payload"

    @pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunks"])
    def test_a_long_body_is_streamed(self, fake: Fake, chunked: bool) -> None:
        seen: list[Any] = []
        upstream = fake(answering(HELLO, keep=seen))
        body = bytes(range(256)) * 4000
        got = Gateway(upstream.url).call("PUT", sends=with_body(body, chunked=chunked))
        assert got.status_code == 200
        assert seen[0][2] == body
        assert ("transfer-encoding" in seen[0][1]) is chunked

    def test_a_body_over_the_routes_limit_is_not_sent(self, fake: Fake) -> None:
        seen: list[Any] = []
        gateway = Gateway(fake(answering(HELLO, keep=seen)).url, route={"body_max_bytes": 3})
        assert gateway.call("POST", sends=with_body(b"four")).status_code == 413
        assert seen == []


class Bytes:
    """A body source that gives its bytes in pieces."""

    def __init__(self, raw: bytes) -> None:
        self.raw = raw

    def receive_body(self, received_bytes: int, deadline_ns: int) -> bytes:
        piece, self.raw = self.raw[:10_000], self.raw[10_000:]
        if not piece:
            raise errors.BadFraming()
        return piece


def with_body(body: bytes, *, chunked: bool = False) -> dict[str, Any]:
    framed = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if chunked else body
    return {
        "wsgi.input": Body(Bytes(framed), -1 if chunked else len(body), b""),
        "caregate.content_length": None if chunked else len(body),
    }


class TestAnswers:
    def test_fields_and_body(self, fake: Fake) -> None:
        raw = (
            b"HTTP/1.1 404 Not Found\r\nContent-Type: a/b\r\nConnection: x-hop\r\nX-Hop: 1\r\nX-Request-Id: theirs\r\n"
            b"Set-Cookie: a=1\r\nSet-Cookie: b=2\r\nKeep-Alive: 5\r\nETag: e\r\nRelay-Source: unit\r\n"
            b"Content-Length: 4\r\n\r\nnope"
        )
        got = Gateway(fake(answering(raw)).url).call()
        assert (got.status_code, got.content) == (404, b"nope")
        names = {name.lower() for name in got.headers}
        assert names == {"content-type", "set-cookie", "etag", "relay-source", "content-length"}
        assert got.headers["relay-source"] == "upstream"
        assert {name: cookie.value for name, cookie in got.cookies.items()} == {"a": "1", "b": "2"}

    @pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 65_537, 1_000_000])
    @pytest.mark.parametrize("framing", ["length", "chunks", "close"])
    def test_sizes(self, fake: Fake, size: int, framing: str) -> None:
        body = b"a" * size

        def script(peer: Any) -> None:
            peer.request()
            if framing == "length":
                peer.say(OK + b"Content-Length: %d\r\n\r\n" % size + body)
            elif framing == "close":
                peer.say(OK + b"\r\n" + body)
                return
            else:
                peer.say(OK + b"Transfer-Encoding: chunked\r\n\r\n")
                for at in range(0, size, 50_000):
                    piece = body[at : at + 50_000]
                    peer.say(b"%x\r\n%b\r\n" % (len(piece), piece))
                peer.say(b"0\r\n\r\n")
            peer.wait_for_end()

        got = Gateway(fake(script).url).call()
        assert (got.status_code, got.content) == (200, body)

    def test_head(self, fake: Fake) -> None:
        got = Gateway(fake(answering(OK + b"Content-Length: 5\r\n\r\n")).url).call("HEAD")
        assert (got.content, got.headers["content-length"]) == (b"", "5")

    def test_the_upstreams_own_address_is_told_by_the_gateways_path(self, fake: Fake) -> None:
        def script(peer: Any) -> None:
            host = peer.request()[1]["host"]
            places = f"Location: http://{host}/v2/a/7?x=1\r\nContent-Location: http://elsewhere/v2/a/7\r\n"
            peer.say(b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n" + places.encode() + b"\r\n")

        upstream = fake(script)
        answer = Gateway(upstream.url, route={"action": UpstreamAction("u", "/v2/{rest}")}).call("POST", "/a")
        assert answer.headers["location"] == "/a/7?x=1"
        assert answer.headers["content-location"] == "http://elsewhere/v2/a/7"

    def test_no_content_type_stays_neutral(self, fake: Fake) -> None:
        got = Gateway(fake(answering(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na")).url).call()
        assert got.headers["content-type"] == "application/octet-stream"


class TestReuse:
    def test_a_connection_is_kept(self, fake: Fake) -> None:
        upstream = fake(answering(HELLO, HELLO, HELLO))
        gateway = Gateway(upstream.url)
        assert [gateway.call().content for _ in range(3)] == [b"hello"] * 3
        assert upstream.connections == 1

    def test_a_connection_closed_while_idle_is_noticed_before_sending(self, fake: Fake) -> None:
        def script(peer: Any) -> None:
            peer.request()
            peer.say(HELLO)

        upstream = fake(script)
        gateway = Gateway(upstream.url)
        for _ in range(5):
            assert gateway.call("POST").content == b"hello"
            (connection,) = gateway.pools._pools["u"].endpoints[0].idle
            deadline = time.monotonic() + 5
            while connection.alive():
                assert time.monotonic() < deadline
        assert upstream.connections == 5
        assert gateway.outcomes == ["answered"] * 5

    def test_a_connection_that_spoke_unasked_is_not_used(self, fake: Fake) -> None:
        upstream = fake(answering(HELLO + b"HTTP/1.1 200 OK\r\n", HELLO))
        gateway = Gateway(upstream.url)
        assert [gateway.call().content for _ in range(2)] == [b"hello"] * 2
        assert upstream.connections == 2

    def test_connection_close_is_heeded(self, fake: Fake) -> None:
        upstream = fake(answering(OK + b"Connection: close\r\nContent-Length: 0\r\n\r\n"))
        gateway = Gateway(upstream.url)
        gateway.call()
        gateway.call()
        assert upstream.connections == 2

    def test_an_idle_connection_has_its_time(self, fake: Fake) -> None:
        upstream = fake(answering(HELLO, HELLO))
        gateway = Gateway(upstream.url, idle_timeout_ms=1)
        gateway.call()
        gevent.sleep(0.005)
        gateway.call()
        assert upstream.connections == 2

    def test_a_changed_configuration_gets_its_own_pool(self, fake: Fake) -> None:
        first, second = fake(answering(HELLO, HELLO)), fake(answering(HELLO))
        gateway = Gateway(first.url)
        gateway.call()
        gateway.upstream = Upstream(endpoints=(second.url,))
        gateway.call()
        assert (first.connections, second.connections) == (1, 1)


class TestRepeats:
    @pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
    def test_a_read_is_repeated_if_nothing_came_back(self, fake: Fake, method: str) -> None:
        def script(peer: Any) -> None:
            peer.request()
            if peer.number > 1:
                peer.say(OK + b"Content-Length: 0\r\n\r\n")

        upstream = fake(script)
        assert Gateway(upstream.url).call(method).status_code == 200
        assert upstream.connections == 2

    @pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
    def test_a_write_is_not(self, fake: Fake, method: str) -> None:
        def script(peer: Any) -> None:
            peer.request()

        upstream = fake(script)
        gateway = Gateway(upstream.url)
        assert gateway.call(method).status_code == 502
        assert upstream.connections == 1
        assert gateway.outcomes == ["upstream-broken"]

    def test_a_read_is_not_repeated_once_a_byte_came_back(self, fake: Fake) -> None:
        def script(peer: Any) -> None:
            peer.request()
            peer.say(b"H")

        upstream = fake(script)
        assert Gateway(upstream.url).call().status_code == 502
        assert upstream.connections == 1

    def test_only_one_repeat(self, fake: Fake) -> None:
        upstream = fake(lambda peer: peer.request())
        assert Gateway(upstream.url).call().status_code == 502
        assert upstream.connections == 2

    def test_a_refused_connection_sends_any_method_to_the_next_endpoint(self, fake: Fake, refusing: str) -> None:
        upstream = fake(answering(*[HELLO] * 20))
        gateway = Gateway(refusing, upstream.url)
        assert [gateway.call("POST").status_code for _ in range(10)] == [200] * 10

    def test_the_budget_ends_repeats(self, fake: Fake) -> None:
        def script(peer: Any) -> None:
            peer.request()

        upstream = fake(script)
        gateway = Gateway(upstream.url)
        pool = gateway.pools.pool("u", gateway.upstream)
        for _ in range(30):
            pool.breaker.succeeded()
            gateway.call()
        assert 30 + 3 <= upstream.connections <= 30 + 3 + 30 * 0.2


class TestFailures:
    @pytest.mark.parametrize(
        ("script", "status", "code"),
        [
            pytest.param(lambda peer: peer.say(b"garbage\r\n\r\n"), 502, "upstream-broken", id="garbage"),
            pytest.param(lambda peer: (peer.request(), peer.reset()), 502, "upstream-broken", id="reset"),
            pytest.param(
                lambda peer: (peer.request(), peer.say(OK + b"Content-Length: 9\r\n\r\nhello")), 502, "upstream-broken",
                id="cut short",
            ),
            pytest.param(lambda peer: (peer.request(), peer.wait_for_end()), 504, "upstream-timeout", id="silent"),
            pytest.param(
                lambda peer: (peer.request(), peer.say(OK), peer.wait_for_end()), 504, "upstream-timeout",
                id="half a head",
            ),
        ],
    )  # fmt: skip
    def test_answers(self, fake: Fake, script: Any, status: int, code: str) -> None:
        gateway = Gateway(fake(script).url, response_timeout_ms=100)
        assert gateway.call("POST").status_code == status
        assert gateway.raised[0].code == code
        assert gateway.outcomes == [code]

    def test_refused(self, refusing: str) -> None:
        gateway = Gateway(refusing)
        assert gateway.call().status_code == 502
        assert gateway.outcomes == ["upstream-unreachable"]

    def test_the_requests_deadline_rules(self, fake: Fake) -> None:
        gateway = Gateway(fake(lambda peer: (peer.request(), peer.wait_for_end())).url, route={"deadline_ms": 100})
        began = time.monotonic()
        assert gateway.call("POST").status_code == 504
        assert 0.09 < time.monotonic() - began < 2

    def test_a_slow_drip_does_not_outlive_the_deadline(self, fake: Fake) -> None:
        def script(peer: Any) -> None:
            peer.request()
            peer.say(OK + b"Content-Length: 1000\r\n\r\n")
            while True:
                peer.say(b"a")
                time.sleep(0.01)

        gateway = Gateway(fake(script).url, route={"deadline_ms": 200})
        began = time.monotonic()
        assert gateway.call().status_code == 504
        assert time.monotonic() - began < 2

    def test_a_transfer_cut_midway_raises_in_the_body(self, fake: Fake) -> None:
        def script(peer: Any) -> None:
            peer.request()
            peer.say(OK + b"Content-Length: 300000\r\n\r\n" + b"a" * 200_000)

        gateway = Gateway(fake(script).url)
        with pytest.raises(errors.UpstreamBroken):
            gateway.call()

    @pytest.mark.parametrize("announced", [True, False])
    def test_an_answer_over_the_routes_limit(self, fake: Fake, announced: bool) -> None:
        size = b"Content-Length: 60000\r\n\r\n" if announced else b"\r\n"
        gateway = Gateway(fake(answering(OK + size + b"a" * 60_000)).url, route={"response_max_bytes": 50_000})
        assert gateway.call().status_code == 502

    def test_the_breaker_opens_and_says_when_to_come_back(self, refusing: str) -> None:
        gateway = Gateway(refusing)
        statuses = [gateway.call().status_code for _ in range(7)]
        assert statuses == [502] * 5 + [503] * 2
        assert gateway.raised[-1].retry_after_s == 1

    def test_an_error_of_the_upstream_does_not_open_it(self, fake: Fake) -> None:
        gateway = Gateway(fake(answering(*[b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n"] * 20)).url)
        assert [gateway.call().status_code for _ in range(20)] == [500] * 20

    def test_a_full_pool_is_waited_for_then_refused(self, fake: Fake) -> None:
        gateway = Gateway(
            fake(lambda peer: (peer.request(), peer.wait_for_end())).url,
            max_connections=1, connect_timeout_ms=50, response_timeout_ms=400,
        )  # fmt: skip
        statuses: list[int] = []
        calls = [gevent.spawn(lambda: statuses.append(gateway.call("POST").status_code)) for _ in range(3)]
        gevent.joinall(calls, timeout=5)
        assert sorted(statuses) == [503, 503, 504]

    def test_a_caller_that_went_away_ends_the_upstreams_work(self, fake: Fake) -> None:
        ended: list[bytes] = []
        gateway = Gateway(fake(lambda peer: (peer.request(), ended.append(peer.wait_for_end()))).url)
        call = gevent.spawn(gateway.call, "POST")
        while gateway.gone is None or not gateway.pools._pools["u"].endpoints[0].in_use:
            gevent.sleep(0.001)
        gevent.sleep(0.01)
        gevent.get_hub().loop.run_callback(gateway.gone)
        call.join(timeout=5)
        assert gateway.outcomes == ["caller-gone"]
        deadline = time.monotonic() + 5
        while not ended:
            assert time.monotonic() < deadline
            gevent.sleep(0.001)
        assert ended == [b""]

    def test_an_abandoned_answer_closes_its_connection(self, fake: Fake) -> None:
        gateway = Gateway(fake(answering(OK + b"Content-Length: 900000\r\n\r\n" + b"a" * 100_000)).url)
        pool = gateway.pools.pool("u", gateway.upstream)
        from gateway.upstream.exchange import Exchange, Outgoing

        exchange = Exchange(pool, time.monotonic_ns() + 10**9, 10**9, None)
        exchange.run(Outgoing("GET", lambda host: b"GET / HTTP/1.1\r\n\r\n", b"", False), time.monotonic_ns())
        pieces = exchange.pieces()
        next(pieces)
        assert pool.endpoints[0].in_use == 1
        del pieces
        assert (pool.endpoints[0].in_use, pool.endpoints[0].idle) == (0, [])


class TestBalance:
    def test_load_is_spread(self, fake: Fake) -> None:
        upstreams = [fake(answering(*[HELLO] * 10)) for _ in range(3)]
        seen: list[str] = []
        gateway = Gateway(*(one.url for one in upstreams))
        for _ in range(9):
            gateway.call()
            seen.append("x")
        assert [one.connections for one in upstreams] == [1, 1, 1]

    def test_a_resting_endpoint_is_left_alone(self, fake: Fake, refusing: str) -> None:
        good = fake(answering(*[HELLO] * 20))
        gateway = Gateway(refusing, good.url)
        assert [gateway.call().status_code for _ in range(6)] == [200] * 6
        pool = gateway.pools.pool("u", gateway.upstream)
        assert pool.endpoints[0].resting_until_ns > time.monotonic_ns()

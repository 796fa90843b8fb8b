"""A trace from the caller through the gateway to a unit's service, to an upstream and to the portal, as a collector
that reads OTLP with opentelemetry-proto sees it."""

from __future__ import annotations

import http.client
import threading
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from gateway.demo import story
from loadtests.demo import DemoUnderLoad
from tests.tracing.conftest import Collector, attributes_of

pytestmark = pytest.mark.integration
TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PORTAL = f"/portal/v1/patients/{story.OWN}/appointments"
RELAYED = f"/units/v1/{story.HOSPITAL}/patients/{story.OWN}/lab-results"
UPSTREAM = "/terminology/v1/lookup?code=2160-0&system=http%3A%2F%2Floinc.org"


class Service:
    """Stands in for a unit's service and for an upstream: keeps the trace fields of what it is asked."""

    def __init__(self, port: int) -> None:
        self.seen: list[tuple[str | None, str | None]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer.seen.append((self.headers["traceparent"], self.headers["tracestate"]))
                self.send_response(200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, format: str, *args: object) -> None:
                """Tests read `seen`."""

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()


class Traced(DemoUnderLoad):
    """The demo with one unit whose service, like the upstream, is ours."""

    def start_agent_of(self, port: int) -> None:
        self._spawn(
            "unit-agent", "-m", "gateway.cli.main", "agent", "--unit", story.HOSPITAL,
            "--gateway", f"http://127.0.0.1:{self.ports.gateway}", "--target", f"http://127.0.0.1:{port}",
            "--key", str(self.directory / "keys" / f"{story.HOSPITAL}.key"),
        )  # fmt: skip
        self._wait("unit-agent", lambda: self._unit_answers(story.HOSPITAL), 30)

    def ask(self, path: str, token: str | None = "PATIENT", **fields: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.ports.gateway, timeout=30)
        try:
            headers = {"Authorization": f"Bearer {self.tokens.get(token, token)}"} if token else {}
            connection.request("GET", path, headers={**headers, **fields})
            answer = connection.getresponse()
            answer.read()
            return answer.status, answer.headers["X-Request-Id"]
        finally:
            connection.close()


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    found = Collector()
    yield found
    found.server.shutdown()


@pytest.fixture(scope="module")
def traced(tmp_path_factory, collector) -> Iterator[Traced]:
    platform = Traced(
        tmp_path_factory.mktemp("traced"), 1, 600, tell=lambda text: None, CAREGATE_TRACE_ENDPOINT=collector.url,
        CAREGATE_TRACE_RATIO="0", CAREGATE_TRACE_INTERVAL_MS="50",
    )  # fmt: skip
    services = [Service(0), Service(platform.ports.upstream)]
    try:
        platform.start_without_units()
        platform.unit_service, platform.upstream_service = services
        platform.start_agent_of(services[0].server.server_port)
        yield platform
    finally:
        platform.stop()
        for service in services:
            service.server.shutdown()


def spans_of(collector, request_id, count):
    """The server span of a request, and the client span below it, if there is one."""
    seen = 0
    while True:
        spans = collector.wait_for(seen + 1)
        seen = len(spans)
        server = [s for s in spans if attributes_of(s).get("caregate.request_id") == request_id]
        children = [s for s in spans if server and s.parent_span_id == server[0].span_id]
        if server and len(children) == count - 1:
            return server + children


@pytest.mark.parametrize(
    ("path", "service", "call", "attributes"),
    [
        (RELAYED, "unit_service", "relay", {"caregate.unit": story.HOSPITAL, "caregate.delivery": "response_started"}),
        (UPSTREAM, "upstream_service", "upstream", {"caregate.upstream": "terminology"}),
        (PORTAL, None, "portal", {"db.system.name": "postgresql"}),
    ],
    ids=["unit", "upstream", "portal"],
)
def test_a_trace_goes_through(traced, collector, path, service, call, attributes):
    fields = {"traceparent": f"00-{TRACE}-{CALLER}-01", "tracestate": "vendor=private"}
    status, request_id = traced.ask(path, **fields)
    assert status == 200
    server, client = spans_of(collector, request_id, 2)
    assert (server.trace_id.hex(), server.parent_span_id.hex(), server.kind) == (TRACE, CALLER, 2)
    assert (client.trace_id.hex(), client.name, client.kind) == (TRACE, call, 3)
    assert server.start_time_unix_nano <= client.start_time_unix_nano < client.end_time_unix_nano
    assert client.end_time_unix_nano <= server.end_time_unix_nano
    assert attributes_of(client) == attributes
    found = attributes_of(server)
    assert found["http.response.status_code"] == 200
    assert server.name == f"GET {found['http.route']}"
    if service is not None:
        parent, state = getattr(traced, service).seen[-1]
        assert (parent, state) == (f"00-{TRACE}-{client.span_id.hex()}-01", "vendor=private")


def test_what_is_refused_has_a_span_of_its_own(traced, collector):
    refused = f"/portal/v1/patients/{story.OTHER}/appointments"
    status, request_id = traced.ask(refused, traceparent=f"00-{TRACE}-{CALLER}-01")
    (server,) = spans_of(collector, request_id, 1)
    found = attributes_of(server)
    assert (status, found["http.response.status_code"], found["error.type"]) == (404, 404, "not-found")


def test_what_is_not_sampled_is_passed_on_and_leaves_no_span(traced, collector):
    field = f"00-{TRACE}-{CALLER}-00"
    assert traced.ask(RELAYED, traceparent=field)[0] == 200
    assert traced.unit_service.seen[-1][0] == field
    assert traced.ask(RELAYED)[0] == 200
    assert traced.unit_service.seen[-1] == (None, None)
    _, last = traced.ask(PORTAL, traceparent=f"00-{TRACE}-{CALLER}-01")
    spans_of(collector, last, 2)
    routes = [attributes_of(s).get("http.route") for s in collector.spans() if s.kind == 2]
    assert routes.count("/units/v1/{unit}/patients/{patient}/lab-results") == 1, "of the sampled one above"


def test_no_span_says_who_or_what(traced, collector):
    """Whatever was asked in this file: templates, codes, units, and nothing of a person."""
    traced.ask(f"/nowhere/{story.OWN}?q={story.OWN}", traceparent=f"00-{TRACE}-{CALLER}-01")
    _, last = traced.ask(PORTAL, "made-up-token", traceparent=f"00-{TRACE}-{CALLER}-01")
    spans_of(collector, last, 1)
    text = "".join(str(request) for request in collector.requests)
    for private in (story.OWN, story.OTHER, "user-anna", "made-up-token", "vendor=private", "127.0.0.1"):
        assert private not in text
    with urllib.request.urlopen(f"http://127.0.0.1:{traced.ports.ops}/metrics", timeout=10) as answer:
        assert b'caregate_trace_spans_total{outcome="exported"}' in answer.read()
    assert sorted({key for s in collector.spans() for key in attributes_of(s)}) == [
        "caregate.delivery", "caregate.request_id", "caregate.route", "caregate.unit", "caregate.upstream",
        "db.system.name", "error.type", "http.request.method", "http.response.status_code", "http.route",
    ]  # fmt: skip

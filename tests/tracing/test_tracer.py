"""Which requests are traced, what is passed on, what their spans say."""

from __future__ import annotations

import re
import time

import pytest
from google.protobuf.unknown_fields import UnknownFieldSet
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from gateway.context import RequestContext
from gateway.errors import UnitDisconnected, Unprocessable
from gateway.http.trace import note_trace
from gateway.tracing.otlp import CLIENT, SERVER, Span, encode_request
from gateway.tracing.tracer import SPAN, Tracer
from gateway.tracing.w3c import is_in_ratio, parse_traceparent

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED, NOT_SAMPLED = f"00-{TRACE}-{CALLER}-01", f"00-{TRACE}-{CALLER}-00"


@pytest.mark.parametrize(
    ("field", "sampled"),
    [
        (SAMPLED, True),
        (NOT_SAMPLED, False),
        (f"00-{TRACE}-{CALLER}-03", True),
        (f"cc-{TRACE}-{CALLER}-01-what", True),
        (f"00-{TRACE}-{CALLER}-01-what", None),
        (f"00-{TRACE}-{'0' * 16}-01", None),
        (f"00-{TRACE}-{CALLER}-01\n", None),
        (f"00-{TRACE}-{CALLER}", None),
        ("", None),
    ],
)
def test_traceparent(field, sampled):
    found = parse_traceparent(field)
    assert found == (None if sampled is None else (TRACE, CALLER, sampled))


@pytest.mark.parametrize(
    ("field", "ratio", "follow", "traced", "trace"),
    [
        (None, 0.0, True, False, None),
        (None, 1.0, True, True, None),
        (SAMPLED, 0.0, True, True, TRACE),
        (NOT_SAMPLED, 1.0, True, False, TRACE),
        (SAMPLED, 0.0, False, False, TRACE),
        (NOT_SAMPLED, 1.0, False, True, TRACE),
        ("00-junk", 1.0, True, True, None),
        ("00-junk", 0.0, True, False, None),
    ],
)
def test_the_decision(field, ratio, follow, traced, trace):
    spans = []
    env = {} if field is None else {"HTTP_TRACEPARENT": field, "HTTP_TRACESTATE": "a=b"}
    Tracer(ratio, follow_parent=follow, add=spans.append).begin(env)
    assert (SPAN in env) is traced
    out = parse_traceparent(env.get("HTTP_TRACEPARENT", ""))
    if not traced:
        assert env.get("HTTP_TRACEPARENT") == (field if trace else None), "passed on as it came, or not at all"
        return
    assert out is not None
    assert out.sampled
    assert out.trace_id == trace if trace else out.trace_id != TRACE
    assert out.span_id == env[SPAN].client_id not in (CALLER, env[SPAN].server_id)
    assert ("HTTP_TRACESTATE" in env) is (trace is not None)


def test_the_ratio_of_new_traces():
    tracer, traced = Tracer(0.25, follow_parent=True, add=list.append), 0
    for _ in range(8_000):
        env = {}
        tracer.begin(env)
        traced += SPAN in env
    assert 1_700 < traced < 2_300


def test_the_ratio_of_known_traces_is_the_same_everywhere():
    assert is_in_ratio("0" * 16 + "3" + "f" * 15, 2**62)
    assert not is_in_ratio("f" * 16 + "4" + "0" * 15, 2**62)


def finished(ctx, status, field=SAMPLED, **changes):
    spans, env = [], {"HTTP_TRACEPARENT": field}
    tracer = Tracer(0, follow_parent=True, add=spans.append)
    tracer.begin(env)
    note_trace(ctx, env)
    assert ctx.trace == TRACE
    ctx.span.answered_ns = time.monotonic_ns()
    for name, value in changes.items():
        setattr(ctx, name, value)
    tracer.end(ctx.span, ctx, status)
    return spans, env[SPAN]


def test_the_spans_of_a_relayed_request(snapshot_route):
    ctx = RequestContext("r-1", time.monotonic_ns() - 50_000_000, "GET", "/secret/pat-1", "q=secret", "192.0.2.7")
    spans, opened = finished(ctx, 200, route=snapshot_route, unit="u-1", delivery="dispatched", upstream_ns=20_000_000)
    server, client = spans
    assert (server.kind, client.kind, client.name) == (SERVER, CLIENT, "relay")
    assert server.parent_id.hex() == CALLER
    assert (client.parent_id, client.span_id.hex()) == (server.span_id, opened.client_id)
    assert server.name == "GET /units/v1/{unit}/patients/{patient}"
    assert server.attributes == {
        "http.request.method": "GET", "http.response.status_code": 200, "http.route": snapshot_route.template,
        "caregate.route": "results", "caregate.request_id": "r-1", "caregate.unit": "u-1",
        "caregate.delivery": "dispatched",
    }  # fmt: skip
    assert client.attributes == {"caregate.unit": "u-1", "caregate.delivery": "dispatched"}
    assert server.start_ns < client.start_ns < client.end_ns <= server.end_ns
    assert client.end_ns - client.start_ns == 20_000_000
    assert abs(server.end_ns - time.time_ns()) < 60 * 10**9
    assert not re.search(r"secret|pat-1|192\.0\.2\.7", repr(spans))


@pytest.mark.parametrize(
    ("error", "status", "kind", "server_failed", "client_failed"),
    [
        (UnitDisconnected("u-1"), 502, "unit-disconnected", True, True),
        (Unprocessable(), 422, "unprocessable", False, False),
    ],
)
def test_the_spans_of_a_failure(snapshot_route, error, status, kind, server_failed, client_failed):
    ctx = RequestContext("r-1", time.monotonic_ns(), "GET")
    spans, _ = finished(ctx, status, route=snapshot_route, unit="u-1", delivery="unknown", error=error)
    server, client = spans
    assert (server.attributes["error.type"], server.failed, client.failed) == (kind, server_failed, client_failed)


def test_what_reached_no_route_has_one_span_and_no_name_of_its_own():
    spans, _ = finished(RequestContext("r-1", time.monotonic_ns(), "BREW", "/secret"), 404)
    assert [(span.name, span.kind) for span in spans] == [("_OTHER", SERVER)]


TEXT = st.text(max_size=20)


@given(
    st.binary(min_size=16, max_size=16), st.binary(min_size=8, max_size=8), st.binary(max_size=8), TEXT,
    st.dictionaries(TEXT, TEXT | st.integers(0, 2**62)), st.integers(0, 2**63), st.booleans(),
)  # fmt: skip
def test_the_bytes_are_what_opentelemetry_reads(trace, span_id, parent, name, attributes, at_ns, failed):
    span = Span(trace, span_id, parent, name, SERVER, at_ns, at_ns + 1, attributes, failed)
    read = ExportTraceServiceRequest.FromString(encode_request({"service.name": "x"}, "scope", "1", [span, span]))
    (resource,) = read.resource_spans
    assert [(a.key, a.value.string_value) for a in resource.resource.attributes] == [("service.name", "x")]
    (scope,) = resource.scope_spans
    assert (scope.scope.name, scope.scope.version, len(scope.spans)) == ("scope", "1", 2)
    got = scope.spans[1]
    assert (got.trace_id, got.span_id, got.parent_span_id, got.name) == (trace, span_id, parent, name)
    assert (got.kind, got.start_time_unix_nano, got.end_time_unix_nano) == (SERVER, at_ns, at_ns + 1)
    assert (got.status.code == 2, got.flags & 1) == (failed, 1)
    found = {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in got.attributes}
    assert found == attributes
    assert not any(len(UnknownFieldSet(part)) for part in (read, resource, scope, got))


@pytest.fixture
def snapshot_route():
    from types import SimpleNamespace

    from gateway.routing.model import RouteKind

    template = "/units/v1/{unit}/patients/{patient}"
    return SimpleNamespace(name="results", template=template, kind=RouteKind.UNIT, action=None, phi=True)

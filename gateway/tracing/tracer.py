"""Which requests are traced, and their spans: one of the gateway, one of what answered for it."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from typing import Any

from gateway.context import RequestContext
from gateway.errors import Origin
from gateway.routing.model import RouteKind, UpstreamAction
from gateway.tracing.otlp import CLIENT, SERVER, Span
from gateway.tracing.w3c import is_in_ratio, parse_traceparent, traceparent

SPAN = "caregate.span"
"""Environ: the open span of a request that is traced."""
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_CALLS = {RouteKind.FUNCTION: "portal", RouteKind.UNIT: "relay", RouteKind.UPSTREAM: "upstream"}


class OpenSpan:
    """A request that is traced. Units: `answered_ns` monotonic, when the responder was done; 0: it is not."""

    __slots__ = ("answered_ns", "client_id", "parent_id", "server_id", "trace_id")

    def __init__(self, trace_id: str, parent_id: str, server_id: str, client_id: str) -> None:
        self.trace_id, self.parent_id, self.server_id, self.client_id = trace_id, parent_id, server_id, client_id
        self.answered_ns = 0


class Tracer:
    """Decides at a request's first step, and makes its spans when it is over."""

    def __init__(self, ratio: float, *, follow_parent: bool, add: Callable[[Span], None]) -> None:
        """Shapes: `ratio` of all traces, 0 to 1; with `follow_parent` a caller's sampled flag decides for its trace."""
        self._threshold = round(ratio * 2**64)
        self._follow_parent = follow_parent
        self._add = add
        # PERF: no system call for a request that is not traced; what is guessed of it is worth nothing.
        self._draw = random.Random(os.urandom(16)).getrandbits  # noqa: S311

    def begin(self, environ: dict[str, Any]) -> None:
        """Decide, and if it is traced make `traceparent` ours: whatever the request calls is a child of our span."""
        field = environ.get("HTTP_TRACEPARENT")
        if field is None:
            if self._draw(64) < self._threshold:
                self._open(environ, os.urandom(16).hex(), "")
            return
        parent = parse_traceparent(field)
        if parent is None:
            # Source: W3C Trace Context, 4.3: what cannot be read is not passed on, and neither is its tracestate.
            del environ["HTTP_TRACEPARENT"]
            environ.pop("HTTP_TRACESTATE", None)
            self.begin(environ)
        elif parent.sampled if self._follow_parent else is_in_ratio(parent.trace_id, self._threshold):
            self._open(environ, parent.trace_id, parent.span_id)

    def _open(self, environ: dict[str, Any], trace_id: str, parent_id: str) -> None:
        ids = os.urandom(16).hex()
        span = OpenSpan(trace_id, parent_id, ids[:16], ids[16:])
        environ["HTTP_TRACEPARENT"] = traceparent(trace_id, span.client_id)
        environ[SPAN] = span

    def end(self, span: OpenSpan, ctx: RequestContext, status: int) -> None:
        """Hand over what a finished request has to tell.

        SEC: no path, no query, no subject, no address, no tracestate.
        """
        now_ns, monotonic_ns = time.time_ns(), time.monotonic_ns()
        zero_ns = now_ns - monotonic_ns
        trace_id = bytes.fromhex(span.trace_id)
        server_id = bytes.fromhex(span.server_id)
        route, error = ctx.route, ctx.error
        method = ctx.method if ctx.method in _METHODS else "_OTHER"
        attributes: dict[str, str | int] = {"http.request.method": method, "http.response.status_code": status}
        if route is not None:
            attributes |= {"http.route": route.template, "caregate.route": route.name}
        attributes |= {"caregate.request_id": ctx.id, **_relayed(ctx)}
        if error is not None:
            attributes["error.type"] = error.code
        self._add(Span(
            trace_id, server_id, bytes.fromhex(span.parent_id),
            f"{method} {route.template}" if route is not None else method, SERVER,
            zero_ns + ctx.started_ns, now_ns, attributes, status >= 500,
        ))  # fmt: skip
        called = _called(ctx)
        if called:
            answered_ns = span.answered_ns or monotonic_ns
            # What was refused on the way there has no time of its own.
            began_ns = answered_ns - ctx.upstream_ns if ctx.upstream_ns else ctx.started_ns
            self._add(Span(
                trace_id, bytes.fromhex(span.client_id), server_id, called, CLIENT,
                zero_ns + began_ns, zero_ns + answered_ns, _of_call(ctx),
                error is not None and error.origin is not Origin.CLIENT,
            ))  # fmt: skip


def _called(ctx: RequestContext) -> str:
    """What was called for the request, if anything was."""
    if ctx.route is None or not (ctx.upstream_ns or ctx.delivery):
        return ""
    return _CALLS.get(ctx.route.kind, "")


def _relayed(ctx: RequestContext) -> dict[str, str | int]:
    found: dict[str, str | int] = {}
    if ctx.unit is not None:
        found["caregate.unit"] = ctx.unit
    if ctx.delivery:
        found["caregate.delivery"] = str(ctx.delivery)
    return found


def _of_call(ctx: RequestContext) -> dict[str, str | int]:
    found = _relayed(ctx)
    if ctx.route is not None and ctx.route.kind is RouteKind.FUNCTION:
        found["db.system.name"] = "postgresql"
    if ctx.route is not None and isinstance(ctx.route.action, UpstreamAction):
        found["caregate.upstream"] = ctx.route.action.upstream
    if ctx.error is not None and ctx.error.origin is not Origin.CLIENT:
        found["error.type"] = ctx.error.code
    return found

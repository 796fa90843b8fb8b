"""The trace that a request belongs to."""

from __future__ import annotations

from typing import Any

from gateway.context import RequestContext
from gateway.tracing.tracer import SPAN
from gateway.tracing.w3c import parse_traceparent


def note_trace(ctx: RequestContext, environ: dict[str, Any]) -> None:
    """Keep the trace id of a request with a `traceparent`, the caller's or ours, and its span, if it is traced."""
    found = parse_traceparent(environ["HTTP_TRACEPARENT"])
    if found is not None:
        ctx.trace = found.trace_id
        ctx.span = environ.get(SPAN)

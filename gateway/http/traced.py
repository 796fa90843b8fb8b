"""Accounting that ends the spans of traced requests. It stands in for the plain one where tracing is on."""

from __future__ import annotations

import time
from typing import Any

import falcon

from gateway.context import RequestContext
from gateway.http.accounting import Accounting
from gateway.tracing.tracer import Tracer


class TracedAccounting(Accounting):
    """Accounting, and spans."""

    def __init__(self, *parts: Any, tracer: Tracer) -> None:
        super().__init__(*parts)
        self._tracer = tracer

    def process_response(
        self, req: falcon.Request, resp: falcon.Response, resource: object, req_succeeded: bool
    ) -> None:
        """The same, and the moment at which the responder was done."""
        span = req.context.gateway.span
        if span is not None:
            span.answered_ns = time.monotonic_ns()
        super().process_response(req, resp, resource, req_succeeded)

    def close(self, ctx: RequestContext, status: int) -> None:
        """The same, and its spans."""
        super().close(ctx, status)
        span, ctx.span = ctx.span, None
        if span is not None:
            self._tracer.end(span, ctx, status)

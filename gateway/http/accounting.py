"""Every request begins and ends here, refused ones included: context, metrics, access log, audit."""

from __future__ import annotations

import time
from typing import Protocol

import falcon

from fastpath.routes import canonical_path
from gateway.accesslog import AccessLog
from gateway.audit.event import AuditEvent, build_event
from gateway.config.snapshot import SnapshotHolder
from gateway.context import RequestContext, new_request_id
from gateway.errors import AuditOutcomeUnavailable, AuditUnavailable, BadTarget, Draining, GatewayError
from gateway.http import problems
from gateway.http.identity import client_address
from gateway.metrics import Metrics


class Audit(Protocol):
    """Where events go; `record` returns once the event is durable."""

    def record(self, event: AuditEvent) -> None: ...
    def enqueue(self, event: AuditEvent) -> None: ...


class Accounting:
    """The outermost middleware: makes the context, and closes the books on the answer.

    Holds: nothing between requests; `draining` is set once, when the worker begins to leave.
    """

    def __init__(self, holder: SnapshotHolder, metrics: Metrics, access_log: AccessLog, audit: Audit) -> None:
        self._holder = holder
        self._metrics = metrics
        self._access_log = access_log
        self._audit = audit
        self.draining = False

    def process_request(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Raises: BadTarget, Draining."""
        env = req.env
        snapshot = self._holder.current
        ctx = RequestContext(
            id=env.get("caregate.request_id") or new_request_id(),
            started_ns=env.get("caregate.started_ns") or time.monotonic_ns(),
            method=env["REQUEST_METHOD"],
            snapshot=snapshot,
        )
        req.context.gateway = ctx
        self._metrics.inc("caregate_requests_in_flight")
        peer = env.get("caregate.peer", env.get("REMOTE_ADDR", ""))
        ctx.client_address = client_address(peer, env.get("HTTP_X_FORWARDED_FOR"), snapshot.trusted_proxies)
        ctx.path, ctx.query = _target(env)
        if self.draining:
            raise Draining()

    def process_response(
        self, req: falcon.Request, resp: falcon.Response, resource: object, req_succeeded: bool
    ) -> None:
        """Record the access, then let the answer go."""
        ctx: RequestContext = req.context.gateway
        resp.set_header("X-Request-Id", ctx.id)
        for name, value in ctx.limit_headers:
            resp.set_header(name, value)
        if ctx.route is not None and ctx.route.phi:
            resp.set_header("Cache-Control", "no-store")
        self._record_audit(ctx, resp)
        self.close(ctx, resp.status_code)

    def intent(self, ctx: RequestContext) -> None:
        """Make it durable that a `phi` request is about to be dispatched.

        Raises: AuditUnavailable, and then nothing was dispatched.
        Yields to the hub: until the database has it.
        """
        self._audit.record(build_event(ctx, status=0))
        ctx.intent_recorded = True

    def close(self, ctx: RequestContext, status: int) -> None:
        """Count and log a finished request."""
        self._metrics.inc("caregate_requests_in_flight", (), -1.0)
        seconds = (time.monotonic_ns() - ctx.started_ns) / 1e9
        route = ctx.route.name if ctx.route is not None else "none"
        method = ctx.method if ctx.method in _METHODS else "other"
        self._metrics.inc("caregate_requests", (route, method, str(status)))
        self._metrics.observe("caregate_request_duration_seconds", (route,), seconds)
        if ctx.error is not None:
            self._metrics.inc("caregate_refusals", (ctx.error.code, ctx.error.origin.value))
        self._access_log.write(ctx, status, seconds)

    def _record_audit(self, ctx: RequestContext, resp: falcon.Response) -> None:
        if ctx.route is None and ctx.principal is None and not ctx.rule.startswith("token:"):
            return
        event = build_event(ctx, status=resp.status_code)
        if ctx.route is None or not ctx.route.phi:
            self._audit.enqueue(event)
            return
        try:
            self._audit.record(event)
        except GatewayError:
            self._audit.enqueue(event)
            answer_error(resp, ctx, _unrecorded(ctx))


_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


def _unrecorded(ctx: RequestContext) -> GatewayError:
    """What to answer when the outcome of a `phi` request is not durable."""
    if ctx.error is None and ctx.intent_recorded:
        return AuditOutcomeUnavailable("The request ran but its outcome was not recorded", delivery="dispatched")
    return AuditUnavailable("The access could not be recorded, so it was refused", delivery="not_dispatched")


def _target(env: dict[str, str]) -> tuple[str, str]:
    """The canonical raw path and the raw query of a request.

    Raises: BadTarget.
    """
    path = env.get("caregate.path")
    if path is not None:
        return path, env["QUERY_STRING"]
    try:
        return canonical_path(env["RAW_URI"].partition("?")[0] + ("?" + q if (q := env["QUERY_STRING"]) else ""))
    except ValueError as error:
        raise BadTarget(str(error)) from None


def answer_error(resp: falcon.Response, ctx: RequestContext, error: GatewayError) -> None:
    """Turn a response into the answer of an error."""
    ctx.error = error
    row = problems.row_of(error)
    resp.status = f"{row.status} {problems.reason(row.status)}"
    resp.content_type = problems.MEDIA_TYPE
    resp.stream = None
    resp.data = problems.body(error, ctx.id, ctx.method)
    resp.set_header("Cache-Control", "no-store")
    realm = ctx.snapshot.realm if ctx.snapshot is not None else "caregate"
    for name, value in problems.fields(error, realm):
        resp.set_header(name, value)

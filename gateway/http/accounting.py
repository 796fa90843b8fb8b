"""Every request begins and ends here, refused ones included: context, metrics, access log, audit."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Protocol, cast

import falcon

from fastpath.books import Books
from fastpath.target import canonical_path, decode_segment
from gateway.accesslog import AccessLog
from gateway.audit.consent import METHODS as CHANGING
from gateway.bodies import Body
from gateway.config.snapshot import SnapshotHolder
from gateway.context import RequestContext, new_request_id
from gateway.errors import (
    AuditOutcomeUnavailable,
    AuditUnavailable,
    BadTarget,
    BindingRefused,
    ConfigUnavailable,
    ConsentRefused,
    Delivery,
    GatewayError,
    NotFound,
    Origin,
    RelayError,
    TokenInvalid,
)
from gateway.http import problems
from gateway.http.address import client_address
from gateway.http.application import TOLD
from gateway.http.created import note_created
from gateway.http.trace import note_trace
from gateway.metrics import LATENCY_BUCKETS_S, Metrics
from gateway.rbac.consent import CONSENT_REFUSED
from gateway.rbac.decide import NOT_BOUND
from gateway.routing.model import RESERVED_PREFIXES


class Audit(Protocol):
    """Where events go: see gateway.audit.trail."""

    ready: bool

    def record(self, ctx: RequestContext, status: int) -> None: ...
    def enqueue_finished(self, ctx: RequestContext, status: int) -> None: ...
    def completed(self, ctx: RequestContext, status: int, whole: bool) -> None: ...
    def note_others(self, ctx: RequestContext) -> None: ...
    def note_consent(self, ctx: RequestContext, answer: bytes | None) -> None: ...


class Accounting:
    """The outermost middleware: makes the context, and closes the books on the answer.

    Holds: nothing between requests.
    """

    def __init__(self, holder: SnapshotHolder, metrics: Metrics, access_log: AccessLog, audit: Audit) -> None:
        self._holder = holder
        self._metrics = metrics
        self._access_log = access_log
        self._audit = audit
        self._in_flight = metrics.cell("caregate_requests_in_flight")
        self._books = Books(
            metrics.cells, self._in_flight, self._cells, _METHODS, LATENCY_BUCKETS_S,
            log=access_log, since_ns=time.monotonic_ns,
        )  # fmt: skip
        self._settle: Callable[[RequestContext, object, Audit], bool] | None = self._books.settle
        """Does the rest for plain requests; None: there are none."""

    def process_request(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Raises: BadTarget, AuditUnavailable, ConfigUnavailable."""
        env = req.env
        snapshot = self._holder.current
        # PERF: by position; keywords cost as much again.
        req.context.gateway = ctx = RequestContext(
            env.get("caregate.request_id") or new_request_id(),
            env.get("caregate.started_ns") or time.monotonic_ns(),
            env["REQUEST_METHOD"],
            env.get("caregate.path") or "",
            env["QUERY_STRING"],
            env["caregate.peer"] if "caregate.peer" in env else env.get("REMOTE_ADDR", ""),
            snapshot,
        )
        self._metrics.add(self._in_flight)
        if snapshot.trusted_proxies:
            ctx.client_address = client_address(
                ctx.client_address,
                env.get("HTTP_X_FORWARDED_FOR"),
                snapshot.trusted_proxies,
                env.get("HTTP_FORWARDED"),
            )
        if not ctx.path:
            ctx.path, ctx.query = _target(env)
        if "HTTP_TRACEPARENT" in env:
            note_trace(ctx, env)
        if not self._audit.ready:
            raise AuditUnavailable("The audit trail has no room")
        if not snapshot.version:
            raise ConfigUnavailable()

    def process_response(
        self, req: falcon.Request, resp: falcon.Response, resource: object, req_succeeded: bool
    ) -> None:
        """Record the access, then let the answer go."""
        ctx: RequestContext = req.context.gateway
        # PERF: Falcon keeps names in lower case; set_header checks what is a constant here.
        headers = resp._headers
        headers["x-request-id"] = ctx.id
        for name, value in ctx.limit_headers:
            headers[name.lower()] = value
        if ctx.route is not None and ctx.route.phi:
            headers["cache-control"] = "no-store"
        try:
            if ctx.method in CHANGING:
                self._note_consent(ctx, resp)
            if resp.stream is None and self._settle is not None and self._settle(ctx, resp.status, self._audit):
                return
        except AuditUnavailable:
            self._withhold(ctx, resp)
        else:
            self._record_audit(req, ctx, resp)
        if resp.stream is None:
            self.close(ctx, resp.status_code)
        else:
            self._close_with_stream(req, resp, ctx)

    def intent(self, ctx: RequestContext) -> None:
        """Make it durable that a `phi` request is about to be dispatched.

        Raises: AuditUnavailable, and then nothing was dispatched.
        Yields to the hub: until the disk has it.
        """
        self._audit.record(ctx, 0)
        ctx.intent_recorded = True

    def close(self, ctx: RequestContext, status: int) -> None:
        """Count and log a finished request."""
        took_ns = time.monotonic_ns() - ctx.started_ns
        self._books.close(ctx.route.name if ctx.route is not None else "none", ctx.method, status, took_ns)
        if ctx.shadow:
            for rule in ctx.shadow.split(","):
                self._metrics.inc("caregate_shadow_refusals", (ctx.route.name if ctx.route is not None else "", rule))
        if ctx.error is not None:
            self._metrics.inc("caregate_refusals", (_counted(ctx, ctx.error), ctx.error.origin.value))
            if ctx.rule.startswith(_LIMIT):
                self._metrics.inc("caregate_limit_refusals", (ctx.rule.removeprefix(_LIMIT),))
        self._access_log.write(ctx, status, took_ns)

    def _cells(self, route: str, method: str, status: int) -> tuple[int, int]:
        """Where requests of this kind are counted."""
        method = method if method in _METHODS else "other"
        return (
            self._metrics.cell("caregate_requests", (route, method, str(status))),
            self._metrics.cell(_DURATION, (route,)),
        )

    def _close_with_stream(self, req: falcon.Request, resp: falcon.Response, ctx: RequestContext) -> None:
        """The books of a streamed answer are closed when its last byte is out, or when it was cut."""
        status = resp.status_code

        def release() -> None:
            ctx.error = ctx.error or body.failure
            self.close(ctx, status)

        body = Body(iter(cast("Iterable[bytes]", resp.stream)), release)
        resp.stream = body
        if req.method == "HEAD":
            # NOTE: Falcon forgets the stream of a HEAD without closing it, and without one announces a length of 0.
            body.close()
            resp.stream = iter(())

    def _record_audit(self, req: falcon.Request, ctx: RequestContext, resp: falcon.Response) -> None:
        # SEC: whom an address limit refuses may come in floods; the limit is what the trail is guarded by.
        if ctx.principal is None and not ctx.rule.startswith("token:"):
            return
        phi = ctx.route is not None and ctx.route.phi
        try:
            if ctx.query or ctx.also:
                self._audit.note_others(ctx)
            if phi:
                self._audit.record(ctx, resp.status_code)
            else:
                self._audit.enqueue_finished(ctx, resp.status_code)
        except AuditUnavailable:
            self._withhold(ctx, resp)
        if phi and ctx.intent_recorded:
            req.env[TOLD] = partial(self._audit.completed, ctx, resp.status_code)

    def _note_consent(self, ctx: RequestContext, resp: falcon.Response) -> None:
        """Raises: AuditUnavailable."""
        if ctx.principal is None:
            return
        if ctx.method == "POST":
            note_created(ctx, resp)
        self._audit.note_consent(ctx, resp.data)

    def _withhold(self, ctx: RequestContext, resp: falcon.Response) -> None:
        """The outcome is not durable: answer that, and keep this answer too, if it is another one."""
        is_news = not isinstance(ctx.error, AuditUnavailable)
        error = _unrecorded(ctx)
        ctx.rule = error.code
        answer_error(resp, ctx, error)
        if is_news:
            with contextlib.suppress(AuditUnavailable):
                self._audit.enqueue_finished(ctx, resp.status_code)


class BareAccounting(Accounting):
    """For benchmarks alone: no metrics and no access log, and no audit but that of `phi` routes."""

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self._settle = None

    def close(self, ctx: RequestContext, status: int) -> None:
        """Nothing is counted or logged."""

    def _record_audit(self, req: falcon.Request, ctx: RequestContext, resp: falcon.Response) -> None:
        if ctx.route is not None and ctx.route.phi:
            super()._record_audit(req, ctx, resp)


_LIMIT = "limit:"
"""What the rule of a request begins with that was over a rate limit."""
_DURATION = "caregate_request_duration_seconds"
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


_HIDDEN = {
    "audience": TokenInvalid.code, NOT_BOUND.rule: BindingRefused.code, CONSENT_REFUSED.rule: ConsentRefused.code,
}  # fmt: skip
"""Rules that may refuse as if there were nothing -> the error's code where they do not."""


def _counted(ctx: RequestContext, error: GatewayError) -> str:
    """The code that an error is counted under: one who tries records that are not his is more than one who errs."""
    return _HIDDEN.get(ctx.rule, error.code) if isinstance(error, NotFound) else error.code


def _unrecorded(ctx: RequestContext) -> GatewayError:
    """What to answer when the outcome of a `phi` request is not durable."""
    delivery = _delivery(ctx)
    if delivery is Delivery.NOT_DISPATCHED:
        return AuditUnavailable("The access could not be recorded, so it was refused", delivery=delivery.value)
    return AuditOutcomeUnavailable("The outcome of the request was not recorded", delivery=delivery.value)


def _delivery(ctx: RequestContext) -> Delivery:
    """What is known about whether the request ran, when its answer is withheld."""
    error = ctx.error
    if ctx.route is not None and not ctx.route.phi and (error is None or error.origin is not Origin.CLIENT):
        pass  # no intent comes before these
    elif not ctx.intent_recorded:
        return Delivery.NOT_DISPATCHED
    if error is None:
        return Delivery.DISPATCHED
    if isinstance(error, RelayError):
        return error.delivery
    return Delivery.NOT_DISPATCHED if error.origin is Origin.CLIENT else Delivery.UNKNOWN


def _target(env: dict[str, str]) -> tuple[str, str]:
    """The canonical raw path and the raw query of a request that no worker of ours has looked at.

    Raises: BadTarget.
    """
    try:
        return canonical_path(env["RAW_URI"].partition("?")[0] + ("?" + q if (q := env["QUERY_STRING"]) else ""))
    except ValueError as error:
        raise BadTarget(str(error)) from None


def answer_error(resp: falcon.Response, ctx: RequestContext, error: GatewayError) -> None:
    """Turn a response into the answer of an error."""
    ctx.error = error
    if ctx.route is None:
        _locate(ctx)
    row = problems.row_of(error)
    resp.status = f"{row.status} {problems.reason(row.status)}"
    stream, resp.stream = resp.stream, None
    close = getattr(stream, "close", None)
    if close is not None:
        close()
    _withdraw(resp, ctx)
    resp.content_type = problems.media_type(error)
    resp.data = problems.body(error, ctx.id, ctx.method, keyed=ctx.keyed)
    resp.set_header("Cache-Control", "no-store")
    realm = ctx.snapshot.realm if ctx.snapshot is not None else "caregate"
    for name, value in problems.fields(error, realm):
        resp.set_header(name, value)


_OWN_FIELDS = frozenset({"ratelimit", "ratelimit-policy", "vary", "x-request-id"})


def _withdraw(resp: falcon.Response, ctx: RequestContext) -> None:
    """Take back the fields of an answer that is not given: they speak of another body, and may be of a record."""
    forwarded = "relay-source" in resp._headers
    for name in [n for n in resp._headers if n not in _OWN_FIELDS and not n.startswith("access-control-")]:
        del resp._headers[name]
    resp._extra_headers = None
    if forwarded:
        ctx.relay_source = "gateway"
        resp.set_header("Relay-Source", "gateway")


def _locate(ctx: RequestContext) -> None:
    """Find the route of a request that was refused before routing, for audit, metrics and CORS."""
    if ctx.snapshot is None or not ctx.path or ctx.path.startswith(RESERVED_PREFIXES):
        return
    found = ctx.snapshot.routes.match(ctx.method, ctx.path)
    if found is not None:
        ctx.route, raw = found
        ctx.params = {name: decode_segment(value) for name, value in raw.items()}

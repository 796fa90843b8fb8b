"""The Admin API over HTTP: which operation a request is for, what it was sent, what it answers, what the trail keeps.

The requests pass the same middleware as a caller's: accounting, limits, identity, authorization. What an operation
needs is a route like theirs, made of the configuration's `admin`; without that there is nothing here.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from typing import Any, Final, cast

import falcon
import msgspec

from fastpath.routes import RouteTable
from fastpath.target import decode_segment
from gateway.admin.decode import decode_body, decode_params, decode_query
from gateway.admin.desk import Desk
from gateway.admin.operation import Call, Change, Operation, Reply
from gateway.admin.operations import OPERATIONS
from gateway.audit.trail import AuditTrail
from gateway.config.snapshot import Snapshot
from gateway.config.source import MAX_BYTES
from gateway.context import RequestContext
from gateway.errors import (
    AuditOutcomeUnavailable,
    AuditUnavailable,
    BadRequest,
    GatewayError,
    MediaTypeRefused,
    MethodNotMapped,
    NotFound,
    Origin,
)
from gateway.http.accounting import Accounting
from gateway.http.admission import Admission
from gateway.http.application import Application
from gateway.http.authorization import Authorization
from gateway.http.identity import Identity
from gateway.relay.request import RequestBody, content_length
from gateway.routing.model import ResourceAction, Route, RouteKind

MAX_BODY_BYTES: Final = MAX_BYTES + 65_536
"""A document, and its JSON around it."""
PREFIX: Final = "admin."
"""Of the names of operations in logs, metrics and the trail."""
_TAG = re.compile(r'"([!#-~]{0,64})"\Z')
_KEY = re.compile(r"[!-~]{1,255}\Z")
_encode = msgspec.json.Encoder(order="deterministic").encode
Found = tuple[object, dict[str, Callable[..., None]], dict[str, Any], str]
OnError = Callable[..., None]


def create_admin(
    desk: Desk, accounting: Accounting, admission: Admission, identity: Identity, audit: AuditTrail, on_error: OnError
) -> Application:
    """The application of the Admin API."""
    app = Application(
        router=cast("Any", _Router(desk, accounting, audit)),  # Falcon's annotation names its own router only
        middleware=[accounting, _Switch(), admission, identity, Authorization(accounting.intent)],
    )
    app.add_error_handler((Exception, falcon.HTTPError), on_error)
    return app


class _Switch:
    """Middleware: without `admin` in the configuration nothing is here, whoever asks."""

    def process_request(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Raises: NotFound."""
        if req.context.gateway.snapshot.document.admin is None:
            raise NotFound()


class _Router:
    """Finds the operation, and makes its route for the snapshot in force."""

    def __init__(self, desk: Desk, accounting: Accounting, audit: AuditTrail) -> None:
        self._table = RouteTable([(one.method, one.template, one) for one in OPERATIONS])
        self._resources = {one.name: _Resource(one, desk, accounting, audit) for one in OPERATIONS}
        self._routes: dict[str, Route] = {}
        self._routes_of: Snapshot | None = None

    def add_route(self, uri_template: str, resource: object, **kwargs: Any) -> None:
        """Nothing is added: operations are declared."""
        raise NotImplementedError

    def find(self, uri: str, req: falcon.Request | None = None) -> Found:
        """Raises: NotFound, MethodNotMapped."""
        # SEC: the canonical raw path is matched, see routing.router.
        assert req is not None  # noqa: S101
        ctx: RequestContext = req.context.gateway
        found = self._table.match(req.method, ctx.path)
        if found is None:
            allowed = self._table.allowed(ctx.path)
            raise MethodNotMapped(headers=(("Allow", ", ".join(sorted(allowed))),)) if allowed else NotFound()
        operation, raw = found
        ctx.params = {name: decode_segment(value) for name, value in raw.items()}
        ctx.route = self._route(ctx.snapshot, operation)
        resource = self._resources[operation.name]
        return resource, {operation.method: resource.answer}, {}, operation.template

    def _route(self, snapshot: Snapshot, operation: Operation) -> Route:
        if snapshot is not self._routes_of:
            self._routes, self._routes_of = {}, snapshot
        route = self._routes.get(operation.name)
        if route is None:
            route = self._routes[operation.name] = _route(snapshot, operation)
        return route


def _route(snapshot: Snapshot, operation: Operation) -> Route:
    admin = snapshot.document.admin
    assert admin is not None  # noqa: S101 - _Switch came before
    return Route(
        name=PREFIX + operation.name,
        template=operation.template,
        methods=(operation.method,),
        kind=RouteKind.RESOURCE,
        action=ResourceAction(PREFIX + operation.name),
        audiences=frozenset({admin.audience}),
        roles=frozenset(admin.roles),
        permission=operation.permission,
        query=frozenset(info.name for info in msgspec.structs.fields(operation.query)),
        body_max_bytes=MAX_BODY_BYTES if operation.body is not None else 0,
    )


class _Resource:
    """One operation."""

    def __init__(self, operation: Operation, desk: Desk, accounting: Accounting, audit: AuditTrail) -> None:
        self._operation = operation
        self._desk = desk
        self._accounting = accounting
        self._audit = audit

    def answer(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Run the operation. Yields to the hub: yes.

        Raises: what it does.
        """
        ctx: RequestContext = req.context.gateway
        call = self._call(req, ctx)
        if self._operation.change is not None:
            reply = self._run_change(ctx, call)
        else:
            assert self._operation.run is not None  # noqa: S101 - one of the two is declared
            reply = self._operation.run(self._desk, call)
        _send(req, resp, reply)

    def _call(self, req: falcon.Request, ctx: RequestContext) -> Call:
        """Raises: NotFound, QueryRefused, BadRequest, MediaTypeRefused, BadJson, Unprocessable, BodyTooLarge."""
        operation = self._operation
        assert ctx.principal is not None  # noqa: S101 - Authorization came before
        if operation.body is None and content_length(req.env) != 0:
            raise BadRequest("This operation takes no body")
        return Call(
            author=ctx.principal.subject,
            request_id=ctx.id,
            snapshot=ctx.snapshot,
            path=decode_params(ctx.params, operation.params),
            query=decode_query(ctx.query, operation.query),
            body=decode_body(_json(req), operation.body) if operation.body is not None else None,
            if_match=_if_match(req) if operation.conditional else None,
            retry_key=_retry_key(req) if operation.keyed else None,
        )

    def _run_change(self, ctx: RequestContext, call: Call) -> Reply:
        """The change between its intent and its event: both are durable before anybody hears of it.

        Raises: AuditUnavailable, and then nothing was changed; AuditOutcomeUnavailable; what the change does.
        """
        assert self._operation.change is not None  # noqa: S101
        change = Change(target=self._operation.name)
        self._accounting.intent(ctx)
        try:
            reply = self._operation.change(self._desk, call, change)
        except GatewayError as error:
            self._note(ctx, "refused" if error.origin is Origin.CLIENT else "failed", change, error.code)
            raise
        except BaseException:
            self._note(ctx, "failed", change, "internal")
            raise
        self._note(ctx, "allowed", change, "")
        return reply

    def _note(self, ctx: RequestContext, outcome: str, change: Change, rule: str) -> None:
        """Raises: AuditOutcomeUnavailable."""
        try:
            self._audit.note(
                "admin", outcome, ctx=ctx, durable=True, rule=rule, what=self._operation.name, target=change.target,
                reason=change.reason, before=_digest(change.before), digest=_digest(change.after),
            )  # fmt: skip
        except AuditUnavailable:
            raise AuditOutcomeUnavailable("The outcome of the change was not recorded") from None


def _digest(value: object) -> str:
    """The digest of what was, or is; a text is one already. "": nothing, or not known."""
    if isinstance(value, str):
        return value
    return "" if value is None else hashlib.sha256(_encode(value)).hexdigest()


def _json(req: falcon.Request) -> bytes:
    """Raises: MediaTypeRefused, BodyTooLarge, and what reading raises."""
    kind = (req.content_type or "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise MediaTypeRefused()
    body = RequestBody(req.env["wsgi.input"], content_length(req.env), MAX_BODY_BYTES)
    piece, end = body.first()
    pieces = [piece]
    while not end:
        piece, end = body.next()
        pieces.append(piece)
    return b"".join(pieces)


def _if_match(req: falcon.Request) -> str | None:
    """Raises: BadRequest."""
    value = req.get_header("If-Match")
    if value is None:
        return None
    found = _TAG.match(value.strip())
    if found is None:
        raise BadRequest("If-Match takes one tag of a version")
    return found[1]


def _retry_key(req: falcon.Request) -> str | None:
    """Raises: BadRequest."""
    value = req.get_header("Idempotency-Key")
    if value is not None and not _KEY.match(value):
        raise BadRequest("Idempotency-Key takes 1 to 255 visible ASCII characters")
    return value


def _send(req: falcon.Request, resp: falcon.Response, reply: Reply) -> None:
    data = _encode(reply.answer)
    tag = f'"{reply.tag if reply.tag is not None else hashlib.sha256(data).hexdigest()[:32]}"'
    resp.set_header("ETag", tag)
    resp.set_header("Cache-Control", "no-store")
    if req.method == "GET" and _is_known(req.get_header("If-None-Match"), tag):
        resp.status = falcon.HTTP_304
        return
    resp.status = reply.status
    if reply.location:
        resp.set_header("Location", reply.location)
    resp.content_type = falcon.MEDIA_JSON
    resp.data = data


def _is_known(header: str | None, tag: str) -> bool:
    """Source: RFC 9110, 13.1.2."""
    if header is None:
        return False
    return any(one.strip().removeprefix("W/") in (tag, "*") for one in header.split(","))

"""May this principal use this route for these parameters? The last step before a route's resource runs."""

from __future__ import annotations

from collections.abc import Callable

import falcon

from gateway.audit.event import MAX_OTHERS, also_named
from gateway.context import RequestContext
from gateway.errors import QueryRefused, TokenMissing
from gateway.http.care import Care, may_open
from gateway.http.grant import grant_of
from gateway.http.named import may_name, note_named
from gateway.rbac.decide import NOT_BOUND, decide
from gateway.routing.model import RouteKind
from gateway.routing.query import check_query
from gateway.routing.upgrade import refuse_upgrade

_FORWARDED = frozenset({RouteKind.UNIT, RouteKind.UPSTREAM})


class Authorization:
    """Middleware: refuses, or lets the resource run; on `phi` routes the intent is recorded in between."""

    def __init__(
        self,
        intent: Callable[[RequestContext], None],
        care: Care | None = None,
    ) -> None:
        """Shapes: `intent(ctx)` makes the audit intent durable or raises AuditUnavailable."""
        self._intent = intent
        self._care = care if care is not None else Care()

    def process_resource(
        self, req: falcon.Request, resp: falcon.Response, resource: object, params: dict[str, object]
    ) -> None:
        """Raises: TokenMissing, TokenInvalid, Forbidden, NotFound, QueryRefused, NotImplementedHere,
        AuditUnavailable, and what note_named and Care.take raise.
        Yields to the hub: as these do, and until the intent is durable.
        """
        ctx: RequestContext = req.context.gateway
        route = ctx.route
        if route is None:
            return
        if ctx.principal is None:
            ctx.rule = "token:missing"
            raise TokenMissing()
        if ctx.method == "POST" and may_name(route):
            note_named(req, ctx, route)
        grant = ctx.grant if ctx.grant is not None else grant_of(ctx.principal, route)
        decision = grant.decision or decide(ctx.principal, route, ctx.params, ctx.method)
        ctx.rule = decision.rule
        if not decision.allowed:
            if decision.rule != NOT_BOUND.rule or not may_open(ctx, ctx.principal, route):
                raise decision.refusal()
            self._care.take(req, ctx, ctx.principal, route, decision)
        elif route.careful or (ctx.query and (route.searched or ctx.principal.scopes is not None)):
            self._care.take(req, ctx, ctx.principal, route)
        elif ctx.query:
            check_query(ctx.query, route.query)
        if "HTTP_UPGRADE" in req.env and route.kind in _FORWARDED:
            refuse_upgrade(req.env)
        if route.phi:
            if (ctx.query or ctx.also) and len(also_named(ctx)) > MAX_OTHERS:
                raise QueryRefused(f"A request may name {MAX_OTHERS + 1} patients at most")
            self._intent(ctx)

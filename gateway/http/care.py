"""What a route asks for beside the path: bindings of query and body. Only routes that ask for any of it come here."""

from __future__ import annotations

import falcon

from gateway.bodies import ReadBody
from gateway.context import Principal, RequestContext
from gateway.errors import BadJson, QueryRefused, Unprocessable
from gateway.portal.resource import read_body
from gateway.rbac.decide import SEARCH_REFUSED, Decision, is_satisfied
from gateway.rbac.document import decide_document, read_document
from gateway.rbac.reference import applies, bases_of
from gateway.rbac.search import decide_search, read_search
from gateway.routing.model import Route, UnitAction
from gateway.routing.query import check_query

_CONDITIONAL = ("HTTP_IF_NONE_EXIST", "HTTP_X_HTTP_METHOD_OVERRIDE", "HTTP_X_HTTP_METHOD", "HTTP_X_METHOD_OVERRIDE")
"""Fields with which a request would be another one than was decided upon, or search."""


class Care:
    """The steps between a decision on the path and the resource."""

    def take(self, req: falcon.Request, ctx: RequestContext, principal: Principal, route: Route) -> None:
        """Let the request pass, or refuse it.

        Raises: QueryRefused, Forbidden, NotFound, BadJson, Unprocessable, and the errors of the caller's body.
        Yields to the hub: while a body that is bound arrives.
        """
        shadows = [
            binding.rule
            for binding in route.bindings
            if binding.shadow
            and binding.source == "path"
            and applies(binding, principal.role)
            and not is_satisfied(binding, principal, ctx.params)
        ]
        try:
            self._decide(req, ctx, principal, route, shadows)
        finally:
            for rule in shadows:
                note_shadow(ctx, rule)

    def _decide(
        self, req: falcon.Request, ctx: RequestContext, principal: Principal, route: Route, shadows: list[str]
    ) -> None:
        if ctx.query:
            check_query(ctx.query, route.query)
        bases = bases_of(route.bases, unit_of(ctx, route)) if route.bases else ()
        self._search(ctx, principal, route, bases, shadows)
        if principal.role in route.searched and any(name in req.env for name in _CONDITIONAL):
            self._stop(ctx, SEARCH_REFUSED)
        self._document(req, ctx, principal, route, bases, shadows)

    def _search(
        self, ctx: RequestContext, principal: Principal, route: Route, bases: tuple[str, ...], shadows: list[str]
    ) -> None:
        watched = [b for b in route.bindings if b.source == "query" and applies(b, principal.role)]
        if not watched and not (ctx.query and (principal.role in route.searched or principal.scopes is not None)):
            return
        try:
            pairs = read_search(ctx.query)
        except QueryRefused:
            if watched and all(binding.shadow for binding in watched) and principal.role not in route.searched:
                shadows.extend(binding.rule for binding in watched)
                return
            ctx.rule = "search"
            raise
        self._stop(ctx, decide_search(principal, route, pairs, bases, shadows))

    def _document(
        self,
        req: falcon.Request,
        ctx: RequestContext,
        principal: Principal,
        route: Route,
        bases: tuple[str, ...],
        shadows: list[str],
    ) -> None:
        watched = [b for b in route.bindings if b.source == "body" and applies(b, principal.role)]
        if not watched:
            return
        raw = read_body(req.env, route.body_max_bytes)
        # SEC: what was decided upon is what is forwarded, byte for byte.
        req.env["wsgi.input"] = req.stream = ReadBody(raw)
        req.env["caregate.content_length"] = len(raw)
        try:
            if "content-type" in req.env.get("caregate.duplicate", ()):
                raise BadJson("Content-Type is given twice")
            document = read_document(raw, req.content_type or "", req.env.get("HTTP_CONTENT_ENCODING", ""))
            decision = decide_document(principal, route, document, bases, shadows)
        except (BadJson, Unprocessable):
            if all(binding.shadow for binding in watched):
                shadows.extend(binding.rule for binding in watched)
                return
            ctx.rule = "binding"
            raise
        self._stop(ctx, decision)

    def _stop(self, ctx: RequestContext, decision: Decision) -> None:
        """Raises: what the decision says, if it refuses."""
        if not decision.allowed:
            ctx.rule = decision.rule
            raise decision.refusal()


def unit_of(ctx: RequestContext, route: Route) -> str:
    """The unit a request is for; "" for a route without one."""
    action = route.action
    if isinstance(action, UnitAction) and action.unit is not None:
        return action.unit
    name = action.unit_param if isinstance(action, UnitAction) and action.unit_param is not None else "unit"
    return ctx.params.get(name, "")


def note_shadow(ctx: RequestContext, rule: str) -> None:
    """A rule that only watches would have refused the request."""
    if rule not in ctx.shadow.split(","):
        ctx.shadow = f"{ctx.shadow},{rule}" if ctx.shadow else rule

"""Type A answered by the portal database: one function call, its JSON passed through as bytes."""

from __future__ import annotations

import time
from typing import Any

import falcon
import orjson

from gateway.bodies import wait_until
from gateway.context import Principal, RequestContext, deadline_of
from gateway.errors import BodyTooLarge, InternalError, NotFound, TokenMissing
from gateway.http1.deadlines import NEVER
from gateway.portal.catalog import Catalog, load_signature
from gateway.portal.plan import CallPlan
from gateway.portal.sqlstate import error_of
from gateway.routing.model import FunctionAction, Route
from gateway.store.pipeline import StatementFailed
from gateway.store.pool import Database


class PortalResource:
    """Answers every route whose action is a function.

    Holds: one plan a route of the configurations in use.
    """

    def __init__(self, database: Database, catalog: Catalog | None = None) -> None:
        self._database = database
        self._catalog = catalog if catalog is not None else Catalog()
        self._plans: dict[int, tuple[FunctionAction, CallPlan]] = {}

    def merge(self, catalog: Catalog) -> None:
        """Take in the functions of a configuration about to be used; requests under way go on with their plans."""
        self._catalog.merge(catalog)
        self._plans = {}

    def on_request(self, req: falcon.Request, resp: falcon.Response, **params: object) -> None:
        """Answer with what the function returns.

        Raises: every error of CallPlan.bind, sqlstate.error_of and Database.call; NotFound if it returns NULL.
        Yields to the hub: while the body arrives and until the database answered.
        """
        ctx: RequestContext = req.context.gateway
        route = ctx.route
        if route is None or not isinstance(route.action, FunctionAction):
            raise InternalError()
        if ctx.principal is None:
            raise TokenMissing()
        plan = self._plan(route.action)
        body = read_body(req.env, route.body_max_bytes, deadline_of(ctx, route)) if plan.takes_body else b""
        statement, values = plan.bind(ctx, body)
        began_ns = time.monotonic_ns()
        try:
            answer = self._database.call(statement, values, _claims(ctx), deadline_ns=deadline_of(ctx, route))
        except StatementFailed as failed:
            raise error_of(failed.sqlstate, has_body=plan.takes_body, hidden=_is_hidden(route, ctx.principal)) from None
        finally:
            ctx.upstream_ns += time.monotonic_ns() - began_ns
        if answer is None:
            raise NotFound()
        _answer(resp, route.action.success_status, answer)

    def _plan(self, action: FunctionAction) -> CallPlan:
        held = self._plans.get(id(action))
        if held is not None and held[0] is action:
            return held[1]
        signature = self._catalog.signatures.get(action.function)
        if signature is None:
            # The configuration was taken over while the database was away.
            signature = load_signature(action.function, self._database)
            self._catalog.merge(Catalog({action.function: signature}))
        plan = CallPlan(action, signature)
        self._plans[id(action)] = (action, plan)
        return plan


def claims_of(principal: Principal) -> bytes:
    """What row-level security sees of a caller, as JSON: the token's claims, and what its key says about it."""
    return orjson.dumps(
        {
            **principal.claims,
            "sub": principal.subject,
            "iss": principal.issuer,
            # SEC: audience and role are the key's, whatever a claim of that name says.
            "aud": principal.audience,
            "role": principal.role,
        }
    )


def _claims(ctx: RequestContext) -> bytes:
    """The claims as they were written for the principal's first request on the route."""
    assert ctx.principal is not None  # noqa: S101
    grant = ctx.grant
    if grant is None:
        return claims_of(ctx.principal)
    if grant.claims is None:
        grant.claims = claims_of(ctx.principal)
    return grant.claims


def read_body(env: dict[str, Any], limit_bytes: int, deadline_ns: int = NEVER) -> bytes:
    """The whole request body.

    Units: `deadline_ns` monotonic nanoseconds, past which no byte is waited for.
    Raises: BodyTooLarge, and what the worker's reader raises.
    """
    length = env["caregate.content_length"] if "caregate.content_length" in env else int(env.get("CONTENT_LENGTH") or 0)
    if length is not None and length > limit_bytes:
        raise BodyTooLarge(close=True)
    wait_until(env["wsgi.input"], deadline_ns)
    body: bytes = env["wsgi.input"].read(limit_bytes + 1 if length is None else length)
    if len(body) > limit_bytes:
        raise BodyTooLarge(close=True)
    return body


def _is_hidden(route: Route, principal: Principal) -> bool:
    """Does a record that is not the caller's look to him as if it did not exist?"""
    return any(b.hidden and not b.shadow and (not b.roles or principal.role in b.roles) for b in route.bindings)


def _answer(resp: falcon.Response, status: int, payload: bytes) -> None:
    resp.status = status
    if status == 204:
        return
    resp.content_type = falcon.MEDIA_JSON
    resp.data = payload

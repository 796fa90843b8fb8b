"""Cross-origin access for browser apps: what an audience allows, answered before identity (WHATWG Fetch)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

import falcon

from gateway.audit.endpoint import ACCESS_LOG_PATH, SEARCH_PATH
from gateway.breakglass.endpoint import PATH as BREAK_GLASS_PATH
from gateway.config.model import Cors as CorsRule
from gateway.config.snapshot import REVOKE_PATH, TOKEN_PATH, Snapshot
from gateway.context import RequestContext
from gateway.errors import NotFound
from gateway.http.openapi import PATH as OPENAPI_PATH
from gateway.rbac.decide import is_hidden_from

_OF_APPS = frozenset({TOKEN_PATH, REVOKE_PATH})
"""Paths of the token service that apps in browsers call."""
_PREFLIGHT = "cors:preflight"
EXPOSED = "Retry-After, RateLimit, RateLimit-Policy, Relay-Source, X-Request-Id, WWW-Authenticate"


class Cors:
    """Middleware: answers preflights, and marks answers that an allowed origin's page may read."""

    def __init__(self, own_methods: Callable[[str], Iterable[str]] = lambda path: ()) -> None:
        """Shapes: `own_methods(path)`: those of the gateway's own resource at a path, none where there is none."""
        self._own_methods = own_methods

    def process_request(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Raises: NotFound for a preflight of a path that no route has, or a hidden one the origin may not see."""
        if req.method != "OPTIONS":
            return
        origin = req.env.get("HTTP_ORIGIN")
        method = req.env.get("HTTP_ACCESS_CONTROL_REQUEST_METHOD")
        if not origin or not method:
            return
        ctx: RequestContext = req.context.gateway
        snapshot: Snapshot = ctx.snapshot
        if ctx.path in _OF_APPS:
            _preflight_of_app(snapshot, origin, resp)
            ctx.rule = _PREFLIGHT
            return
        audiences: Collection[str]
        own = own_audiences(snapshot, ctx.path)
        if own is None:
            methods = _methods(snapshot, ctx.path, origin)
            match = snapshot.routes.match(method, ctx.path)
            audiences = match[0].audiences if match else ()
        else:
            methods = sorted(self._own_methods(ctx.path)) if own else []
            audiences = own if method in methods else ()
        if not methods:
            raise NotFound()
        rule = _rule(snapshot, audiences, origin)
        resp.status = 204
        resp.complete = True
        if rule is not None:
            _allow(resp, origin, rule)
            resp.set_header("Access-Control-Allow-Methods", ", ".join(methods))
            resp.set_header("Access-Control-Allow-Headers", ", ".join(rule.headers))
            resp.set_header("Access-Control-Max-Age", str(rule.max_age_s))
        ctx.rule = _PREFLIGHT

    def process_response(
        self, req: falcon.Request, resp: falcon.Response, resource: object, req_succeeded: bool
    ) -> None:
        """Let a page of an allowed origin read the answer, errors included."""
        # PERF: `relay_small` of `make bench`: one look at all names is a third of one at each.
        if "relay-source" in resp._headers and "access-control-" in " ".join(resp._headers):
            # SEC: who may read is the audience's to say, whatever a unit or an upstream answered.
            for name in [n for n in resp._headers if n.startswith("access-control-")]:
                del resp._headers[name]
        origin = req.env.get("HTTP_ORIGIN")
        ctx: RequestContext = req.context.gateway
        if not origin or resp.status_code == 101:
            return
        if ctx.path in _OF_APPS:
            resp.append_header("Vary", "Origin")
            if _is_of_app(ctx.snapshot, origin):
                resp.set_header("Access-Control-Allow-Origin", origin)
            return
        audiences = own_audiences(ctx.snapshot, ctx.path) if ctx.route is None else ctx.route.audiences
        if (
            ctx.rule == _PREFLIGHT
            or not audiences
            or (ctx.route is not None and is_hidden_from(ctx.principal, ctx.route))
        ):
            return
        rule = _rule(ctx.snapshot, audiences, origin)
        if rule is None and ctx.route is not None and ctx.route.hidden:
            return
        resp.append_header("Vary", "Origin")
        if rule is not None:
            _allow(resp, origin, rule)
            resp.set_header("Access-Control-Expose-Headers", EXPOSED)


def own_audiences(snapshot: Snapshot, path: str) -> Collection[str] | None:
    """Whose pages may call one of the gateway's own resources, as the configuration says; None for any other path."""
    document = snapshot.document
    if path.startswith(OPENAPI_PATH):
        return document.audiences
    if path == ACCESS_LOG_PATH:
        roles: Collection[str] = document.audit.own_record
    elif path.startswith(SEARCH_PATH):
        roles = document.audit.readers
    elif path.startswith(BREAK_GLASS_PATH):
        rules = document.break_glass
        roles = () if rules is None else {*rules.roles, *rules.reviewers}
    else:
        return None
    return {document.roles[role].audience for role in roles}


def _is_of_app(snapshot: Snapshot, origin: str) -> bool:
    """May a page of this origin get tokens: does the audience of an app's role let it call?"""
    if snapshot.tokens is None:
        return False
    audiences = {snapshot.roles[role].audience for app in snapshot.tokens.apps.values() for role in app.roles}
    rules = [snapshot.audiences[name].cors for name in audiences]
    return any(rule is not None and origin in rule.origins for rule in rules)


def _preflight_of_app(snapshot: Snapshot, origin: str, resp: falcon.Response) -> None:
    """SEC: never with credentials: what these paths take stands in the form."""
    resp.status = 204
    resp.complete = True
    if _is_of_app(snapshot, origin):
        resp.set_header("Access-Control-Allow-Origin", origin)
        resp.set_header("Access-Control-Allow-Methods", "POST")
        resp.set_header("Access-Control-Allow-Headers", "content-type, dpop")
        resp.set_header("Access-Control-Max-Age", "600")


def _methods(snapshot: Snapshot, path: str, origin: str) -> list[str]:
    """Methods of a path that a page of this origin may know of."""
    return [
        method
        for method in snapshot.routes.allowed(path)
        if (found := snapshot.routes.match(method, path))
        and (not found[0].hidden or _rule(snapshot, found[0].audiences, origin))
    ]


def _rule(snapshot: Snapshot, audiences: Iterable[str], origin: str) -> CorsRule | None:
    """Of the first of these audiences that allows the origin."""
    for name in sorted(audiences):
        rule = snapshot.audiences[name].cors
        if rule is not None and (origin in rule.origins or (not rule.credentials and "*" in rule.origins)):
            return rule
    return None


def _allow(resp: falcon.Response, origin: str, rule: CorsRule) -> None:
    resp.set_header("Access-Control-Allow-Origin", "*" if "*" in rule.origins else origin)
    if rule.credentials:
        resp.set_header("Access-Control-Allow-Credentials", "true")

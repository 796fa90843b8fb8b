"""Cross-origin access for browser apps: what an audience allows, answered before identity (WHATWG Fetch)."""

from __future__ import annotations

import falcon

from gateway.config.model import Cors as CorsRule
from gateway.config.snapshot import Snapshot
from gateway.context import RequestContext
from gateway.errors import NotFound
from gateway.routing.model import Route

EXPOSED = "Retry-After, RateLimit, RateLimit-Policy, Relay-Source, X-Request-Id, WWW-Authenticate"


class Cors:
    """Middleware: answers preflights, and marks answers that an allowed origin's page may read."""

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
        match = snapshot.routes.match(method, ctx.path)
        if match is None and not snapshot.routes.allowed(ctx.path):
            raise NotFound()
        rule = _rule(snapshot, match[0], origin) if match else None
        if rule is None and match is not None and match[0].hidden:
            raise NotFound()
        resp.status = 204
        resp.complete = True
        if rule is not None and match is not None:
            _allow(resp, origin, rule)
            resp.set_header("Access-Control-Allow-Methods", ", ".join(snapshot.routes.allowed(ctx.path)))
            resp.set_header("Access-Control-Allow-Headers", ", ".join(rule.headers))
            resp.set_header("Access-Control-Max-Age", str(rule.max_age_s))
        ctx.rule = "cors:preflight"

    def process_response(
        self, req: falcon.Request, resp: falcon.Response, resource: object, req_succeeded: bool
    ) -> None:
        """Let a page of an allowed origin read the answer, errors included."""
        origin = req.env.get("HTTP_ORIGIN")
        if not origin or resp.status_code == 101:
            return
        ctx: RequestContext = req.context.gateway
        if ctx.route is None:
            return
        resp.append_header("Vary", "Origin")
        rule = _rule(ctx.snapshot, ctx.route, origin)
        if rule is not None:
            _allow(resp, origin, rule)
            resp.set_header("Access-Control-Expose-Headers", EXPOSED)


def _rule(snapshot: Snapshot, route: Route, origin: str) -> CorsRule | None:
    """The first audience of a route that allows the origin."""
    for name in sorted(route.audiences):
        rule = snapshot.audiences[name].cors
        if rule is not None and (origin in rule.origins or (not rule.credentials and "*" in rule.origins)):
            return rule
    return None


def _allow(resp: falcon.Response, origin: str, rule: CorsRule) -> None:
    resp.set_header("Access-Control-Allow-Origin", "*" if "*" in rule.origins else origin)
    if rule.credentials:
        resp.set_header("Access-Control-Allow-Credentials", "true")

"""A Falcon application with one upstream route, run by a real worker; the upstream's URL is in the environment."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import falcon

from gateway.config.model import Upstream
from gateway.context import RequestContext
from gateway.errors import GatewayError
from gateway.http.accounting import answer_error
from gateway.routing.model import Route, RouteKind, UpstreamAction
from gateway.upstream.pool import Pools
from gateway.upstream.resource import UpstreamResource

UPSTREAM = Upstream(endpoints=(os.environ["TEST_UPSTREAM"],))
ROUTE = Route(
    "r", "/{rest:path}", ("GET",), RouteKind.UPSTREAM, UpstreamAction("u", None), frozenset(), frozenset(), None,
    body_max_bytes=16_000_000,
)  # fmt: skip


HURRIED = replace(ROUTE, deadline_ms=300)


class Context:
    def process_request(self, req: Any, resp: Any) -> None:
        env = req.env
        ctx = RequestContext(
            env["caregate.request_id"], env["caregate.started_ns"], method=req.method, path=env["caregate.path"]
        )
        ctx.route = HURRIED if ctx.path == "/hurried" else ROUTE
        ctx.snapshot = SimpleNamespace(upstreams={"u": UPSTREAM}, realm="test")
        req.context.gateway = ctx


def on_error(req: Any, resp: Any, error: GatewayError, params: Any) -> None:
    answer_error(resp, req.context.gateway, error)


app: Any = falcon.App(middleware=[Context()])
app.add_sink(lambda req, resp: RESOURCE.on_request(req, resp), "/")
app.add_error_handler(GatewayError, on_error)
RESOURCE = UpstreamResource(Pools())
open(os.environ["TEST_NOTES"] + ".ready", "w").write(str(time.time()))  # noqa: SIM115

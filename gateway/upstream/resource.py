"""Type A answered by an HTTP service of the cloud: the request goes on, the response comes back, both streamed."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import falcon

from fastpath.upstream import AnswerReader
from gateway.bodies import Body, wait_until
from gateway.context import RequestContext, deadline_of
from gateway.errors import GatewayError, InternalError
from gateway.http.problems import reason
from gateway.routing.location import tell_places
from gateway.routing.model import Route, UpstreamAction
from gateway.routing.onward import refuse_content, refuse_override
from gateway.routing.target import forward_target
from gateway.upstream.exchange import SENT_WHOLE_BYTES, Exchange, Outgoing, outcome
from gateway.upstream.pool import Pools
from gateway.upstream.request import nominated, request_head

Count = Callable[[str, str], None]


def _uncounted(upstream: str, outcome: str) -> None:
    """No metrics."""


class UpstreamResource:
    """Answers every route whose action is an upstream.

    `count(upstream, outcome)` is called once for each exchange.
    """

    def __init__(self, pools: Pools, count: Count = _uncounted) -> None:
        self._pools = pools
        self._count = count

    def on_request(self, req: falcon.Request, resp: falcon.Response, **params: object) -> None:
        """Answer with what the upstream answers.

        Raises: UpstreamUnavailable, UpstreamUnreachable, UpstreamTimeout, UpstreamBroken; BodyTooLarge and the other
        errors of the caller's body.
        Yields to the hub: yes.
        """
        ctx: RequestContext = req.context.gateway
        route = ctx.route
        if route is None or not isinstance(route.action, UpstreamAction):
            raise InternalError()
        action = route.action
        name = action.upstream
        pool = self._pools.pool(name, ctx.snapshot.upstreams[name])
        began_ns = time.monotonic_ns()
        error: GatewayError | None = None
        exchange = None
        try:
            outgoing = _outgoing(req.env, ctx, route, action)
            deadline_ns = deadline_of(ctx, route)
            exchange = Exchange(pool, deadline_ns, route.response_max_bytes, req.env.get("caregate.watch"))
            answer = exchange.run(outgoing, began_ns)
            ctx.relay_source = "upstream"
            _answer(resp, ctx, exchange, answer)
            # PERF: `upstream_small`: asked here, where most have neither.
            if "location" in resp._headers or "content-location" in resp._headers:
                tell_places(resp, ctx, pool.hosts)
        except GatewayError as failure:
            error = failure
            raise
        finally:
            ctx.upstream_ns += time.monotonic_ns() - began_ns
            if exchange is not None:
                ctx.queue_ns = exchange.queue_ns
            self._count(name, outcome(error))


def _outgoing(environ: dict[str, Any], ctx: RequestContext, route: Route, action: UpstreamAction) -> Outgoing:
    """What to send; a short body is read first, so that a slow caller holds no connection to the upstream.

    Raises: BadRequest for another method or content that means nothing; BodyTooLarge and the other errors of the
    caller's body.
    """
    refuse_override(environ, ctx.method)
    target = forward_target(action.target, ctx)
    length: int | None = environ.get("caregate.content_length", _length(environ))
    refuse_content(ctx.method, length)
    body: Any = b""
    if length != 0:
        body = environ["wsgi.input"]
        body.limit(route.body_max_bytes)
        wait_until(body, deadline_of(ctx, route))
        if length is not None and length <= SENT_WHOLE_BYTES:
            body = body.read(length)
    return Outgoing(
        ctx.method,
        lambda host: request_head(environ, ctx, target, host, length),
        body,
        chunked=length is None,
    )


def _length(environ: dict[str, Any]) -> int:
    """Content-Length where another server than ours made the environ."""
    return int(environ.get("CONTENT_LENGTH") or 0)


@lru_cache(maxsize=1024)
def _status_line(status: int) -> str:
    return f"{status} {reason(status)}"


def _answer(resp: falcon.Response, ctx: RequestContext, exchange: Exchange, answer: AnswerReader) -> None:
    """Fill the response in; content that is not whole yet is streamed."""
    resp.status = _status_line(answer.status)
    _pass_fields(resp, answer)
    if ctx.method == "HEAD" or answer.status in (204, 304):
        if answer.content_length is not None:
            resp.content_length = answer.content_length
        elif ctx.method == "HEAD":
            resp.stream = iter(())  # or Falcon would announce a length of 0
        return
    if exchange.whole:
        resp.data = exchange.held
        return
    resp.stream = Body(exchange.pieces(), exchange.abandon)
    if answer.content_length is not None:
        resp.content_length = answer.content_length


def _pass_fields(resp: falcon.Response, answer: AnswerReader) -> None:
    fields = answer.fields
    if answer.connection is not None:
        for name in nominated(answer.connection):
            fields.pop(name, None)
    if "content-type" not in fields:
        # Falcon would call it JSON.
        fields["content-type"] = "application/octet-stream"
    fields["relay-source"] = "upstream"
    # PERF: `upstream_small` of `make bench`: the names are in lower case and the values checked, as Falcon keeps them.
    headers = resp._headers
    headers.update(fields)
    for cookie in answer.cookies or ():
        resp.append_header("set-cookie", cookie)

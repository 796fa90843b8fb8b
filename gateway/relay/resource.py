"""Routes answered by a unit: the request to its connection, the answer back, every failure as the relay table says."""

from __future__ import annotations

import enum
import time
from collections.abc import Iterator
from typing import Any, Final

import falcon

from gateway.bodies import Body as Transfer
from gateway.config.snapshot import CompiledUnit
from gateway.context import RequestContext, deadline_of
from gateway.errors import (
    ClientError,
    Delivery,
    RelayError,
    UnitResponseTooLarge,
    UnitTruncated,
    UnitUnknown,
)
from gateway.relay.dispatcher import Call, Dispatcher
from gateway.relay.exchange import Body, Exchange
from gateway.relay.failures import error_of
from gateway.relay.frames import Fields, ResetCode, Response
from gateway.relay.link import DROPPED
from gateway.relay.request import NO_BODY, RequestBody, build_request
from gateway.routing.location import tell_places
from gateway.routing.model import Route, UnitAction
from gateway.routing.onward import HOP_BY_HOP

HOLD_BYTES: Final = 65_536
"""Status and fields are held back until the answer is complete or this much is in hand: most losses are a clean 502."""

MAX_NAMES: Final = 1_024

_STARTED: Final = Delivery.RESPONSE_STARTED.value

ORIGIN_WIDE: Final = frozenset(
    {
        "alt-svc", "clear-site-data", "expect-ct", "nel", "public-key-pins", "public-key-pins-report-only", "report-to",
        "service-worker-allowed", "set-cookie2", "strict-transport-security",
    }
)  # fmt: skip
"""SEC: browsers keep them for the whole origin, which all units and the login page share: one unit could take HSTS
away, log everybody out, or have the addresses of all requests reported to itself.
"""
_REMOVED: Final = HOP_BY_HOP | ORIGIN_WIDE | {"content-length", "relay-source", "x-request-id", "set-cookie"}


class UnitResource:
    """Every method of every route of kind `unit`."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher

    def on_get(self, req: falcon.Request, resp: falcon.Response, **params: str) -> None:
        """Answer by the unit. Yields to the hub: yes. Raises: RelayError and what the request is at fault for."""
        ctx: RequestContext = req.context.gateway
        # PERF: Falcon keeps names in lower case; set_header checks what is a constant here.
        resp._headers["relay-source"] = "gateway"
        ctx.relay_source = "gateway"
        try:
            self._relay(ctx, req.env, resp)
        except RelayError as error:
            ctx.delivery = error.delivery.value
            raise
        except ClientError as error:
            ctx.delivery = str(error.members.setdefault("delivery", Delivery.NOT_DISPATCHED.value))
            raise

    on_head = on_post = on_put = on_patch = on_delete = on_options = on_get

    def _relay(self, ctx: RequestContext, env: dict[str, Any], resp: falcon.Response) -> None:
        route = ctx.route
        if route is None or not isinstance(route.action, UnitAction):
            raise TypeError("a route that no unit answers")
        unit = self._unit(ctx, route.action)
        request = build_request(ctx, route, route.action, unit, env)
        if request.idempotency is not None:
            ctx.keyed = self._dispatcher.keeps_keys(unit.id)
        length = request.length
        body: Body = NO_BODY if length == 0 else _body(ctx, route, env, length)
        begun_ns = time.monotonic_ns()
        call = Call(unit.id, request, body, deadline_of(ctx, route) / 1e9, env.get("caregate.watch"))
        try:
            exchange = self._dispatcher.dispatch(call)
            ctx.agent = getattr(exchange.link, "agent", "")
            try:
                self._answer(ctx, route, route.action, unit.id, exchange, resp)
            except BaseException as error:
                if isinstance(error, ClientError):
                    error.members["delivery"] = Delivery.RESPONSE_STARTED.value
                exchange.abandon()
                raise
        finally:
            now_ns = time.monotonic_ns()
            ctx.upstream_ns = now_ns - begun_ns
            ctx.queue_ns = call.queued_ns(begun_ns, now_ns)

    def _unit(self, ctx: RequestContext, action: UnitAction) -> CompiledUnit:
        name = action.unit if action.unit is not None else ctx.params[action.unit_param or ""]
        ctx.unit = name
        unit: CompiledUnit | None = ctx.snapshot.units.get(name)
        if unit is None:
            # SEC: an answer echoes no input; what no configuration knows goes into no answer, log or label.
            ctx.unit = None
            raise UnitUnknown("")
        if not unit.enabled:
            raise self._dispatcher.not_connected(name, why="disabled")
        return unit

    def _answer(
        self,
        ctx: RequestContext,
        route: Route,
        action: UnitAction,
        unit: str,
        exchange: Exchange,
        resp: falcon.Response,
    ) -> None:
        response = exchange.response
        if response is None:
            raise TypeError("an exchange without a head")
        ctx.unit_ns = response.upstream_ms * 1_000_000
        if response.length is not None and response.length > route.response_max_bytes and ctx.method != "HEAD":
            raise self._too_large(unit, exchange)
        most = route.response_max_bytes
        if exchange.complete and len(exchange.chunks) == 1:
            held = len(exchange.chunks[0])
        else:
            held = exchange.wait_for_bytes(min(HOLD_BYTES, most + 1))
        if held > most:
            raise self._too_large(unit, exchange)
        if exchange.failure is not None:
            # Nothing has been passed on: whatever was in hand, the answer is a clean failure.
            exchange.chunks.clear()
            raise error_of(unit, exchange.failure)
        self._write_head(response, action, resp)
        # PERF: `relay_small`: asked here, where most have neither.
        if "location" in resp._headers or "content-location" in resp._headers:
            tell_places(resp, ctx)
        ctx.relay_source = "unit"
        ctx.delivery = _STARTED
        self._write_body(ctx, route, unit, exchange, resp, response)

    def _too_large(self, unit: str, exchange: Exchange) -> UnitResponseTooLarge:
        exchange.cancel(ResetCode.TOO_LARGE, "response over the route's limit")
        return UnitResponseTooLarge(unit)

    def _write_head(self, response: Response, action: UnitAction, resp: falcon.Response) -> None:
        resp.status = response.status
        headers = resp._headers
        for name, value in _of_end(response.fields):
            fate = _FATES.get(name) or _fate(name)
            if fate is _Fate.PASSES:
                if name in headers:
                    value = f"{headers[name]}, {value}"
                headers[name] = value
            elif fate is _Fate.TYPE:
                headers[name] = value
            elif fate is _Fate.COOKIE and action.cookies:
                resp.append_header(name, value)
        if "content-type" not in headers:
            headers["content-type"] = "application/octet-stream"
        headers["relay-source"] = "unit"

    def _write_body(
        self,
        ctx: RequestContext,
        route: Route,
        unit: str,
        exchange: Exchange,
        resp: falcon.Response,
        response: Response,
    ) -> None:
        if exchange.complete:
            data = exchange.take_all()
            exchange.consumed(len(data))
            exchange.unwatch()
            if ctx.method == "HEAD" and response.length is not None:
                resp.content_length = response.length
            else:
                resp.data = data
            return
        resp.stream = Transfer(_pieces(ctx, unit, exchange, route.response_max_bytes), exchange.abandon)
        if response.length is not None:
            resp.content_length = response.length


def _of_end(fields: Fields) -> Fields:
    """Without what the unit's `connection` names; content-type and cookies have rules of their own."""
    for name, _ in fields:
        if name == "connection":
            break
    else:
        return fields
    named = {token.strip().lower() for name, value in fields if name == "connection" for token in value.split(",")}
    named -= {"content-type", "set-cookie"}
    return [(name, value) for name, value in fields if name not in named]


class _Fate(enum.Enum):
    """What becomes of a field of a unit's answer."""

    REMOVED = 1
    PASSES = 2
    TYPE = 3
    COOKIE = 4


_FATES: Final[dict[str, _Fate]] = {"content-type": _Fate.TYPE, "set-cookie": _Fate.COOKIE}
"""PERF: `relay_small`: by name, filled as they come; bounded by `_fate`."""


def _fate(name: str) -> _Fate:
    # SEC: who may read an answer across origins is the audience's rule, not the unit's.
    gone = name in _REMOVED or name.startswith(("x-caregate-", "access-control-"))
    fate = _Fate.REMOVED if gone else _Fate.PASSES
    if len(_FATES) < MAX_NAMES:
        _FATES[name] = fate
    return fate


def _pieces(ctx: RequestContext, unit: str, exchange: Exchange, left_bytes: int) -> Iterator[bytes]:
    """The body as it comes. Raises: UnitTruncated, UnitOverloaded, UnitResponseTooLarge, so that the transfer is cut.

    Yields to the hub: yes.
    """
    while (piece := exchange.read()) is not None:
        left_bytes -= len(piece)
        if left_bytes < 0:
            ctx.error = UnitResponseTooLarge(unit, delivery=Delivery.RESPONSE_STARTED)
            raise ctx.error
        yield piece
        # The worker asks for the next piece when its socket took this one.
        exchange.consumed(len(piece))
    if not exchange.complete:
        failure = exchange.failure
        if failure is not None and failure.code == DROPPED:
            ctx.error = error_of(unit, failure)
        else:
            ctx.error = UnitTruncated(unit)
        raise ctx.error


def _body(ctx: RequestContext, route: Route, env: dict[str, Any], length: int | None) -> RequestBody:
    return RequestBody(env["wsgi.input"], length, route.body_max_bytes, deadline_of(ctx, route))

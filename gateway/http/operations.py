"""The operations listener: metrics, health and status; on loopback by default, never on the public port."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable
from typing import Any

import falcon
import orjson
from greenlet import greenlet

from gateway.config.snapshot import SnapshotHolder
from gateway.context import RequestContext, new_request_id
from gateway.http.console import FILES, ConsoleFile, FleetStatus
from gateway.metrics import Metrics

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


OnError = Callable[[falcon.Request, falcon.Response, Exception, dict[str, Any]], None]


class _Identified:
    """Middleware: a request id, here as on the public listener."""

    def process_request(self, req: falcon.Request, resp: falcon.Response) -> None:
        env = req.env
        ctx = RequestContext(
            id=env.get("caregate.request_id") or new_request_id(),
            started_ns=env.get("caregate.started_ns") or time.monotonic_ns(),
            method=req.method,
        )
        req.context.gateway = ctx
        resp.set_header("X-Request-Id", ctx.id)


class _Metrics:
    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        resp.content_type = METRICS_TYPE
        resp.data = self._metrics.render()


class _Live:
    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        resp.content_type = falcon.MEDIA_JSON
        resp.data = b'{"status":"live"}'


class _Ready:
    """Ready is: what every request needs is there and the worker is not leaving; what is away is named, since when."""

    def __init__(self, state: Callable[[], dict[str, Any]]) -> None:
        self._state = state

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        state = self._state()
        ready = state.pop("ready")
        resp.status = 200 if ready else 503
        resp.content_type = falcon.MEDIA_JSON
        resp.data = orjson.dumps({"status": "ready" if ready else "not ready", **state})


def count_greenlets() -> int:
    """Greenlets of this process that have not ended.

    NOTE: looks at every object, some milliseconds: for one who asks, not for a scrape.
    """
    return sum(1 for one in gc.get_objects() if issubclass(type(one), greenlet) and not one.dead)


class _Status:
    def __init__(self, holder: SnapshotHolder, state: Callable[[], dict[str, Any]], units: Callable[[], Any]) -> None:
        self._holder = holder
        self._state = state
        self._units = units

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        snapshot = self._holder.current
        resp.content_type = falcon.MEDIA_JSON
        resp.data = orjson.dumps(
            {
                "worker": os.getpid(),
                "config": {"version": snapshot.version, "digest": snapshot.digest},
                **self._state(),
                "greenlets": count_greenlets(),
                "units": self._units(),
            },
            default=str,
        )


def create_operations(
    holder: SnapshotHolder,
    metrics: Metrics,
    state: Callable[[], dict[str, Any]],
    units: Callable[[], Any],
    on_error: OnError,
    fleet: FleetStatus | None = None,
) -> falcon.App[falcon.Request, falcon.Response]:
    """The operations application, the operators' page included.

    Shapes: `state()` -> {config_version, draining, ready, dependencies}; `units()` -> unit connections, JSON values.
    `on_error` answers what went wrong, as on the public listener.
    """
    app = falcon.App(middleware=[_Identified()])
    app.add_error_handler(Exception, on_error)
    app.add_error_handler(falcon.HTTPError, on_error)
    app.add_route("/metrics", _Metrics(metrics))
    app.add_route("/livez", _Live())
    app.add_route("/readyz", _Ready(state))
    app.add_route("/status", _Status(holder, state, units))
    if fleet is not None:
        app.add_route("/status/fleet", fleet)
    for path, (name, media_type) in FILES.items():
        app.add_route(path, ConsoleFile(name, media_type))
    return app

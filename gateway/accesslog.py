"""The access log: one JSON line a request, collected in memory and written in batches by one greenlet.

SEC: no path, no query, no subject; the route's template, the role and the token's id say enough.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime

import gevent
import orjson

from gateway.context import RequestContext

_FLUSH_INTERVAL_S = 0.1
_FLUSH_LINES = 512


class AccessLog:
    """Holds: lines not yet written, at most a tenth of a second's worth."""

    def __init__(self, fd: int, worker: int) -> None:
        self._fd = fd
        self._worker = worker
        self._lines: list[bytes] = []
        self._greenlet: gevent.Greenlet | None = None

    def start(self) -> None:
        """Start the greenlet that writes."""
        self._greenlet = gevent.spawn(self._run)

    def write(self, ctx: RequestContext, status: int, seconds: float) -> None:
        """Add a request's line."""
        if self._fd < 0:
            return
        route, principal, error = ctx.route, ctx.principal, ctx.error
        line: dict[str, object] = {
            "time": datetime.now(UTC),
            "event": "request",
            "request_id": ctx.id,
            "method": ctx.method if len(ctx.method) <= 16 else "other",
            "route": route.name if route is not None else None,
            "template": route.template if route is not None else None,
            "status": status,
            "ms": round(seconds * 1000, 3),
            "worker": self._worker,
        }
        if principal is not None:
            line["role"] = principal.role
            line["audience"] = principal.audience
            line["jti"] = principal.token_id
        if ctx.rule:
            line["rule"] = ctx.rule
        if error is not None:
            line["error"] = error.code
            line["origin"] = error.origin.value
        if ctx.unit is not None:
            line["unit"] = ctx.unit
            line["delivery"] = ctx.delivery
            line["relay_source"] = ctx.relay_source
        if ctx.snapshot is not None:
            line["config_version"] = ctx.snapshot.version
        self._lines.append(orjson.dumps(line, option=orjson.OPT_UTC_Z | orjson.OPT_APPEND_NEWLINE))
        if len(self._lines) >= _FLUSH_LINES:
            self.flush()

    def flush(self) -> None:
        """Write what has been collected."""
        lines, self._lines = self._lines, []
        data = memoryview(b"".join(lines))
        while data:
            try:
                data = data[os.write(self._fd, data) :]
            except OSError:
                return

    def stop(self) -> None:
        """Write the rest and end the greenlet."""
        if self._greenlet is not None:
            self._greenlet.kill()
        self.flush()

    def _run(self) -> None:
        while True:
            gevent.sleep(_FLUSH_INTERVAL_S)
            if self._lines:
                self.flush()

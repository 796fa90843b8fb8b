"""The access log: one JSON line a request, collected in memory and written in batches by one greenlet.

SEC: no path, no query, no subject; the route's template, the role and the token's id say enough.
"""

from __future__ import annotations

import os
import time

import gevent
import orjson

from gateway.context import RequestContext

_FLUSH_INTERVAL_S = 0.1
_FLUSH_LINES = 512

Entry = tuple[RequestContext, int, float, float]
"""A finished request: its context, status, when it finished (s since 1970) and how long it took (s)."""


class AccessLog:
    """Holds: requests not yet written, at most a tenth of a second's worth.

    PERF: `policy_rs256` of `make bench`, caregate-logged: lines are made in batches, off the request's path.
    """

    def __init__(self, fd: int, worker: int) -> None:
        self._fd = fd
        self._worker = worker
        self._entries: list[Entry] = []
        self._greenlet: gevent.Greenlet | None = None

    def start(self) -> None:
        """Start the greenlet that writes."""
        self._greenlet = gevent.spawn(self._run)

    def write(self, ctx: RequestContext, status: int, seconds: float) -> None:
        """Add a request that nothing will change any more."""
        if self._fd < 0:
            return
        self._entries.append((ctx, status, time.time(), seconds))
        if len(self._entries) >= _FLUSH_LINES:
            self.flush()

    def flush(self) -> None:
        """Write what has been collected."""
        entries, self._entries = self._entries, []
        data = memoryview(b"".join([_line(entry, self._worker) for entry in entries]))
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
            if self._entries:
                self.flush()


def _line(entry: Entry, worker: int) -> bytes:
    ctx, status, finished_s, seconds = entry
    route, principal, error = ctx.route, ctx.principal, ctx.error
    line: dict[str, object] = {
        "time": _timestamp(finished_s),
        "event": "request",
        "request_id": ctx.id,
        "method": ctx.method if len(ctx.method) <= 16 else "other",
        "route": route.name if route is not None else None,
        "template": route.template if route is not None else None,
        "status": status,
        "ms": round(seconds * 1000, 3),
        "worker": worker,
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
    return orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)


_second = (0, "")


def _timestamp(moment_s: float) -> str:
    """RFC 3339 in UTC with microseconds; the seconds are formatted once each."""
    global _second
    whole, micros = divmod(int(moment_s * 1_000_000), 1_000_000)
    if whole != _second[0]:
        _second = (whole, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole)))
    return f"{_second[1]}.{micros:06d}Z"

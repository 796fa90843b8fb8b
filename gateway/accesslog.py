"""The access log: one JSON line a request, collected in memory and written in batches by one greenlet."""

from __future__ import annotations

import os
import time

import gevent

from fastpath.books import Lines
from gateway.context import RequestContext
from gateway.routing.model import LEVELS, Logging

DEFAULT = Logging(b"info", LEVELS["info"], 1)
_FLUSH_INTERVAL_S = 0.1
_FLUSH_BYTES = 131_072


class AccessLog:
    """Requests at least of a level; of a route's requests one of so many, of its failures all.

    Holds: lines not yet written, at most a tenth of a second's worth.
    """

    def __init__(self, fd: int, worker: int, level: str = "info") -> None:
        self._fd = fd
        self._lines = Lines(worker, second)
        self._greenlet: gevent.Greenlet | None = None
        self._seen: dict[str, int] = {}
        self.least = LEVELS[level]
        """The rank of the least level that is written; may be set at any time."""

    def start(self) -> None:
        """Start the greenlet that writes."""
        self._greenlet = gevent.spawn(self._run)

    def write(self, ctx: RequestContext, status: int, took_ns: int) -> None:
        """Add a finished request."""
        if self._fd < 0:
            return
        route = ctx.route
        logging = DEFAULT if route is None or route.logging is None else route.logging
        if status >= 500:
            self._lines.add(ctx, status, took_ns // 1000, time.time(), b"error")
        elif logging.rank >= self.least and (logging.sample == 1 or self._is_due(ctx, logging.sample)):
            self._lines.add(ctx, status, took_ns // 1000, time.time(), logging.level, logging.sample)
        if self._lines.size >= _FLUSH_BYTES:
            self.flush()

    def _is_due(self, ctx: RequestContext, sample: int) -> bool:
        """The first of every so many requests of a route."""
        assert ctx.route is not None  # noqa: S101
        seen = self._seen.get(ctx.route.name, 0)
        self._seen[ctx.route.name] = (seen + 1) % sample
        return seen == 0

    def flush(self) -> None:
        """Write what has been collected."""
        data = memoryview(self._lines.take())
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
            if self._lines.size:
                self.flush()


def second(whole_s: int) -> str:
    """RFC 3339 in UTC up to the seconds."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole_s))

"""The access log: one JSON line a request, collected in memory and written in batches by one greenlet."""

from __future__ import annotations

import os
import time

import gevent

from fastpath.books import Lines
from gateway.context import RequestContext

_FLUSH_INTERVAL_S = 0.1
_FLUSH_BYTES = 131_072


class AccessLog:
    """Holds: lines not yet written, at most a tenth of a second's worth."""

    def __init__(self, fd: int, worker: int) -> None:
        self._fd = fd
        self._lines = Lines(worker, second)
        self._greenlet: gevent.Greenlet | None = None

    def start(self) -> None:
        """Start the greenlet that writes."""
        self._greenlet = gevent.spawn(self._run)

    def write(self, ctx: RequestContext, status: int, took_ns: int) -> None:
        """Add a finished request."""
        if self._fd < 0:
            return
        self._lines.add(ctx, status, took_ns // 1000, time.time())
        if self._lines.size >= _FLUSH_BYTES:
            self.flush()

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

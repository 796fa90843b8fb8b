"""The access log: one JSON line a request, collected in memory and written in batches by one greenlet."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import gevent

from fastpath.books import Lines
from gateway.context import RequestContext
from gateway.routing.model import LEVELS

_FLUSH_INTERVAL_S = 0.1
_FLUSH_BYTES = 131_072


class AccessLog:
    """Requests at least of a level; of a route's requests one of so many, of its failures all.

    Holds: lines not yet written, at most a tenth of a second's worth.
    """

    def __init__(self, fd: int, worker: int, level: str = "info") -> None:
        self._fd = fd
        self._lines = Lines(
            worker, second, clock_s=time.time, usual=LEVELS["info"], least=LEVELS[level],
            most=_FLUSH_BYTES, full=self.flush,
        )  # fmt: skip
        self.write: Callable[[RequestContext, int, int], None] = self._lines.write if fd >= 0 else _nowhere
        """Add a finished request, by its answer's status and the ns it took."""
        self._greenlet: gevent.Greenlet | None = None

    def start(self) -> None:
        """Start the greenlet that writes."""
        self._greenlet = gevent.spawn(self._run)

    @property
    def least(self) -> int:
        """The rank of the least level that is written; may be set at any time."""
        return self._lines.least

    @least.setter
    def least(self, rank: int) -> None:
        self._lines.least = rank

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


def _nowhere(ctx: RequestContext, status: int, took_ns: int) -> None:
    """There is no file to write to."""


def second(whole_s: int) -> str:
    """RFC 3339 in UTC up to the seconds."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole_s))

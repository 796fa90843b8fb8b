"""The access log: one JSON line a request, collected in memory and written in batches by one greenlet."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import gevent

from fastpath.books import Lines
from gateway.context import RequestContext
from gateway.outlet import outlet
from gateway.routing.model import LEVELS

_FLUSH_INTERVAL_S = 0.1
_FLUSH_BYTES = 131_072
_LAST_S = 1.0


class AccessLog:
    """Requests at least of a level; of a route's requests one of so many, of its failures all.

    Holds: lines not yet written, at most a tenth of a second's worth, or what its reader does not take.
    """

    def __init__(
        self, fd: int, worker: int, level: str = "info", lost: Callable[[int], None] = lambda lines: None
    ) -> None:
        """Shapes: `lost(lines)` hears of lines that found no room while nobody read."""
        self._fd = fd
        self._outlet = outlet(fd, lost=lost) if fd >= 0 else None
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
        """Write what has been collected, as far as that is taken."""
        if self._outlet is not None:
            self._outlet.write(self._lines.take())
            return
        data = memoryview(self._lines.take())
        while data:
            try:
                data = data[os.write(self._fd, data) :]
            except OSError:
                return

    def stop(self) -> None:
        """Write the rest and end the greenlet. Yields to the hub: for a second at most."""
        if self._greenlet is not None:
            self._greenlet.kill()
        self.flush()
        until_s = time.monotonic() + _LAST_S
        while self._outlet is not None and self._outlet.waiting and time.monotonic() < until_s:
            gevent.sleep(0.01)
            self.flush()

    def _run(self) -> None:
        while True:
            gevent.sleep(_FLUSH_INTERVAL_S)
            if self._lines.size or self._outlet is not None:
                self.flush()


def _nowhere(ctx: RequestContext, status: int, took_ns: int) -> None:
    """There is no file to write to."""


def second(whole_s: int) -> str:
    """RFC 3339 in UTC up to the seconds."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole_s))

"""How the agent is, for a watchdog: a small file that is always whole, and the service manager."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path

import gevent
import orjson

from gateway.agent.log import timestamp
from gateway.agent.notify import Notifier

BEAT_S = 10.0
"""The file is written at least so often; one that is much older belongs to an agent that hangs or is gone."""


class HealthState(StrEnum):
    STARTING = "starting"
    CONNECTED = "connected"
    DEGRADED = "degraded"
    """Connected, with fewer connections than wanted."""
    DISCONNECTED = "disconnected"
    DRAINING = "draining"
    STOPPED = "stopped"


class Health:
    """Shapes: the file is a JSON object {state, since, updated, connections, wanted, last_error, last_error_at, pid}.

    Units: `now` gives seconds since 1970.
    """

    def __init__(
        self, path: Path | None = None, notifier: Notifier | None = None, now: Callable[[], float] = time.time
    ) -> None:
        self._path = path
        self._notifier = notifier or Notifier()
        self._now = now
        self._state = HealthState.STARTING
        self._since_s = now()
        self._up = 0
        self._wanted = 0
        self._last_error: str | None = None
        self._last_error_s: float | None = None

    def tell(self, state: HealthState, *, up: int = 0, wanted: int | None = None) -> None:
        """The state now; the file is written if anything changed."""
        wanted = self._wanted if wanted is None else wanted
        if state != self._state:
            self._since_s = self._now()
        self._state, self._up, self._wanted = state, up, wanted
        self._write()
        stopping = ("STOPPING=1",) if state is HealthState.DRAINING else ()
        self._notifier.send(*stopping, f"STATUS={state.value}, {up} of {wanted} connections")

    def fault(self, reason: str) -> None:
        """Remember why a connection failed or ended."""
        self._last_error, self._last_error_s = reason, self._now()

    def ready(self) -> None:
        """The service manager need not wait for the gateway: dialling goes on for as long as it takes."""
        self._notifier.send("READY=1")

    def keep_beating(self) -> None:
        """For ever: a hub that is blocked does not beat, and the watchdog restarts the agent. Yields to the hub."""
        every_s = min(BEAT_S, self._notifier.watchdog_s / 2 or BEAT_S)
        while True:
            self._notifier.send("WATCHDOG=1")
            gevent.sleep(every_s)
            self._write()

    def _write(self) -> None:
        if self._path is None:
            return
        record = {
            "state": self._state.value,
            "since": timestamp(self._since_s),
            "updated": timestamp(self._now()),
            "connections": self._up,
            "wanted": self._wanted,
            "last_error": self._last_error,
            "last_error_at": None if self._last_error_s is None else timestamp(self._last_error_s),
            "pid": os.getpid(),
        }
        fresh = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        with contextlib.suppress(OSError):  # a full disk must not stop the relay; an old file tells of it
            fresh.write_bytes(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))
            fresh.replace(self._path)

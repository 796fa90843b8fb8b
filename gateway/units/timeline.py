"""What happens to units, on its way to the database: collected in memory, written in batches, never waited for."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

import gevent
import orjson
import structlog

from gateway.errors import GatewayError

FLUSH_S: Final = 0.25
RETRY_S: Final = 1.0
HEARTBEAT_S: Final = 30.0
"""How exact `last_seen` is after a gateway that was killed."""
BATCH: Final = 500
MAX_EVENTS: Final = 10_000
WRITE_TIMEOUT_S: Final = 3.0
STOP_S: Final = 2.0
_KINDS: Final = {"connection.up": "up", "connection.down": "down", "connection.lost": "down"}

log = structlog.get_logger()


class Timeline:
    """Holds: at most 10,000 events, and a moment for each unit and key.

    Shapes: `write(document, timeout_s)` as store.units.UnitStore.write, may raise anything; `held()` the units this
    worker holds; `count(outcome, number)` counts written, dropped and refused events.
    """

    def __init__(
        self,
        write: Callable[[bytes, float], None],
        *,
        held: Callable[[], Iterable[str]],
        count: Callable[[str, int], None],
        node: str,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._write = write
        self._held = held
        self._count = count
        self._node = node
        self._now = now
        self._events: deque[dict[str, object]] = deque()
        self._presence: dict[str, tuple[float, str]] = {}
        self._used: dict[str, float] = {}
        self._beat_s = 0.0
        self._silent = False
        self._greenlet: gevent.Greenlet | None = None

    def observe(self, event: str, unit: str, details: dict[str, object]) -> None:
        """Take in what the relay saw, see relay.registry.Watcher."""
        now_s = self._now()
        kind = _KINDS.get(event)
        if kind is not None:
            self._add(kind, unit, now_s, details)
        if event == "connection.up":
            self._presence[unit] = (now_s, "")
        elif event == "unit.down":
            self._presence[unit] = (now_s, str(details.get("why", ""))[:64])

    def used(self, kid: str) -> None:
        """A key signed a token that was accepted."""
        self._used[kid] = self._now()

    def _add(self, kind: str, unit: str, now_s: float, details: dict[str, object]) -> None:
        if len(self._events) >= MAX_EVENTS:
            self._count("dropped", 1)
            return
        event: dict[str, object] = {"unit": unit, "at_s": now_s, "kind": kind, "node": self._node}
        for name in ("why", "conn", "kid", "agent"):
            event[name] = str(details.get(name, ""))[:128].replace("\0", "")
        self._events.append(event)

    # --- writing

    def start(self) -> None:
        self._greenlet = gevent.spawn(self._run)

    def stop(self) -> None:
        """Write what is left, for two seconds at most. Yields to the hub: yes."""
        if self._greenlet is not None:
            self._greenlet.kill()
        with gevent.Timeout(STOP_S, False):
            while self.waiting and self.flush():
                pass

    @property
    def waiting(self) -> int:
        """Rows that are not written yet."""
        return len(self._events) + len(self._presence) + len(self._used)

    def _run(self) -> None:
        while True:
            self._heartbeat()
            written = not self.waiting or self.flush()
            gevent.sleep(FLUSH_S if written else RETRY_S)

    def _heartbeat(self) -> None:
        now_s = self._now()
        if now_s < self._beat_s:
            return
        self._beat_s = now_s + HEARTBEAT_S
        for unit in self._held():
            self._presence[unit] = (now_s, "")

    def flush(self) -> bool:
        """Write one batch; False if that failed, and what it held waits again. Yields to the hub: yes."""
        events = [self._events.popleft() for _ in range(min(BATCH, len(self._events)))]
        presence = {unit: self._presence.pop(unit) for unit in list(self._presence)[:BATCH]}
        used = {kid: self._used.pop(kid) for kid in list(self._used)[:BATCH]}
        document = orjson.dumps(
            {
                "events": events,
                "presence": [{"unit": unit, "at_s": at_s, "why": why} for unit, (at_s, why) in presence.items()],
                "used": [{"kid": kid, "at_s": at_s} for kid, at_s in used.items()],
            }
        )
        try:
            self._write(document, WRITE_TIMEOUT_S)
        except BaseException as error:
            self._events.extendleft(reversed(events))
            self._presence = {**presence, **self._presence}
            self._used = {**used, **self._used}
            if not isinstance(error, Exception):
                raise
            self._note_failure(error)
            return False
        self._silent = False
        self._count("written", len(events))
        return True

    def _note_failure(self, error: Exception) -> None:
        if not self._silent:
            reason = error.code if isinstance(error, GatewayError) else str(error)[:64]
            log.warning("the units' timeline cannot be written; it waits", reason=reason)
        self._silent = True

"""What is looked at, not counted: the state of units, upstreams, audit and configuration, as gauges."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Container, Iterable

import gevent

from gateway.audit.trail import AuditTrail
from gateway.metrics import Metrics
from gateway.relay.service import Relay
from gateway.units.roster import Roster
from gateway.upstream.pool import Pools

log = logging.getLogger("caregate.gauges")

EVERY_S = 5.0
"""PERF: `make fleet`: a look at 5,000 units takes about two milliseconds."""

Look = Callable[[Metrics], None]


class Gauges:
    """One greenlet that lets each look set its gauges, every few seconds."""

    def __init__(self, metrics: Metrics, looks: Iterable[Look], every_s: float = EVERY_S) -> None:
        self._metrics = metrics
        self._looks = tuple(looks)
        self._every_s = every_s
        self._greenlet: gevent.Greenlet | None = None

    def start(self) -> None:
        self._greenlet = gevent.spawn(self._run)

    def stop(self) -> None:
        if self._greenlet is not None:
            self._greenlet.kill()

    def look(self) -> None:
        """Set all gauges; one look that fails does not keep the others from theirs."""
        for one in self._looks:
            try:
                one(self._metrics)
            except Exception:
                log.exception("a gauge could not be set")

    def _run(self) -> None:
        while True:
            self.look()
            gevent.sleep(self._every_s)


class UnitsLook:
    """How many units should be connected and are not; every worker of a machine knows of all."""

    def __init__(self, relay: Relay, roster: Roster, buffer_bytes: int) -> None:
        """Units: `buffer_bytes` bytes of bodies that a worker may hold."""
        self._relay = relay
        self._roster = roster
        self._buffer_bytes = buffer_bytes

    def __call__(self, metrics: Metrics) -> None:
        registry = self._relay.registry
        enabled = [unit.id for unit in self._relay.known() if unit.enabled]
        metrics.set("caregate_units", (), len(enabled))
        metrics.set("caregate_units_away", (), sum(1 for unit in enabled if not registry.is_connected(unit)))
        metrics.set("caregate_relay_buffer_ratio", (), registry.buffers.held_bytes() / self._buffer_bytes)
        metrics.set("caregate_unit_key_oldest_age_seconds", (), self._roster.oldest_key_age_s())


class UpstreamsLook:
    """Whose breaker is open, of the upstreams that are configured."""

    def __init__(self, pools: Pools, configured: Callable[[], Container[str]]) -> None:
        self._pools = pools
        self._configured = configured

    def __call__(self, metrics: Metrics) -> None:
        configured = self._configured()
        for name, is_open in self._pools.breakers():
            metrics.set("caregate_upstream_breaker_open", (name,), float(is_open and name in configured))


class AuditLook:
    """How long events have waited for the database, and how much of its room the spool has taken.

    Units: the lag is the age of the oldest look at which something waited that still does; seconds.
    """

    def __init__(self, audit: AuditTrail, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._audit = audit
        self._clock_s = clock_s
        self._marks: deque[tuple[float, int]] = deque()

    def __call__(self, metrics: Metrics) -> None:
        now_s = self._clock_s()
        appended, shipped, filled = self._audit.progress()
        self._marks.append((now_s, appended))
        while self._marks and self._marks[0][1] <= shipped:
            self._marks.popleft()
        metrics.set("caregate_audit_lag_seconds", (), now_s - self._marks[0][0] if self._marks else 0.0)
        metrics.set("caregate_audit_spool_ratio", (), filled)

"""A fleet of units in one process: real WebSocket connections through the relay protocol, each answering for its unit.

Run: `python -m loadtests.fleet --plan PLAN [--connections 2] [--report FILE]`; SIGTERM or Ctrl-C ends it, and the last
line is what it counted, as JSON.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gevent
import orjson
from gevent.event import Event

from gateway.agent.backoff import Backoff
from gateway.agent.handshake import HandshakeRefused
from gateway.agent.identity import load_identity
from gateway.agent.settings import AgentSettings, BadSettings, parse_gateway
from loadtests.measure import write_report
from loadtests.plan import Plan, read_plan
from loadtests.unit_link import LinkLost, Stopping, UnitLink

DIALS_PER_S = 200
"""The fleet's first dials are spread at this rate, as units that start at different times are."""
REFUSED_WAIT_S = 60.0
"""After 401, 403 or 404 the gateway is left alone for so long (protocol page)."""
STABLE_AFTER_S = 10.0
STOP_S = 5.0
REPORT_EVERY_S = 0.5


@dataclass(slots=True)
class Counts:
    """`up` is how many connections each unit has now; the rest only grows."""

    up: Counter[str] = field(default_factory=Counter)
    requests: int = 0
    dials: int = 0
    lost: int = 0
    moved: int = 0
    refused: Counter[str] = field(default_factory=Counter)

    def report(self, units: int) -> dict[str, Any]:
        """Shapes: `connected` counts units, `connections` their connections."""
        return {
            "units": units,
            "connected": sum(1 for count in self.up.values() if count > 0),
            "connections": sum(self.up.values()),
            "requests": self.requests,
            "dials": self.dials,
            "lost": self.lost,
            "moved": self.moved,
            "refused": dict(self.refused),
        }


class Seat:
    """One connection of one unit, kept up: dials, serves, dials again."""

    def __init__(self, settings: AgentSettings, index: int, counts: Counts, instance: str) -> None:
        self._settings = settings
        self._index = index
        self._counts = counts
        self._instance = instance
        self._backoff = Backoff()
        self._last_close: str | None = None

    def keep(self, delay_s: float) -> None:
        """Yields to the hub: until it is killed with Stopping."""
        try:
            while True:
                gevent.sleep(delay_s)
                delay_s = self.serve_once()
        except Stopping:
            return

    def serve_once(self) -> float:
        """One connection from dial to end. Returns how long to wait before the next, in seconds."""
        self._counts.dials += 1
        started_s = time.monotonic()
        link = UnitLink(self._settings, self._index, self._instance, self._last_close, self._answered)
        unit = self._settings.identity.unit
        try:
            link.open()
        except HandshakeRefused as refusal:
            self._counts.refused[str(refusal.status)] += 1
            return self._after_refusal(refusal)
        except LinkLost as lost:
            self._counts.refused[str(lost)] += 1
            return self._backoff.after_failure()
        self._counts.up[unit] += 1
        try:
            link.serve()
        finally:
            self._counts.up[unit] -= 1
            link.close()
        return self._after_end(link, time.monotonic() - started_s)

    def _answered(self) -> None:
        self._counts.requests += 1

    def _after_refusal(self, refusal: HandshakeRefused) -> float:
        if refusal.status in (401, 403, 404):
            return self._backoff.after_refusal(REFUSED_WAIT_S)
        if refusal.retry_after_s is not None:
            return self._backoff.after_refusal(refusal.retry_after_s)
        return self._backoff.after_failure()

    def _after_end(self, link: UnitLink, lived_s: float) -> float:
        self._last_close = link.ended
        if link.moved_to is not None:
            self._counts.moved += 1
            return self._backoff.after_goaway(*link.moved_to)
        self._counts.lost += 1
        if lived_s >= STABLE_AFTER_S:
            self._backoff.succeeded()
        return self._backoff.after_failure()


class Fleet:
    """All units of a plan."""

    def __init__(self, plan: Plan, connections: int) -> None:
        """Raises: OSError, BadKey for a unit's key; BadSettings for the gateway's address."""
        self.counts = Counts()
        self.units = len(plan.units)
        self._seats = [
            Seat(settings, index, self.counts, f"{settings.identity.unit}-{os.getpid()}")
            for settings in _settings(plan)
            for index in range(connections)
        ]
        self._greenlets: list[gevent.Greenlet[..., None]] = []

    def start(self) -> None:
        """Begin to dial."""
        for number, seat in enumerate(self._seats):
            self._greenlets.append(gevent.spawn(seat.keep, (number + random.random()) / DIALS_PER_S))

    def stop(self) -> None:
        """Each connection says good-bye. Yields to the hub: for STOP_S at most."""
        gevent.killall(self._greenlets, Stopping, timeout=STOP_S)

    def report(self) -> dict[str, Any]:
        return self.counts.report(self.units)


def _settings(plan: Plan) -> list[AgentSettings]:
    endpoint = parse_gateway(plan.gateway)
    return [
        AgentSettings(gateway=endpoint, identity=load_identity(unit.id, None, Path(unit.key))) for unit in plan.units
    ]


def _watch(fleet: Fleet, stop: Event, report: Path | None, tell: Callable[[str], None]) -> None:
    """Report until told to stop; a line only when something changed."""
    told = ""
    while not stop.wait(REPORT_EVERY_S):
        now = fleet.report()
        if report is not None:
            write_report(report, now)
        line = f"{now['connected']}/{now['units']} units connected, {now['requests']} requests, {now['lost']} lost"
        if line != told:
            tell(line)
            told = line


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m loadtests.fleet", description=__doc__)
    parser.add_argument("--plan", type=Path, required=True, help="the plan with the units and their keys")
    parser.add_argument("--connections", type=int, choices=(1, 2, 3, 4), default=1, help="of each unit")
    parser.add_argument("--report", type=Path, help="JSON file with the counts, renewed twice a second")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Keep the fleet connected until a signal."""
    options = _parse(argv)
    try:
        fleet = Fleet(read_plan(options.plan), options.connections)
    except (OSError, ValueError, KeyError, TypeError) as error:
        detail = error if isinstance(error, (OSError, BadSettings)) else type(error).__name__
        print(f"fleet: the plan cannot be used: {detail}", file=sys.stderr)
        return 2
    stop = Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        gevent.signal_handler(number, stop.set)
    fleet.start()
    _watch(fleet, stop, options.report, lambda line: print(line, flush=True))
    last = fleet.report()
    fleet.stop()
    if options.report is not None:
        write_report(options.report, last)
    print(orjson.dumps(last).decode(), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

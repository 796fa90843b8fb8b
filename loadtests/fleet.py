"""A fleet of units in one process: real WebSocket connections through the relay protocol, each answering for its unit.

Run: `python -m loadtests.fleet --plan PLAN [--connections 2] [--share 0/4] [--report FILE] [--journal FILE]`; SIGTERM
or Ctrl-C ends it, and the last line is what it counted, as JSON. The journal gets a line of each POST that was run.
With `--hold` it dials when it gets SIGUSR1, with tokens that were signed before: each real agent signs its own on a
machine of its own.
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
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

DIALS_PER_S = 200.0
"""The fleet's first dials are spread at this rate, as units that start at different times are."""
REFUSED_WAIT_S = 60.0
"""After 401, 403 or 404 the gateway is left alone for so long (protocol page)."""
STABLE_AFTER_S = 10.0
STOP_S = 5.0
REPORT_EVERY_S = 0.5
HOLD_LOOK_S = 0.5


@dataclass(slots=True)
class Counts:
    """`up` is how many connections each unit has now that were not told to move; the rest only grows.

    Units: `first_dial_s`, `whole_s` seconds of time.monotonic; `whole_s`: since when all seats are up, 0 if not.
    `first_cpu_s`, `whole_cpu_s`: CPU seconds of this process, at the first dial and when all were up the first time.
    Shapes: `posts` are the targets of the POSTs that were run, in their order.
    """

    seats: int = 0
    live: int = 0
    first_dial_s: float = 0.0
    whole_s: float = 0.0
    first_cpu_s: float = 0.0
    whole_cpu_s: float = 0.0
    posts: list[str] = field(default_factory=list)
    up: Counter[str] = field(default_factory=Counter)
    requests: int = 0
    dials: int = 0
    lost: int = 0
    moved: int = 0
    refused: Counter[str] = field(default_factory=Counter)

    def came(self, unit: str) -> None:
        self.up[unit] += 1
        self.live += 1
        if self.live == self.seats:
            self.whole_s = time.monotonic()
            self.whole_cpu_s = self.whole_cpu_s or time.process_time()

    def dialled(self) -> None:
        self.dials += 1
        if not self.first_dial_s:
            self.first_dial_s, self.first_cpu_s = time.monotonic(), time.process_time()

    def went(self, unit: str) -> None:
        self.up[unit] -= 1
        self.live -= 1
        self.whole_s = 0.0

    def answered(self, method: str, target: str) -> None:
        self.requests += 1
        if method == "POST":
            self.posts.append(target)

    def report(self, units: int) -> dict[str, Any]:
        """Shapes: `connected` counts units, `connections` their connections."""
        return {
            "units": units,
            "connected": sum(1 for count in self.up.values() if count > 0),
            "connections": self.live,
            "first_dial_s": self.first_dial_s,
            "whole_s": self.whole_s,
            "dial_cpu_s": max(0.0, self.whole_cpu_s - self.first_cpu_s),
            "requests": self.requests,
            "dials": self.dials,
            "lost": self.lost,
            "moved": self.moved,
            "refused": dict(self.refused),
        }


class Seat:
    """One connection of one unit, kept up: dials, serves, dials again; moves before its old connection ends."""

    __slots__ = ("_backoff", "_counts", "_index", "_instance", "_last_close", "_old", "_settings", "_token")

    def __init__(self, settings: AgentSettings, index: int, counts: Counts, instance: str) -> None:
        self._settings = settings
        self._index = index
        self._counts = counts
        self._instance = instance
        self._backoff = Backoff()
        self._last_close: str | None = None
        self._old: UnitLink | None = None
        self._token: str | None = None

    def sign_ahead(self) -> None:
        """The token of the first dial."""
        self._token = self._settings.identity.token(time.time())

    def keep(self, delay_s: float) -> None:
        """Yields to the hub: until it is killed with Stopping."""
        try:
            while True:
                gevent.sleep(delay_s)
                delay_s = self.serve_once()
        except Stopping:
            return

    def serve_once(self) -> float:
        """One connection from dial to its end or its move. Returns how long to wait before the next, in seconds."""
        counts, unit = self._counts, self._settings.identity.unit
        counts.dialled()
        started_s = time.monotonic()
        token, self._token = self._token, None
        link = UnitLink(self._settings, self._index, self._instance, self._last_close, counts.answered, token)
        try:
            link.open()
        except HandshakeRefused as refusal:
            counts.refused[str(refusal.status)] += 1
            return self._after_refusal(refusal)
        except LinkLost as lost:
            counts.refused[str(lost)] += 1
            return self._backoff.after_failure()
        counts.came(unit)
        self._leave_old()
        moves = False
        try:
            moves = link.serve()
        finally:
            counts.went(unit)
            if not moves:
                link.close()
        if moves:
            self._old = link
            gevent.spawn(_serve_on, link)
        return self._after_end(link, time.monotonic() - started_s)

    def _leave_old(self) -> None:
        old, self._old = self._old, None
        if old is not None:
            old.leave()

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


def _serve_on(link: UnitLink) -> None:
    """Until the connection that moved has ended."""
    try:
        link.serve()
    except Stopping:
        pass
    finally:
        link.close()


class Fleet:
    """All units of a plan, or a share of them."""

    def __init__(
        self, plan: Plan, connections: int, share: tuple[int, int] = (0, 1), dials_per_s: float = DIALS_PER_S
    ) -> None:
        """Shapes: `share` is (number from 0, of how many).

        Raises: OSError, BadKey for a unit's key; BadSettings for the gateway's address.
        """
        self.counts = Counts()
        self._dials_per_s = dials_per_s
        plan = replace(plan, units=plan.units[share[0] :: share[1]])
        self.units = len(plan.units)
        self._seats = [
            Seat(settings, index, self.counts, f"{settings.identity.unit}-{os.getpid()}")
            for settings in _settings(plan)
            for index in range(connections)
        ]
        self.counts.seats = len(self._seats)
        self._greenlets: list[gevent.Greenlet[..., None]] = []

    def sign_ahead(self) -> None:
        """Sign the tokens of the first dials; they are good for five minutes."""
        for seat in self._seats:
            seat.sign_ahead()

    def start(self) -> None:
        """Begin to dial."""
        for number, seat in enumerate(self._seats):
            self._greenlets.append(gevent.spawn(seat.keep, (number + random.random()) / self._dials_per_s))

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


def _share(text: str) -> tuple[int, int]:
    number, _, of = text.partition("/")
    return int(number), int(of)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m loadtests.fleet", description=__doc__)
    parser.add_argument("--plan", type=Path, required=True, help="the plan with the units and their keys")
    parser.add_argument("--connections", type=int, choices=(1, 2, 3, 4), default=1, help="of each unit")
    parser.add_argument("--report", type=Path, help="JSON file with the counts, renewed twice a second")
    parser.add_argument("--journal", type=Path, help="file of the POSTs that were run, written at the end")
    parser.add_argument("--share", type=_share, default=(0, 1), metavar="I/N", help="every Nth unit from the Ith (0/1)")
    parser.add_argument("--dials-per-s", type=float, default=DIALS_PER_S, help="pace of the first dials (200)")
    parser.add_argument("--hold", action="store_true", help="dial when SIGUSR1 comes, once the report is there")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Keep the fleet connected until a signal."""
    options = _parse(argv)
    try:
        fleet = Fleet(read_plan(options.plan), options.connections, options.share, options.dials_per_s)
    except (OSError, ValueError, KeyError, TypeError) as error:
        detail = error if isinstance(error, (OSError, BadSettings)) else type(error).__name__
        print(f"fleet: the plan cannot be used: {detail}", file=sys.stderr)
        return 2
    # A unit has a process of its own, with little for the collector to walk; here some thousand share one.
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)
    stop = Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        gevent.signal_handler(number, stop.set)
    if options.hold:
        begin = Event()
        gevent.signal_handler(signal.SIGUSR1, begin.set)
        fleet.sign_ahead()
        if options.report is not None:
            write_report(options.report, fleet.report())
        while not begin.wait(HOLD_LOOK_S) and not stop.is_set():
            pass
    fleet.start()
    _watch(fleet, stop, options.report, lambda line: print(line, flush=True))
    last = fleet.report()
    fleet.stop()
    if options.report is not None:
        write_report(options.report, last)
    if options.journal is not None:
        options.journal.write_text("".join(f"{target}\n" for target in fleet.counts.posts))
    print(orjson.dumps(last).decode(), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

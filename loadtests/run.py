"""`make load`: callers and a fleet of units against a fresh gateway, then the figures.

`python -m loadtests.run --seconds 60 --units 500`: the last line is RESULT and JSON; the exit status is 1 if a request
failed. locust's HTML report goes to loadtests/results/.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from gateway.demo.platform import Child, DemoError
from loadtests import report
from loadtests.interruption import Interrupted, ignore_signals, interruptible, scratch
from loadtests.measure import read_report
from loadtests.rig import Rig

RESULTS = Path(__file__).resolve().parent / "results"
PROGRESS_EVERY_S = 2.0
POLL_S = 0.1
DRAIN_S = 45
"""How long requests under way at the end may take; then the callers are stopped."""
CONNECT_LIMIT_S = 60.0


class Load:
    """One load on one rig."""

    def __init__(self, rig: Rig, options: argparse.Namespace, html: Path, tell: Callable[[str], None]) -> None:
        self._rig = rig
        self._options = options
        self._html = html
        self._tell = tell

    def run(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """What the callers measured, and the fleet's counts at the load's end.

        Raises: DemoError if a part does not start or ends too early.
        """
        self._rig.start()
        self._tell(f"{self._options.units} units dial")
        fleet = self._rig.start_fleet(self._options.connections)
        self._await_units(fleet)
        callers = self._rig.start_callers(
            users=self._options.users,
            rate=self._options.rate / self._options.users,
            seconds=self._options.seconds,
            drain_s=DRAIN_S,
            html=self._html,
        )
        self._watch(fleet, callers)
        summary = read_report(self._rig.callers_report)
        if summary is None or "kinds" not in summary:
            raise DemoError(f"the callers ended without a report: see {callers.log}\n{tail(callers.log)}")
        self._rig.stop_child("fleet")  # so that its last counts are written
        return summary, self._fleet()

    def _fleet(self) -> dict[str, Any]:
        return read_report(self._rig.fleet_report) or {"connected": 0, "units": self._options.units}

    def _await_units(self, fleet: Child) -> None:
        limit_s = time.monotonic() + CONNECT_LIMIT_S
        told_s = 0.0
        while (counts := self._fleet())["connected"] < self._options.units:
            self._check(fleet)
            if time.monotonic() > limit_s:
                raise DemoError(f"only {counts['connected']} of {counts['units']} units connected: {counts}")
            if time.monotonic() - told_s > PROGRESS_EVERY_S:
                told_s = time.monotonic()
                self._tell(f"{counts['connected']}/{counts['units']} units connected")
            time.sleep(POLL_S)

    def _watch(self, fleet: Child, callers: Child) -> None:
        """Print progress until the callers have ended."""
        started_s = told_s = time.monotonic()
        limit_s = started_s + self._options.seconds + DRAIN_S + 30
        before = 0
        while callers.running():
            self._check(fleet)
            now_s = time.monotonic()
            if now_s > limit_s:
                raise DemoError(f"the callers do not end: see {callers.log}")
            counts = read_report(self._rig.callers_report)
            if counts is not None and now_s - told_s >= PROGRESS_EVERY_S:
                rate = (counts["requests"] - before) / (now_s - told_s)
                self._tell(report.progress(now_s - started_s, rate, counts, self._fleet()))
                told_s, before = now_s, counts["requests"]
            time.sleep(POLL_S)

    def _check(self, fleet: Child) -> None:
        if not fleet.running():
            raise DemoError(f"the fleet ended: see {fleet.log}\n{tail(fleet.log)}")
        if not self._rig.children["gateway"].running():
            log = self._rig.children["gateway"].log
            raise DemoError(f"the gateway ended: see {log}\n{tail(log)}")


def tail(path: Path, lines: int = 12) -> str:
    text = path.read_text(errors="replace") if path.exists() else ""
    return "\n".join(text.splitlines()[-lines:])


def raise_file_limit(files: int) -> None:
    """Gateway and fleet hold a socket a unit each; children inherit the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = files if hard == resource.RLIM_INFINITY else min(files, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


MIN_USERS = 10
"""So that all kinds of callers are among them, 4 : 1 : 5."""


def _at_least(least: int) -> Callable[[str], int]:
    def count(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"takes a whole number, at least {least}")
        return int(text)

    return count


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m loadtests.run", description="Load against a fresh gateway.")
    parser.add_argument("--seconds", type=_at_least(1), default=60, help="how long the callers ask (60)")
    parser.add_argument("--units", type=_at_least(1), default=500, help="units in the fleet (500)")
    parser.add_argument("--connections", type=int, choices=(1, 2, 3, 4), default=1, help="of each unit (1)")
    parser.add_argument("--users", type=_at_least(MIN_USERS), default=50, help="callers at once (50)")
    parser.add_argument("--rate", type=_at_least(1), default=300, help="requests a second of all callers at most (300)")
    parser.add_argument("--workers", type=_at_least(1), default=2, help="of the gateway (2)")
    parser.add_argument("--html", type=Path, help="locust's report (loadtests/results/load-TIME.html)")
    return parser.parse_args(argv)


def _tell(text: str) -> None:
    print(text, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the load; returns the exit status."""
    options = _parse(argv)
    raise_file_limit(4 * options.units * options.connections + 4096)
    html = (options.html or RESULTS / f"load-{datetime.now():%Y%m%d-%H%M%S}.html").resolve()
    try:
        html.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        print(f"load: {html.parent}: {error.strerror}: choose another with --html", file=sys.stderr)
        return 1
    outcome = _run(options, html)
    if outcome is None:
        return 1
    summary, fleet = outcome
    final = report.result(summary, fleet, options.seconds)
    for line in report.table(summary, fleet):
        _tell(line)
    _tell(f"report: {os.path.relpath(html)}")
    _tell(report.result_line(final))
    return 0 if report.passed(final) else 1


def _run(options: argparse.Namespace, html: Path) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """The load on a rig of its own, which is gone afterwards; None if it could not be run."""
    directory = scratch("caregate-load-")
    rig = Rig(directory, units=options.units, workers=options.workers, seconds=options.seconds, tell=_tell)
    clean = False
    try:
        outcome = Load(rig, options, html, _tell).run()
        clean = outcome[0]["failures"] == 0
        return outcome
    except DemoError as error:
        print(f"load: {error}", file=sys.stderr)
        return None
    except Interrupted:
        clean = True
        raise
    finally:
        ignore_signals()
        _tell("stopping")
        rig.stop()
        if not clean:
            _keep_logs(rig.logs, html.with_suffix(".logs"))
        shutil.rmtree(directory, ignore_errors=True)


def _keep_logs(logs: Path, kept: Path) -> None:
    if logs.exists():
        shutil.copytree(logs, kept, dirs_exist_ok=True)
        _tell(f"logs: {os.path.relpath(kept)}")


if __name__ == "__main__":
    raise SystemExit(interruptible(main))

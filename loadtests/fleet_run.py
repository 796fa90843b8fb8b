"""`make fleet`: thousands of units on a few workers; all workers are replaced under load, then one is killed.

`python -m loadtests.fleet_run --units 5000 --seconds 60`: the last line is RESULT and JSON; the exit status is 1 if a
bar was missed. With fewer units than 5000 the bars of time and memory are printed and do not count.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import psutil

from gateway.demo.platform import DemoError
from loadtests.fleet_callers import Asked, Caller, Callers, Verdict, judge
from loadtests.fleet_rig import ABSENT, FleetRig, TooFewFiles, raise_file_limit
from loadtests.interruption import interruptible, scratch
from loadtests.measure import percentile

CONNECT_LIMIT_S: Final = 120.0
BACK_LIMIT_S: Final = 120.0
SETTLE_S: Final = 3.0
ABSENT_REQUESTS: Final = 1_000
POLL_S: Final = 0.25
WARM_UP: Final = 200
BARS: Final = {"connect_s": 15.0, "kb_per_connection": 30.0, "absent_p99_ms": 5.0, "all_back_s": 60.0}
"""What the whole fleet of WHOLE units must not exceed."""
WHOLE: Final = 5_000


class FleetRun:
    """The phases, in their order; `result` fills on the way."""

    def __init__(self, rig: FleetRig, options: argparse.Namespace, tell: Callable[[str], None]) -> None:
        self._rig = rig
        self._options = options
        self._tell = tell
        self.result: dict[str, Any] = {}
        self.verdicts: dict[str, Verdict] = {}

    def run(self) -> None:
        """Raises: DemoError."""
        self._rig.start()
        self._warm_up()
        self._connect()
        self._ask_absent()
        callers = Callers(
            self._rig.ports.gateway, self._rig.token, self._rig.units, rate=self._options.rate, threads=16
        )
        with callers.running():
            rolled = self._roll()
            killed_s = self._kill()
        self._judge(callers.asked, rolled, killed_s)

    # --- phases

    def _warm_up(self) -> None:
        """What the first requests alone cost is not a connection's."""
        caller = Caller(self._rig.ports.gateway, self._rig.token, kept=False)
        for _ in range(WARM_UP):
            caller.ask("GET", f"/fleet/v1/{ABSENT}/fhir/Observation/0", 503)

    def _connect(self) -> None:
        rig = self._rig
        rig.start_fleet(self._options.dials_per_s)
        before_kib, before_s = rig.rss_kib(), rig.cpu_s()
        rig.begin()
        fleet = self._await_whole("dial", CONNECT_LIMIT_S)
        cpu_s = rig.cpu_s() - before_s
        self.result["connect_s"] = round(fleet["whole_s"] - fleet["first_dial_s"], 2)
        self.result["worker_ms_per_dial"] = round(cpu_s * 1000 / fleet["dials"], 2)
        self.result["unit_ms_per_dial"] = round(fleet["dial_cpu_s"] * 1000 / fleet["dials"], 2)
        self.result["refused"] = fleet["refused"]
        time.sleep(SETTLE_S)
        self.result["kb_per_connection"] = round((rig.rss_kib() - before_kib) * 1.024 / rig.seats, 2)
        self._tell(f"all {rig.seats} connections up after {self.result['connect_s']} s")

    def _await_whole(self, what: str, limit_s: float) -> dict[str, Any]:
        until_s, told_s = time.monotonic() + limit_s, 0.0
        while True:
            fleet = self._rig.fleet()
            if time.monotonic() - told_s > 2:
                told_s = time.monotonic()
                self._tell_progress(what, fleet)
            if fleet["whole_s"]:
                return fleet
            if time.monotonic() > until_s:
                raise DemoError(f"{what}: only {fleet['connections']} of {self._rig.seats} connections are up: {fleet}")
            time.sleep(POLL_S)

    def _tell_progress(self, what: str, fleet: dict[str, Any]) -> None:
        self._tell(
            f"{what:<6} {fleet['connections']:6d}/{self._rig.seats} connections  {fleet['connected']:5d} units  "
            f"{fleet['dials']:6d} dials  {fleet['moved']:6d} moved  {fleet['lost']:4d} lost  refused {fleet['refused']}"
        )

    def _ask_absent(self) -> None:
        """How fast "not connected" is said while the whole fleet is idle."""
        caller = Caller(self._rig.ports.gateway, self._rig.token, kept=True)
        asked = [caller.ask("GET", f"/fleet/v1/{ABSENT}/fhir/Observation/0", 503) for _ in range(ABSENT_REQUESTS)]
        if wrong := [one.failure for one in asked if one.failure]:
            raise DemoError(f"an absent unit was answered {wrong[0]}")
        times_ms = sorted(one.took_s * 1000 for one in asked)
        self.result["absent_p99_ms"] = round(percentile(times_ms, 99) or 0.0, 2)

    def _roll(self) -> tuple[float, float]:
        """All workers, one after another, under load; the moments at which it began and all were back."""
        time.sleep(self._options.seconds / 4)
        began_s, dials = time.monotonic(), self._rig.fleet()["dials"]
        process = self._rig.start_roll()
        assert process.stdout is not None
        for line in process.stdout:
            self._tell(f"roll   {line.rstrip()}")
            self._tell_progress("roll", self._rig.fleet())
        if process.wait() != 0:
            raise DemoError("the roll failed")
        ended_s = time.monotonic()
        time.sleep(1.0)  # the reports are half a second old
        fleet = self._await_whole("back", BACK_LIMIT_S)
        self.result["roll_dials"] = fleet["dials"] - dials
        self.result["roll_s"] = round(ended_s - began_s, 1)
        self.result["all_back_s"] = round(max(fleet["whole_s"], ended_s) - began_s, 1)
        time.sleep(self._options.seconds / 4)
        return began_s, time.monotonic()

    def _kill(self) -> float:
        """kill -9 one worker; the moment at which it was gone with all of its sockets."""
        victim = max(self._rig.workers_now(), key=lambda worker: worker.memory_info().rss)
        victim.send_signal(signal.SIGKILL)
        psutil.wait_procs([victim], timeout=10)
        killed_s = time.monotonic()
        self._tell(f"kill   worker {victim.pid}")
        time.sleep(2.0)
        fleet = self._await_whole("killed", BACK_LIMIT_S)
        self.result["back_after_kill_s"] = round(max(fleet["whole_s"] - killed_s, 0.0), 1)
        time.sleep(self._options.seconds / 4)
        return killed_s

    def _judge(self, asked: list[Asked], rolled: tuple[float, float], killed_s: float) -> None:
        runs = Counter(self._rig.stop_fleet())
        self.verdicts["before the roll"] = judge(asked, lambda at_s: at_s < rolled[0])
        self.verdicts["while rolling"] = roll = judge(asked, lambda at_s: rolled[0] <= at_s < rolled[1])
        # What was on its way through the killed worker is lost with it; what began afterwards is not.
        self.verdicts["after the kill"] = kill = judge(asked, lambda at_s: at_s >= killed_s)
        before = self.verdicts["before the roll"]
        self.result["failed_idempotent"] = roll.failed_idempotent + before.failed_idempotent
        self.result["failed_posts"] = roll.failed_posts + before.failed_posts
        self.result["doubled_posts"] = sum(1 for times in runs.values() if times > 1)
        self.result["failed_after_kill"] = kill.failed_idempotent + kill.failed_posts
        self.result["requests"] = len(asked)

    # --- the end

    def table(self) -> list[str]:
        lines = [f"{'':<16}{'requests':>9}{'failed':>8}{'of POST':>9}{'p50 ms':>9}{'p99 ms':>9}{'slowest':>9}"]
        for name, v in self.verdicts.items():
            lines.append(
                f"{name:<16}{v.requests:>9}{v.failed_idempotent + v.failed_posts:>8}{v.failed_posts:>9}"
                f"{v.p50_ms:>9}{v.p99_ms:>9}{v.slowest_ms:>9}"
            )
            lines += [f"{'':<16}  {count} x {reason}" for reason, count in v.reasons]
        for name, bar in BARS.items():
            lines.append(f"{name:<18} {self.result.get(name):>8}   (at most {bar:g})")
        for name in ("worker_ms_per_dial", "unit_ms_per_dial"):
            lines.append(f"{name:<18} {self.result.get(name):>8}   (CPU time of all processes of that end)")
        return lines

    def missed(self) -> list[str]:
        """The bars that were missed."""
        counts = ("failed_idempotent", "failed_posts", "doubled_posts", "failed_after_kill")
        missed = [name for name in counts if self.result[name]]
        if self._options.units >= WHOLE:
            missed += [name for name, bar in BARS.items() if self.result[name] > bar]
        return missed


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    options = _parse(argv)
    directory = scratch("caregate-fleet-")
    try:
        raise_file_limit(options.units * options.connections, options.workers, options.simulators)
    except TooFewFiles as error:
        print(f"fleet: {error}", file=sys.stderr)
        return 2
    rig = FleetRig(
        directory, units=options.units, connections=options.connections, workers=options.workers,
        simulators=options.simulators, seconds=options.seconds, tell=_tell,
    )  # fmt: skip
    run = FleetRun(rig, options, _tell)
    try:
        run.run()
    except DemoError as error:
        print(f"fleet: {error}", file=sys.stderr)
        return 1
    finally:
        rig.stop()
        if options.keep is not None and rig.logs.exists():
            shutil.copytree(rig.logs, options.keep, dirs_exist_ok=True)
        shutil.rmtree(directory, ignore_errors=True)
    for line in run.table():
        _tell(line)
    if missed := run.missed():
        _tell(f"missed: {', '.join(missed)}")
    _tell("RESULT " + json.dumps(run.result))
    return 1 if missed else 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m loadtests.fleet_run", description=__doc__)
    parser.add_argument("--units", type=int, default=WHOLE, help="units in the fleet (5000)")
    parser.add_argument("--connections", type=int, choices=(1, 2, 3, 4), default=2, help="of each unit (2)")
    parser.add_argument("--workers", type=int, default=4, help="of the gateway (4)")
    parser.add_argument("--simulators", type=int, default=4, help="processes that play the units (4)")
    parser.add_argument("--dials-per-s", type=float, default=1_000.0, help="pace of the first dials (1000)")
    parser.add_argument("--rate", type=float, default=100.0, help="requests a second of all callers (100)")
    parser.add_argument("--seconds", type=int, default=20, help="of load beside the roll and the kill (20)")
    parser.add_argument("--keep", type=Path, help="where the logs go at the end")
    return parser.parse_args(argv)


def _tell(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}" if not text.startswith("RESULT") else text, flush=True)


if __name__ == "__main__":
    raise SystemExit(interruptible(main))

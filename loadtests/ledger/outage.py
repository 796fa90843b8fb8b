"""`make outage`: PostgreSQL goes away under load for so long, then comes back.

`python -m loadtests.ledger.outage --seconds 600`: everything that was answered arrives, in order, once; and routes
that need no database answer as fast as before: the median of all answers while it is away against that of those before
and after. Lines of progress, a table, then RESULT and JSON; the exit status is 1 if an event is lost, a ghost, an
orphan or there twice, a chain is not whole, or the answers were slowed by more than 10 %.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gateway.demo.platform import DemoError
from loadtests.interruption import interruptible, scratch
from loadtests.ledger.__main__ import write_key
from loadtests.ledger.rig import LedgerPlatform
from loadtests.ledger.verdict import Asked, Verdict, judge

SLOWED_AT_MOST = 1.10
WITH_DATABASE = frozenset({"phi-portal"})
AWAY, THERE = "away", "there"


@dataclass(slots=True)
class Outage:
    """Shapes: moments in monotonic seconds; the database was away between `left_s` and `back_s`."""

    began_s: float
    left_s: float
    back_s: float
    settled_s: float
    arrived_s: float
    asked: dict[str, Asked]
    verdict: Verdict
    broken_chain: str
    backlog: int

    def times_ms(self, which: str) -> list[float]:
        """Of answers on routes that need no database, while it was away or there; its going and coming left out."""
        spans = {AWAY: [(self.left_s, self.back_s)], THERE: [(self.began_s, self.left_s), (self.settled_s, 1e99)]}
        return [
            one.took_ms
            for one in self.asked.values()
            if one.status and one.kind not in WITH_DATABASE
            and any(low + 1 < one.at_s - one.took_ms / 1000 and one.at_s < high - 1 for low, high in spans[which])
        ]  # fmt: skip

    @property
    def slowed(self) -> float:
        return statistics.median(self.times_ms(AWAY)) / statistics.median(self.times_ms(THERE))

    @property
    def passed(self) -> bool:
        return self.verdict.passed and not self.broken_chain and self.slowed <= SLOWED_AT_MOST


def play(platform: LedgerPlatform, options: argparse.Namespace, tell: Callable[[str], None]) -> Outage:
    """Load, the outage under it, and load again. Raises: DemoError."""
    platform.begin_plainly("00")
    platform.start_callers(options.callers, options.pause)
    began_s = time.monotonic()
    time.sleep(options.around)
    left_s = time.monotonic()
    platform.stop_database()
    tell("PostgreSQL is away")
    while (at_s := time.monotonic() - left_s) < options.seconds:
        time.sleep(min(options.seconds / 10, options.seconds - at_s))
        tell(f"{time.monotonic() - left_s:6.0f} s  {platform.backlog():8d} events wait")
    backlog = platform.backlog()
    back_s = time.monotonic()
    platform.start_database()
    tell("PostgreSQL is back")
    while platform.backlog() > 5_000 and time.monotonic() < back_s + 120:
        time.sleep(0.2)
    settled_s = time.monotonic()
    tell(f"{settled_s - back_s:6.1f} s later what waited is there")
    time.sleep(options.around)
    platform.stop_callers()
    stopped_s = time.monotonic()
    asked = platform.asked()
    while judge(asked, platform.kept()).lost and time.monotonic() < stopped_s + 60:
        time.sleep(0.5)
    arrived_s = time.monotonic()
    platform.end_gateway()
    verdict = judge(asked, platform.kept())
    return Outage(began_s, left_s, back_s, settled_s, arrived_s, asked, verdict, platform.verify(), backlog)


def result(outage: Outage, seconds: float) -> dict[str, object]:
    """The RESULT object."""
    answered = sum(one.status > 0 for one in outage.asked.values())
    away, there = (statistics.median(outage.times_ms(which)) for which in (AWAY, THERE))
    return {
        "seconds": seconds, "answered": answered, "waited": outage.backlog,
        "caught_up_s": round(outage.settled_s - outage.back_s, 1), **outage.verdict.counts(),
        "chains": "whole" if not outage.broken_chain else "broken", "p50_there_ms": round(there, 2),
        "p50_away_ms": round(away, 2), "slowed": round(outage.slowed, 3), "passed": outage.passed,
    }  # fmt: skip


def _tell(text: str) -> None:
    print(text, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run it; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.ledger.outage", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600, help="without PostgreSQL (600)")
    parser.add_argument("--callers", type=int, default=8, help="at once (8)")
    parser.add_argument("--pause", type=float, default=0.05, help="seconds between a caller's requests, on average")
    options = parser.parse_args(argv)
    options.around = max(5.0, options.seconds / 8)
    directory = scratch("caregate-outage-")
    platform = LedgerPlatform(directory, 2, tell=lambda text: None)
    try:
        write_key(directory)
        platform.start()
        outage = play(platform, options, _tell)
    except DemoError as error:
        print(error, file=sys.stderr)
        return 1
    finally:
        platform.stop()
    for which in (THERE, AWAY):
        times = statistics.quantiles(outage.times_ms(which), n=100)
        _tell(f"PostgreSQL {which:<6} p50 {times[49]:7.2f} ms   p95 {times[94]:7.2f} ms   p99 {times[98]:7.2f} ms")
    for name in outage.verdict.counts():
        for what in getattr(outage.verdict, name)[:5]:
            _tell(f"{name}: {what}")
    if outage.broken_chain:
        _tell(outage.broken_chain)
    if outage.passed:
        shutil.rmtree(directory, ignore_errors=True)
    else:
        _tell(f"ledgers and logs are left in {directory}")
    _tell("RESULT " + json.dumps(result(outage, options.seconds)))
    return 0 if outage.passed else 1


if __name__ == "__main__":
    sys.exit(interruptible(main))

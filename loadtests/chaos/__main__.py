"""`make chaos`: callers, and something is killed every second or two.

`python -m loadtests.chaos --seconds 600`: a line of progress, a table, then RESULT and JSON; the exit status is 1 if a
request was answered twice or wrongly, ran twice without its caller's doing, was reported as not dispatched and ran, or
hung past its deadline and a second, and if there was a kind of kill that never came.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from gateway.demo.platform import DemoError
from loadtests.chaos.callers import PROBLEM, Attempt, Caller, Records
from loadtests.chaos.kills import Kill, Killer
from loadtests.chaos.line import Line
from loadtests.chaos.rig import UNITS, ChaosPlatform
from loadtests.chaos.verdict import Verdict, judge, read_journals
from loadtests.interruption import interruptible, run_loop, scratch

SETTLE_S = 4.0
"""How long requests that nobody waits for may go on: what ran late counts, too."""


async def chaos(platform: ChaosPlatform, options: argparse.Namespace) -> tuple[Records, Counter[Kill]]:
    """Calls and kills for so many seconds."""
    dice = random.Random(options.seed)
    line, records = Line(platform.ports.gateway), Records()
    await asyncio.to_thread(platform.start_units, await line.start())
    token = platform.tokens["PRACTITIONER"]
    until_s = time.monotonic() + options.seconds
    callers = [Caller(platform.ports.gateway, token, UNITS, records, n) for n in range(options.callers)]
    tasks = [asyncio.create_task(caller.run(until_s)) for caller in callers]
    killer = Killer(platform, line, options.every, dice)
    killing = asyncio.create_task(killer.run())
    while (left_s := until_s - time.monotonic()) > 0:
        await asyncio.sleep(min(left_s, max(2.0, options.seconds / 60)))
        _tell(progress(options.seconds - until_s + time.monotonic(), records.attempts, killer.kills))
        if killing.done():
            killing.result()
        if not platform.children["gateway"].running():
            raise DemoError(f"the gateway ended by itself: see {platform.logs}")
    killing.cancel()
    await asyncio.gather(*tasks)
    await asyncio.sleep(SETTLE_S)
    await line.stop()
    return records, killer.kills


def progress(at_s: float, attempts: Sequence[Attempt], kills: Counter[Kill]) -> str:
    told = Counter(attempt.told for attempt in attempts)
    counts = "  ".join(f"{what} {told[what]}" for what in ("answered", "problem", "broken"))
    return f"{at_s:5.0f} s  {len(attempts):7d} requests  {counts}  kills {kills.total()}"


def table(attempts: Sequence[Attempt], kills: Counter[Kill], verdict: Verdict) -> list[str]:
    """Lines: kills by kind, outcomes by code and delivery, rules with what broke them."""
    lines = [f"killed: {kill.value:<32}{count:>8}" for kill, count in sorted(kills.items(), key=lambda k: k[0].value)]
    lines += [f"never killed: {kill.value}" for kill in Kill if not kills[kill]]
    outcomes = Counter((a.told, a.code, a.delivery) for a in attempts)
    for (told, code, delivery), count in sorted(outcomes.items()):
        lines.append(f"{told:<10}{code:<28}{delivery:<18}{count:>8}")
    for rule, names in verdict.rules().items():
        lines.append(f"{rule:<30}{len(names):>8}  {', '.join(names[:5])}")
    return lines


def result(options: argparse.Namespace, attempts: Sequence[Attempt], kills: Counter[Kill], verdict: Verdict) -> Any:
    """The RESULT object."""
    told = Counter(attempt.told for attempt in attempts)
    return {
        "seconds": options.seconds,
        "requests": len(attempts),
        **told,
        "kills": {kill.value: kills[kill] for kill in Kill},
        "not_dispatched": sum(a.told == PROBLEM and a.delivery == "not_dispatched" for a in attempts),
        "longest_s": round(max((a.took_s for a in attempts), default=0.0), 2),
        **{rule: len(names) for rule, names in verdict.rules().items()},
        "passed": verdict.passed and told["answered"] > len(attempts) // 4 and all(kills[kill] for kill in Kill),
    }


def _tell(text: str) -> None:
    print(text, flush=True)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m loadtests.chaos", description="Random kills under load.")
    parser.add_argument("--seconds", type=int, default=600, help="how long (600)")
    parser.add_argument("--callers", type=int, default=12, help="at once (12)")
    parser.add_argument("--workers", type=int, default=3, help="of the gateway (3)")
    parser.add_argument("--every", type=float, default=1.5, help="seconds between kills, on average (1.5)")
    parser.add_argument("--seed", type=int, default=None, help="of what is killed when")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run it; returns the exit status."""
    options = _parse(argv)
    directory = scratch("caregate-chaos-")
    platform = ChaosPlatform(directory, options.workers, options.seconds, tell=_tell)
    try:
        platform.start_without_units()
        records, kills = run_loop(chaos(platform, options))
        runs = read_journals(platform.journals.values())
    except DemoError as error:
        print(error, file=sys.stderr)
        return 1
    finally:
        platform.stop()
    verdict = judge(records.attempts, runs)
    for text in table(records.attempts, kills, verdict):
        _tell(text)
    found = result(options, records.attempts, kills, verdict)
    if found["passed"]:
        shutil.rmtree(directory, ignore_errors=True)
    else:
        _tell(f"logs and journals are left in {directory}")
    _tell("RESULT " + json.dumps(found))
    return 0 if found["passed"] else 1


if __name__ == "__main__":
    sys.exit(interruptible(main))

"""`make soak`: a mixed load on the demo platform, and what every worker holds meanwhile.

`python -m loadtests.soak --seconds 600`: a line of progress, a table, then RESULT and JSON; the exit status is 1 if a
caller was answered wrongly, a worker was replaced, or memory, descriptors or greenlets of a worker grew.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import sys
import time
import urllib.request
from collections.abc import Sequence
from typing import Any

import psutil

from gateway.demo.platform import DemoError
from loadtests.demo import DemoUnderLoad
from loadtests.interruption import interruptible, run_loop, scratch
from loadtests.soak.callers import Callers
from loadtests.soak.samples import ALLOWANCES, Growth, Sample, growth_of

DEADLINES = {f"CAREGATE_{name}_TIMEOUT_S": "2" for name in ("HEAD", "BODY", "WRITE")}
"""Short enough to pass many times."""
_ASKS = 200
"""How often the operations listener is asked for one sample: the kernel chooses the worker that answers."""


class Watch:
    """Samples the workers beside the load."""

    def __init__(self, platform: DemoUnderLoad) -> None:
        self._platform = platform
        self.workers = platform.worker_pids()
        self.samples: list[Sample] = []

    def look(self, at_s: float) -> None:
        """One sample of each worker. Raises: DemoError if a worker was replaced or does not answer."""
        if self._platform.worker_pids() != self.workers:
            raise DemoError(f"a worker was replaced: {self.workers} became {self._platform.worker_pids()}")
        greenlets = self._greenlets()
        for pid in self.workers:
            process = psutil.Process(pid)
            values = {
                "rss_mib": process.memory_info().rss / 2**20,
                "descriptors": float(process.num_fds()),
                "greenlets": float(greenlets[pid]),
            }
            self.samples.append(Sample(at_s, pid, values))

    def _greenlets(self) -> dict[int, int]:
        found: dict[int, int] = {}
        for _ in range(_ASKS):
            url = f"http://127.0.0.1:{self._platform.ports.ops}/status"
            with urllib.request.urlopen(url, timeout=5) as answer:
                status = json.load(answer)
            found[status["worker"]] = status["greenlets"]
            if found.keys() >= set(self.workers):
                return found
        raise DemoError(f"of the workers {self.workers} only {sorted(found)} answer on the operations listener")


async def soak(platform: DemoUnderLoad, seconds: int, each: int, every_s: float) -> tuple[Callers, list[Sample]]:
    """Run `each` callers of every kind, and sample. Raises: DemoError."""
    callers = Callers(platform.ports.gateway, platform.tokens, 0.02)
    clock = asyncio.get_running_loop().time
    started_s = clock()
    tasks = [
        asyncio.create_task(callers.run(kind, turn, started_s + seconds))
        for kind, turn in callers.kinds().items()
        for _ in range(each)
    ]
    watch = Watch(platform)
    try:
        while (at_s := clock() - started_s) < seconds:
            await asyncio.to_thread(watch.look, at_s)
            latest = watch.samples[-len(watch.workers) :]
            _tell(progress(at_s, callers, latest))
            await asyncio.sleep(min(every_s, max(0.0, started_s + seconds - clock())))
    finally:
        for task in tasks:
            if clock() < started_s + seconds:
                task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return callers, watch.samples


def progress(at_s: float, callers: Callers, latest: Sequence[Sample]) -> str:
    """One line: turns so far and the largest of each metric over the workers."""
    most = "  ".join(f"{metric} {max(s.values[metric] for s in latest):.0f}" for metric in ALLOWANCES)
    return f"{at_s:6.0f} s  {callers.counts.total():8d} turns  {callers.failures.total():4d} failures  {most}"


def report(seconds: int, callers: Callers, grown: Sequence[Growth]) -> dict[str, Any]:
    """The RESULT object; `growth` is the worst worker's, by metric."""
    worst = {metric: max((g for g in grown if g.metric == metric), key=lambda g: g.grew) for metric in ALLOWANCES}
    return {
        "seconds": seconds,
        "turns": dict(callers.counts),
        "failures": [[kind, what, count] for (kind, what), count in callers.failures.items()],
        "growth": {
            metric: {"first": round(g.first, 1), "last": round(g.last, 1), "allowed": round(g.allowed, 1)}
            for metric, g in worst.items()
        },
        "passed": not callers.failures and not any(g.excessive for g in grown),
    }


def table(callers: Callers, grown: Sequence[Growth]) -> list[str]:
    """Lines: turns a kind, then what each worker held at first and at last."""
    lines = [f"{kind:<28}{count:>8} turns" for kind, count in callers.counts.items()]
    lines += [f"{kind:<28}{count:>8} times {what}" for (kind, what), count in callers.failures.items()]
    lines.append(f"{'worker':<10}{'metric':<14}{'first':>10}{'last':>10}{'grew':>10}{'allowed':>10}")
    for g in grown:
        mark = "  GREW" if g.excessive else ""
        lines.append(
            f"{g.worker:<10}{g.metric:<14}{g.first:>10.1f}{g.last:>10.1f}{g.grew:>10.1f}{g.allowed:>10.1f}{mark}"
        )
    return lines


def _tell(text: str) -> None:
    print(text, flush=True)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m loadtests.soak", description="A long mixed load.")
    parser.add_argument("--seconds", type=int, default=600, help="how long (600)")
    parser.add_argument("--each", type=int, default=2, help="callers of every kind (2)")
    parser.add_argument("--workers", type=int, default=2, help="of the gateway (2)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the soak; returns the exit status."""
    options = _parse(argv)
    directory = scratch("caregate-soak-")
    platform = DemoUnderLoad(
        directory, options.workers, options.seconds, tell=_tell, CAREGATE_KEEPALIVE_S="5", **DEADLINES
    )
    started_s = time.monotonic()
    try:
        platform.start()
        _tell(f"ready after {time.monotonic() - started_s:.0f} s")
        every_s = min(5.0, options.seconds / 20)
        callers, samples = run_loop(soak(platform, options.seconds, options.each, every_s))
        grown = growth_of(samples, options.seconds)
    except (DemoError, ValueError) as error:
        print(f"soak: {error}", file=sys.stderr)
        return 1
    finally:
        platform.stop()
        shutil.rmtree(directory, ignore_errors=True)
    for line in table(callers, grown):
        _tell(line)
    final = report(options.seconds, callers, grown)
    _tell("RESULT " + json.dumps(final))
    return 0 if final["passed"] else 1


if __name__ == "__main__":
    raise SystemExit(interruptible(main))

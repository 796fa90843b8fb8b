"""`make ledger`: callers write down what they are answered while everything is done to lose it, then the trail is read.

`python -m loadtests.ledger --runs 20`: lines of progress, a table, then RESULT and JSON; the exit status is 1 if an
event was lost, a ghost, an orphan or there twice (see loadtests.ledger.verdict), or a chain is not as it was signed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from gateway.demo.platform import DemoError
from loadtests.interruption import interruptible, scratch
from loadtests.ledger.disk import NoCompiler
from loadtests.ledger.plot import CUT, LOAD_S, TERM, Plot, plots
from loadtests.ledger.rig import LedgerPlatform, clock_library
from loadtests.ledger.verdict import Asked, Kept, Verdict, judge

ARRIVAL_S = 8.0
"""How long what was answered may take to reach PostgreSQL once nothing is in the way; then it counts as lost."""
EARLY = "CAREGATE_TEST_EARLY_ANSWER"


@dataclass(slots=True)
class Run:
    """What came of one."""

    name: str
    asked: dict[str, Asked]
    events: int
    verdict: Verdict
    broken_chain: str
    took_s: float
    notes: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return self.verdict.passed and not self.broken_chain

    @property
    def answered(self) -> int:
        return sum(one.status > 0 for one in self.asked.values())


def play(platform: LedgerPlatform, number: int, plot: Plot, options: argparse.Namespace) -> Run:
    """One run from the gateway's start to the verdict."""
    began_s = time.monotonic()
    clock = plot.clock and bool(clock_library())
    platform.begin(f"{number:02d}", clock=clock, settings={EARLY: "1"} if options.early else {})
    assert platform.disk is not None
    notes = []
    if plot.needs == "mount" and not platform.disk.mounted:
        notes.append("mounting is not allowed here: the disk was not filled")
    if plot.clock and not clock:
        notes.append("no libfaketime (apt-get install libfaketime): the clock did not jump")
    platform.start_callers(options.callers, options.pause)
    first_s = time.monotonic()
    for at_s, what, deed in sorted(plot.deeds, key=lambda one: one[0]):
        if at_s < options.seconds:
            time.sleep(max(0.0, first_s + at_s - time.monotonic()))
            deed(platform)
            if options.verbose:
                _tell(f"    {time.monotonic() - first_s:5.2f} s  {what}")
    time.sleep(max(0.0, first_s + options.seconds - time.monotonic()))
    power_lost_s = _end(platform, plot)
    _await_arrival(platform, power_lost_s, options.arrival)
    platform.end_gateway()
    asked, kept = platform.asked(), platform.kept()
    verdict = judge(asked, kept, power_lost_s)
    if clock:
        notes.append(f"the clock of the events moved by up to {largest_step_s(kept):.0f} s at once")
    run = Run(plot.name, asked, len(kept), verdict, platform.verify(), time.monotonic() - began_s, notes)
    platform.leave()
    return run


def _end(platform: LedgerPlatform, plot: Plot) -> float | None:
    """The gateway ends as the plot wants it, under load, and is there again; when the power was lost, if it was."""
    power_lost_s = None
    if plot.end == TERM:
        platform.stop_callers()
    else:
        platform.kill_gateway()
        if plot.end == CUT:
            power_lost_s = time.monotonic()
        platform.stop_callers()
    assert platform.disk is not None
    if plot.end == CUT:
        platform.disk.lose_power()
    platform.disk.free()
    platform.disk.behave()
    platform.thaw_database()
    platform.start_database()
    if not platform.children["gateway"].running():
        platform.begin_again()
    return power_lost_s


def _await_arrival(platform: LedgerPlatform, power_lost_s: float | None, arrival_s: float) -> None:
    until_s = time.monotonic() + arrival_s
    while judge(platform.asked(), platform.kept(), power_lost_s).lost and time.monotonic() < until_s:
        time.sleep(0.2)


def largest_step_s(kept: Sequence[Kept]) -> float:
    """The largest step of the clock between two events of a chain, either way."""
    moments = [(event.chain, json.loads(event.canonical)["at_ms"]) for event in kept]
    steps = (abs(after[1] - before[1]) for before, after in itertools.pairwise(moments) if after[0] == before[0])
    return max(steps, default=0) / 1000


def table(runs: Sequence[Run]) -> list[str]:
    head = f"{'run':>3}  {'what':<44}{'asked':>7}{'answered':>10}{'withheld':>10}{'events':>8}"
    lines = [head + "".join(f"{name:>8}" for name in Verdict().counts()) + "  chains"]
    for number, run in enumerate(runs, 1):
        withheld = sum(one.withdrawn for one in run.asked.values())
        counts = f"{len(run.asked):>7}{run.answered:>10}{withheld:>10}{run.events:>8}"
        rules = "".join(f"{count:>8}" for count in run.verdict.counts().values())
        lines.append(f"{number:>3}  {run.name:<44}{counts}{rules}  {'whole' if not run.broken_chain else 'BROKEN'}")
    statuses = Counter((one.kind, one.status, one.code) for run in runs for one in run.asked.values())
    for (kind, status, code), count in sorted(statuses.items()):
        lines.append(f"     {kind:<16}{status or 'broken':>7}  {code:<30}{count:>8}")
    return lines


def _tell_run(number: int, run: Run) -> None:
    counts = "  ".join(f"{name} {count}" for name, count in run.verdict.counts().items())
    _tell(f"run {number:2d}  {run.name}: {run.answered} answered, {run.events} events, {counts}, {run.took_s:.1f} s")
    for note in run.notes:
        _tell(f"        {note}")
    for name in run.verdict.counts():
        for what in getattr(run.verdict, name)[:5]:
            _tell(f"        {name}: {what}")
    if run.broken_chain:
        _tell(f"        verify: {run.broken_chain}")


def _tell(text: str) -> None:
    print(text, flush=True)


def write_key(directory: Path) -> None:
    """The key that signs the checkpoints of all runs."""
    key = Ed25519PrivateKey.generate()
    path = directory / "audit.key"
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    path.chmod(0o600)
    path.with_suffix(".pub").write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))


def parse_options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.ledger", description="What was answered is in the trail."
    )
    parser.add_argument("--runs", type=int, default=20, help="how many (20)")
    parser.add_argument("--first", type=int, default=1, help="the kind of run to begin with (1)")
    parser.add_argument("--seconds", type=float, default=LOAD_S, help=f"of load in each ({LOAD_S})")
    parser.add_argument("--callers", type=int, default=12, help="at once (12)")
    parser.add_argument("--pause", type=float, default=0.02, help="seconds between a caller's requests, on average")
    parser.add_argument("--workers", type=int, default=2, help="of the gateway (2)")
    parser.add_argument("--arrival", type=float, default=ARRIVAL_S, help=f"seconds that events may take ({ARRIVAL_S})")
    parser.add_argument("--seed", type=int, default=None, help="of what happens when")
    parser.add_argument("--early", action="store_true", help="a gateway that answers before it has synced: must fail")
    parser.add_argument("--verbose", action="store_true", help="tell each deed")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run it; returns the exit status."""
    options = parse_options(argv)
    dice = random.Random(options.seed)
    directory = scratch("caregate-ledger-")
    platform = LedgerPlatform(directory, options.workers, tell=lambda text: None)
    runs: list[Run] = []
    try:
        write_key(directory)
        platform.start()
        for number in range(options.first, options.first + options.runs):
            kinds = plots(dice)
            runs.append(play(platform, number, kinds[(number - 1) % len(kinds)], options))
            _tell_run(number, runs[-1])
    except (DemoError, NoCompiler) as error:
        print(error, file=sys.stderr)
        return 1
    finally:
        platform.stop()
    for text in table(runs):
        _tell(text)
    passed = all(run.passed for run in runs)
    if passed:
        shutil.rmtree(directory, ignore_errors=True)
    else:
        _tell(f"ledgers and logs are left in {directory}")
    counts = Counter[str]()
    for run in runs:
        counts.update(run.verdict.counts())
    _tell("RESULT " + json.dumps({name: counts[name] for name in Verdict().counts()}))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(interruptible(main))

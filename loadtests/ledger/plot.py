"""What happens in each kind of run, and when."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from loadtests.ledger.rig import LedgerPlatform

Deed = Callable[[LedgerPlatform], None]
LOAD_S = 6.0
"""How long the callers call in each run."""
TERM, KILL, CUT = "stopped", "killed", "power cut"


@dataclass(slots=True)
class Plot:
    """One run. Shapes: `deeds` by the moment they happen, in seconds from the first request; `end` how it ends for the
    gateway; `needs` what the machine must allow.
    """

    name: str
    end: str
    deeds: list[tuple[float, str, Deed]] = field(default_factory=list)
    needs: str = ""
    clock: bool = False


def plots(dice: random.Random) -> list[Plot]:
    """Each kind once, with moments drawn anew."""
    return [
        Plot("workers killed", TERM, _workers(dice, 4)),
        Plot("power cut, fsync takes 40 ms", CUT, _slow(0.0, LOAD_S, 40)),
        Plot("PostgreSQL stopped, workers killed", KILL, _away(dice, "stop", "start") + _workers(dice, 2)),
        Plot("disk full, PostgreSQL stopped", TERM, _away(dice, "stop", "start") + _full(dice), needs="mount"),
        Plot("fsync fails, its pages lost, power cut", CUT, _failing(1.0, 3.2, 300)),
        Plot("PostgreSQL frozen, workers killed", KILL, _away(dice, "freeze", "thaw") + _workers(dice, 2)),
        Plot("clock jumps, workers killed", TERM, _jumps(dice) + _workers(dice, 2), needs="clock", clock=True),
        Plot("fsync hangs for 3 s, then fails, power cut", CUT, _slow(0.5, 1.0, 300) + _hanging(1.0, 1.3)),
        Plot("fsync lies, everything killed", KILL, _lying() + _workers(dice, 2)),
        Plot("all of it, power cut", CUT, _all(dice), clock=True),
    ]


def _between(dice: random.Random, low: float, high: float) -> float:
    return round(dice.uniform(low, high), 2)


def _workers(dice: random.Random, count: int) -> list[tuple[float, str, Deed]]:
    each = (LOAD_S - 1.0) / count
    moments = [_between(dice, 0.5 + n * each, 0.5 + (n + 0.8) * each) for n in range(count)]
    return [(at, "kill -9 of a worker", lambda p: p.kill_worker(dice.choice)) for at in moments]


def _away(dice: random.Random, leave: str, back: str) -> list[tuple[float, str, Deed]]:
    ways: dict[str, Deed] = {
        "stop": LedgerPlatform.stop_database, "start": LedgerPlatform.start_database,
        "kill": LedgerPlatform.kill_database, "freeze": LedgerPlatform.freeze_database,
        "thaw": LedgerPlatform.thaw_database,
    }  # fmt: skip
    return [
        (_between(dice, 0.8, 1.6), f"{leave} PostgreSQL", ways[leave]),
        (_between(dice, 4.0, 5.2), f"{back} PostgreSQL", ways[back]),
    ]


def _full(dice: random.Random) -> list[tuple[float, str, Deed]]:
    return [
        (_between(dice, 1.6, 2.0), "fill the disk", lambda p: p.disk.fill() if p.disk else None),
        (_between(dice, 2.2, 3.0), "kill -9 of a worker", lambda p: p.kill_worker(dice.choice)),
        (_between(dice, 4.0, 4.6), "free the disk", lambda p: p.disk.free() if p.disk else None),
    ]


def _slow(begin: float, end: float, delay_ms: int) -> list[tuple[float, str, Deed]]:
    return [
        (begin, f"fsync takes {delay_ms} ms", lambda p: p.disk.behave(delay_ms=delay_ms) if p.disk else None),
        (end, "fsync as usual", lambda p: p.disk.behave() if p.disk else None),
    ]


def _failing(begin: float, end: float, failures: int) -> list[tuple[float, str, Deed]]:
    return [
        (begin, f"{failures} of 1000 fsyncs fail", lambda p: p.disk.behave(failures=failures) if p.disk else None),
        (end, "fsync as usual", lambda p: p.disk.behave() if p.disk else None),
    ]


def _hanging(begin: float, end: float) -> list[tuple[float, str, Deed]]:
    return [
        (begin, "fsync fails after 3 s", lambda p: p.disk.behave(delay_ms=3_000, failures=1000) if p.disk else None),
        (end, "fsync as usual", lambda p: p.disk.behave() if p.disk else None),
    ]


def _lying() -> list[tuple[float, str, Deed]]:
    return [(0.0, "fsync does nothing and says it did", lambda p: p.disk.behave(lies=True) if p.disk else None)]


def _jumps(dice: random.Random) -> list[tuple[float, str, Deed]]:
    moments = [_between(dice, low, low + 1.2) for low in (0.6, 2.2, 3.8)]
    offsets = dice.sample([-1_800, -90, -5, 40, 600, 1_500], 2)
    return [
        (at, f"clock {o:+d} s", lambda p, o=o: p.set_clock(o)) for at, o in zip(moments, [*offsets, 0], strict=True)
    ]


def _all(dice: random.Random) -> list[tuple[float, str, Deed]]:
    leave, back = dice.choice([("stop", "start"), ("freeze", "thaw"), ("kill", "start")])
    deeds = _away(dice, leave, back) + _workers(dice, 2) + _slow(0.0, 0.9, 20) + _failing(0.9, 2.0, 150)
    return deeds + [deed for deed in _full(dice) if "kill" not in deed[1]] + _jumps(dice)

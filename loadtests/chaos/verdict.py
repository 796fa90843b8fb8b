"""What callers were told against what the local services ran."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from loadtests.chaos.callers import Attempt
from loadtests.chaos.rig import DEADLINE_S

HANG_S = DEADLINE_S + 1.0


@dataclass(slots=True)
class Verdict:
    """Names of attempts by the rule they break; those of one idempotency key share a name, and run once."""

    answered_wrongly: list[str] = field(default_factory=list)
    ran_twice: list[str] = field(default_factory=list)
    post_ran_twice: list[str] = field(default_factory=list)
    not_dispatched_ran: list[str] = field(default_factory=list)
    hanging: list[str] = field(default_factory=list)
    answered_without_running: list[str] = field(default_factory=list)

    def rules(self) -> dict[str, list[str]]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    @property
    def passed(self) -> bool:
        return not any(self.rules().values())


def read_journals(paths: Iterable[Path]) -> Counter[str]:
    """How often each attempt ran."""
    runs: Counter[str] = Counter()
    for path in paths:
        for line in path.read_text().splitlines() if path.exists() else ():
            runs[line.partition(" ")[0]] += 1
    return runs


def judge(attempts: Iterable[Attempt], runs: Counter[str]) -> Verdict:
    """Every rule for every attempt."""
    attempts = list(attempts)
    verdict = Verdict()
    sent_again = {attempt.name for attempt in attempts if attempt.keyed and attempt.delivery != "not_dispatched"}
    posts: Counter[str] = Counter()
    for attempt in attempts:
        ran = runs[attempt.name]
        if attempt.fault and attempt.fault != "hanging":
            verdict.answered_wrongly.append(f"{attempt.name}: {attempt.fault}")
        if attempt.fault == "hanging" or attempt.took_s > HANG_S:
            verdict.hanging.append(f"{attempt.name}: {attempt.took_s:.2f} s")
        if ran > 1:
            verdict.ran_twice.append(attempt.name)
        if ran and attempt.delivery == "not_dispatched" and attempt.name not in sent_again:
            verdict.not_dispatched_ran.append(f"{attempt.name}: {attempt.code}")
        if attempt.told == "answered" and not ran:
            verdict.answered_without_running.append(attempt.name)
        if attempt.method == "POST" and not attempt.keyed:
            posts[attempt.root] += ran
    verdict.post_ran_twice = [root for root, count in posts.items() if count > 1]
    return verdict

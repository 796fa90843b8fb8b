"""What callers were answered against what the audit trail holds. Pure.

lost     An answer that arrived without its outcome in the trail. Not counted: an answer that says itself that it was
         not recorded (`audit-unavailable`, `audit-outcome-unavailable`), and, after a loss of power, what was only
         *written* (no `phi` route) less than WRITTEN_S before it: docs/audit.md promises both.
ghost    An outcome that nobody asked for, or with another status than its request was answered. Not counted: an answer
         that never arrived, because its connection broke; an outcome that the gateway withdrew: it could not be made
         durable in time, so the caller was told `audit-outcome-unavailable` or `audit-unavailable` instead.
orphan   On `phi` routes, an outcome of something that ran without the intent that must come before it in the same
         chain; an intent without an outcome although the request was answered (and not by one of the two above); a
         completion without its outcome.
double   The same thing twice: two records of one request and phase, or two with the same bytes. Not counted: the answer
         that replaced a withdrawn outcome, an outcome of its own.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

NO_CODE = "-"
WRITTEN_S = 3.0
"""What is written is synced within a second, and a slow sync may take one or two."""
WITHDRAWN = frozenset({"audit-unavailable", "audit-outcome-unavailable"})
REFUSED_DIAL = "token:unit"
"""The rule of a unit's dial that was refused, as one is whose clock jumped: no caller asked for it."""
UNRECORDED = frozenset({"draining"})
"""Answers that the worker gives before a request becomes one: no event is promised."""


@dataclass(slots=True)
class Asked:
    """One request as its caller wrote it down. Shapes: `status` 0: no answer arrived. Units: monotonic seconds."""

    trace: str
    kind: str
    request_id: str = ""
    status: int = 0
    code: str = NO_CODE
    at_s: float = 0.0
    took_ms: float = 0.0

    @property
    def withdrawn(self) -> bool:
        return self.code in WITHDRAWN


@dataclass(frozen=True, slots=True)
class Kept:
    """One access event of the trail."""

    chain: str
    sequence: int
    phase: str
    request_id: str
    trace: str
    outcome: str
    rule: str
    status: int
    phi: bool
    canonical: str


@dataclass(slots=True)
class Verdict:
    """What breaks each rule, in words."""

    lost: list[str] = field(default_factory=list)
    ghost: list[str] = field(default_factory=list)
    orphan: list[str] = field(default_factory=list)
    double: list[str] = field(default_factory=list)

    def counts(self) -> dict[str, int]:
        return {name: len(getattr(self, name)) for name in self.__dataclass_fields__}

    @property
    def passed(self) -> bool:
        return not any(self.counts().values())


def read_ledger(lines: Iterable[str]) -> dict[str, Asked]:
    """Requests by their trace."""
    asked: dict[str, Asked] = {}
    for line in lines:
        word, trace, *rest = line.split()
        if word == "asked":
            asked[trace] = Asked(trace, rest[0])
        elif word == "answered":
            one = asked[trace]
            one.request_id, one.status, one.code = rest[0], int(rest[1]), rest[2]
            one.at_s, one.took_ms = float(rest[3]), float(rest[4])
    return asked


def judge(asked: dict[str, Asked], kept: Iterable[Kept], power_lost_s: float | None = None) -> Verdict:
    """Every rule. Shapes: `kept` in the order of each chain. Units: `power_lost_s` monotonic seconds."""
    verdict = Verdict()
    of_request: dict[str, list[Kept]] = defaultdict(list)
    for event in kept:
        if event.rule != REFUSED_DIAL:
            of_request[event.request_id].append(event)
    answered = {one.request_id: one for one in asked.values() if one.status}
    for request_id, one in answered.items():
        if not any(e.phase == "outcome" for e in of_request[request_id]) and _was_promised(one, power_lost_s):
            verdict.lost.append(f"{request_id}: {one.kind} {one.status} {one.code}")
    for request_id, events in of_request.items():
        if events:
            one = answered.get(request_id)
            _judge_outcomes(verdict, request_id, events, one, asked)
            _judge_order(verdict, request_id, events, one)
    _count_twice(verdict, of_request)
    return verdict


def _was_promised(one: Asked, power_lost_s: float | None) -> bool:
    if one.withdrawn or one.code in UNRECORDED:
        return False
    return power_lost_s is None or is_synced(one.kind) or one.at_s < power_lost_s - WRITTEN_S


def is_synced(kind: str) -> bool:
    """Does the trail have it on the disk, synced, before the answer?"""
    return kind.startswith("phi")


def _judge_outcomes(
    verdict: Verdict, request_id: str, events: list[Kept], one: Asked | None, asked: dict[str, Asked]
) -> None:
    outcomes = [e for e in events if e.phase == "outcome"]
    for event in outcomes:
        if event.trace not in asked:
            verdict.ghost.append(f"{request_id}: nobody asked for it")
            return
    if outcomes and one is not None and not one.withdrawn and outcomes[-1].status != one.status:
        verdict.ghost.append(f"{request_id}: {outcomes[-1].status} is recorded, {one.status} was answered")


def _judge_order(verdict: Verdict, request_id: str, events: list[Kept], one: Asked | None) -> None:
    seen: set[str] = set()
    for event in events:
        if event.phase == "outcome" and event.phi and _ran(event) and "intent" not in seen:
            verdict.orphan.append(f"{request_id}: outcome {event.status} {event.rule} without an intent before it")
        if event.phase == "completion" and "outcome" not in seen:
            verdict.orphan.append(f"{request_id}: completion without an outcome")
        seen.add(event.phase)
    if "intent" in seen and "outcome" not in seen and one is not None and not one.withdrawn:
        verdict.orphan.append(f"{request_id}: intent without an outcome, {one.status} was answered")


def _ran(event: Kept) -> bool:
    """Was the request dispatched? A refusal, and an intent that could not be kept, came before that."""
    return event.outcome == "allowed" or (event.outcome == "failed" and event.rule not in WITHDRAWN | UNRECORDED)


def _count_twice(verdict: Verdict, of_request: dict[str, list[Kept]]) -> None:
    texts: Counter[str] = Counter()
    for request_id, events in of_request.items():
        phases = Counter(e.phase for e in events if not (e.phase == "outcome" and e.rule in WITHDRAWN))
        phases.update(e.rule for e in events if e.phase == "outcome" and e.rule in WITHDRAWN)
        verdict.double += [f"{request_id}: {count} of {phase}" for phase, count in phases.items() if count > 1]
        texts.update(e.canonical for e in events)
    verdict.double += [f"{count} times: {text[:120]}" for text, count in texts.items() if count > 1]

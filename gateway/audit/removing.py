"""Removal of months that are past their time: what is to go is verified, the act is signed and kept, then it goes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gateway.audit.chain import genesis
from gateway.audit.lines import append, take_back
from gateway.audit.retention import Act, Acts, Removed, SealedAct, decode_sealed, due, encode, seal
from gateway.audit.verify import Anchors, ChainCheck, Start, Verdict

ACTS = "removals.ndjson"
"""In the folder of the trail: the acts, outside the database."""


class RemovalRefused(ValueError):
    """Nothing was removed; the message says why."""


class Store(Protocol):
    """See store.retention.RetentionStore."""

    def months(self) -> list[str]: ...
    def holds_of(self, month: str) -> list[str]: ...
    def ranges(self, months: Sequence[str]) -> list[tuple[str, int, int, int]]: ...
    def hash_of(self, chain: str, sequence: int) -> bytes | None: ...
    def acts(self) -> list[SealedAct]: ...
    def remove(self, number: int, sealed: SealedAct, months: Sequence[str], removed: Sequence[Removed]) -> None: ...


class Reader(Protocol):
    """See store.trail.TrailReader."""

    def lines(self, chain: str, after: int = 0, until: int | None = None) -> Iterable[bytes]: ...


@dataclass(slots=True)
class Plan:
    """Shapes: `held` month -> the holds that keep it; `removed` is empty where nothing is due."""

    months: list[str] = field(default_factory=list)
    held: dict[str, list[str]] = field(default_factory=dict)
    removed: list[Removed] = field(default_factory=list)
    records: int = 0


def plan(store: Store, reader: Reader, acts: Acts, anchors: Anchors, now_ms: int, keep_months: int) -> Plan:
    """What is due, with every record that would go verified first, also against what was signed.

    Raises: RemovalRefused if some of it is not as it was written: that is evidence.
    """
    found = Plan()
    for month in due(store.months(), now_ms, keep_months):
        holds = store.holds_of(month)
        if holds:
            found.held[month] = holds
        else:
            found.months.append(month)
    if found.months:
        for chain, first, last, count in store.ranges(found.months):
            before = _before(store, acts, chain, first)
            found.removed.append(_verified(reader, anchors, chain, first, last, before))
            found.records += count
            _look_behind(store, acts, anchors, chain, last)
    return found


def _before(store: Store, acts: Acts, chain: str, first: int) -> bytes:
    if first == 1:
        return genesis(chain)
    stored = store.hash_of(chain, first - 1)
    if stored is not None:
        return stored
    gone = acts.at(chain, first - 1)
    if gone is None or gone.last != first - 1:
        raise RemovalRefused(f"chain {chain}: record {first - 1} is missing, and no act says why: verify the trail")
    return bytes.fromhex(gone.hash)


def _look_behind(store: Store, acts: Acts, anchors: Anchors, chain: str, last: int) -> None:
    """SEC: where the end of a chain was cut off, its removal would take away what shows it."""
    signed = max(anchors.heads.get(chain, {}), default=0)
    if signed > last and store.hash_of(chain, last + 1) is None and acts.at(chain, last + 1) is None:
        raise RemovalRefused(
            f"chain {chain}: records {last + 1} to {signed} are missing, a checkpoint has signed them: verify the trail"
        )


def _verified(reader: Reader, anchors: Anchors, chain: str, first: int, last: int, before: bytes) -> Removed:
    verdict = Verdict()
    check = ChainCheck(chain, anchors, verdict, Start(first - 1, before))
    check.feed(reader.lines(chain, first - 1, last))
    if verdict.findings or check.sequence != last:
        what = verdict.findings[0] if verdict.findings else f"chain {chain}: ends before record {last}"
        raise RemovalRefused(f"{what}: what is not as it was written is not removed")
    return Removed(chain, first, last, before.hex(), check.hash.hex())


def carry_out(
    store: Store,
    found: Plan,
    key: Ed25519PrivateKey,
    folder: Path,
    *,
    now_ms: int,
    keep_months: int,
    by: str,
    reason: str,
) -> Act:
    """Sign the act, keep it in a file, remove.

    Raises: RemovalRefused by the store: the act is taken back. OSError, TrailUnreadable: it stays, since it may have
    been carried out.
    """
    acts = [*store.acts(), *read_file(folder / ACTS)]
    number = 1 + max((decode(one).number for one in acts), default=0)
    act = Act(
        v=1, number=number, at_ms=now_ms, by=by, reason=reason, keep_months=keep_months, months=tuple(found.months),
        held=tuple(sorted(found.held)), records=found.records, removed=tuple(found.removed),
    )  # fmt: skip
    sealed = seal(act, key)
    line = encode(sealed) + b"\n"
    size = append(folder / ACTS, line)
    try:
        store.remove(number, sealed, found.months, found.removed)
    except RemovalRefused:
        # SEC: by an act that lies about unused somebody else could remove what it names, and verification would agree.
        take_back(folder / ACTS, size - len(line))
        raise
    return act


def decode(sealed: SealedAct) -> Act:
    """An act whose signature is not looked at."""
    return msgspec.json.decode(sealed.act, type=Act)


def read_file(path: Path) -> list[SealedAct]:
    """The acts of a file; none if there is no file. Raises: ValueError, OSError."""
    if not path.exists():
        return []
    return [decode_sealed(line) for line in path.read_bytes().splitlines() if line.strip()]

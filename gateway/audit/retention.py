"""Removal of what is past its time: signed acts that say which records are gone, so that the chains hold without them.

signed = Ed25519("caregate-removal-1\\0" + canonical bytes)
Pure but for the keys.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from gateway.audit.checkpoint import CheckpointBad
from gateway.audit.signing import is_signed, sign
from gateway.audit.timestamp import civil

_CONTEXT = b"caregate-removal-1\0"
_DAY_MS = 86_400_000


class Removed(msgspec.Struct, frozen=True, array_like=True):
    """Records `first` to `last` of a chain. Shapes: `before` is the hash of record first - 1, `hash` that of `last`."""

    chain: str
    first: int
    last: int
    before: str
    hash: str


class Act(msgspec.Struct, frozen=True):
    """Shapes: `months` as 2026-01; `keep_months` what the rule was; `held` the months that a hold kept.
    Units: `at_ms` ms since 1970.
    """

    v: int
    number: int
    at_ms: int
    by: str
    reason: str
    keep_months: int
    months: tuple[str, ...]
    held: tuple[str, ...]
    records: int
    removed: tuple[Removed, ...]


class SealedAct(msgspec.Struct, frozen=True):
    """An act as it is kept: a line of JSON in a file, a row of a table. `signature` in hex."""

    act: str
    signature: str


encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Act).decode
decode_sealed = msgspec.json.Decoder(SealedAct).decode


def seal(act: Act, key: Ed25519PrivateKey) -> SealedAct:
    """Sign an act."""
    canonical = encode(act)
    return SealedAct(canonical.decode(), sign(_CONTEXT, canonical, key))


def unseal(sealed: SealedAct, keys: Sequence[Ed25519PublicKey]) -> Act:
    """An act that one of the keys has signed.

    Raises: CheckpointBad.
    """
    canonical = sealed.act.encode()
    if not is_signed(_CONTEXT, canonical, sealed.signature, keys):
        raise CheckpointBad("no key that is known has signed it")
    try:
        return _decode(canonical)
    except ValueError as error:
        raise CheckpointBad(str(error)) from None


@dataclass(slots=True)
class Acts:
    """What was removed by right. Shapes: `ranges` chain -> its removed records, in order."""

    acts: list[Act] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)
    ranges: dict[str, list[Removed]] = field(default_factory=dict)

    def at(self, chain: str, sequence: int) -> Removed | None:
        """The removed records that `sequence` is one of."""
        return next((one for one in self.ranges.get(chain, ()) if one.first <= sequence <= one.last), None)


def read_acts(sealed: Iterable[SealedAct], keys: Sequence[Ed25519PublicKey]) -> Acts:
    """Judge acts; one may be given more than once, by a table and by a file."""
    found = Acts()
    seen: set[SealedAct] = set()
    for one in sealed:
        if one in seen:
            continue
        seen.add(one)
        try:
            act = unseal(one, keys)
        except CheckpointBad as bad:
            found.bad.append(f"an act of removal is not what was signed: {bad}")
            continue
        found.acts.append(act)
        for removed in act.removed:
            found.ranges.setdefault(removed.chain, []).append(removed)
    found.acts.sort(key=lambda act: act.number)
    for ranges in found.ranges.values():
        ranges.sort(key=lambda one: (one.first, one.last))
    return found


def due(months: Iterable[str], now_ms: int, keep_months: int) -> list[str]:
    """The months of which every moment is older than `keep_months` months. Shapes: months as 2026-01."""
    year, month, _ = civil(now_ms // _DAY_MS)
    limit = year * 12 + month - 1 - keep_months
    return [name for name in sorted(months) if _ordinal(name) < limit]


def _ordinal(month: str) -> int:
    """Months since the year 0."""
    return int(month[:4]) * 12 + int(month[5:7]) - 1

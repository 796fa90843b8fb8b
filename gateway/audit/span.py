"""Which checkpoints bound a span of time, and with them which records of each chain lie in it. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec

from gateway.audit.checkpoint import Checkpoint, Sealed
from gateway.audit.verify import Start

_decode = msgspec.json.Decoder(Checkpoint).decode


@dataclass(slots=True)
class Span:
    """Shapes: `sealed`: the checkpoints of the span in order, the last before it and the first behind it included;
    `starts`: where chains are taken up that are older than it; `ends`: the last record of each chain, None: no bound.
    """

    sealed: list[Sealed] = field(default_factory=list)
    starts: dict[str, Start] = field(default_factory=dict)
    ends: dict[str, int] | None = None

    def start_of(self, chain: str) -> Start | None:
        return self.starts.get(chain)

    def end_of(self, chain: str) -> int | None:
        """0: the chain begins behind the span."""
        return None if self.ends is None else self.ends.get(chain, 0)


def span_of(sealed: Iterable[Sealed], from_ms: int, to_ms: int) -> Span:
    """The span between two times; 0: no bound. One checkpoint may be given more than once.

    Raises: ValueError for what is no checkpoint at all; signatures are not looked at.
    """
    series: dict[str, dict[int, list[tuple[Checkpoint, Sealed]]]] = defaultdict(lambda: defaultdict(list))
    for one in sealed:
        checkpoint = _decode(one.checkpoint)
        versions = series[checkpoint.source][checkpoint.number]
        if all(known != one for _, known in versions):
            versions.append((checkpoint, one))
    span = Span(ends={} if to_ms else None)
    for numbers in series.values():
        _bound([entry for number in sorted(numbers) for entry in numbers[number]], from_ms, to_ms, span)
    return span


def _bound(entries: list[tuple[Checkpoint, Sealed]], from_ms: int, to_ms: int, span: Span) -> None:
    # NOTE: clocks are set back: all up to `first` are older than the span, and none from `last` on is needed for it.
    first, last = 0, len(entries)
    if from_ms:
        first = next((i for i, (checkpoint, _) in enumerate(entries) if checkpoint.covers_ms > from_ms), last) - 1
        if first >= 0:
            for head in entries[first][0].heads:
                span.starts[head.chain] = Start(head.sequence, bytes.fromhex(head.hash))
        first = max(0, first)
    if to_ms:
        before = max((i for i, (checkpoint, _) in enumerate(entries) if checkpoint.covers_ms < to_ms), default=-1)
        last = min(last, before + 2)
    if span.ends is not None and last:
        span.ends |= {head.chain: head.sequence for head in entries[last - 1][0].heads}
    span.sealed += [one for _, one in entries[first:last]]

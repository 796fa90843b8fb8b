"""Does the trail say today what it said when it was written? Judges records and checkpoints, wherever they come from.

Pure: iterables in, findings out. Every column is derived again from the canonical bytes, every hash from its
predecessor, every chain's end from what was signed.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from gateway.audit.chain import genesis, link
from gateway.audit.checkpoint import FIRST_PREVIOUS, Checkpoint, CheckpointBad, Sealed, digest, unseal
from gateway.audit.columns import COLUMNS, follow, row, values
from gateway.audit.event import decode
from gateway.audit.retention import Acts

_MOST_FINDINGS = 100
_AT_ONCE = 500
"""Rows that are looked at together."""
_SLACK_MS = 5_000
"""How much earlier than it was signed for an event may say it was written: clocks are set back by that much."""
_GONE_MS = 600_000
"""A machine that has signed nothing for so much longer than another is gone."""
_UNESCAPED = {b"t": b"\t", b"n": b"\n", b"r": b"\r", b"b": b"\b", b"f": b"\f", b"v": b"\v"}
_ESCAPE = re.compile(rb"\\(.)", re.DOTALL)
_HASH = COLUMNS.index("hash")


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it was. `sequence` 0: of the chain as a whole; `chain` empty: of the checkpoints."""

    chain: str
    sequence: int
    what: str

    def __str__(self) -> str:
        where = (
            f"chain {self.chain}" + (f" record {self.sequence}" if self.sequence else "")
            if self.chain
            else "checkpoints"
        )
        return f"{where}: {self.what}"


@dataclass(slots=True)
class Verdict:
    """Shapes: `sealed` counts the records that a signed checkpoint covers, `unsealed` those after the last one.
    Units: `covers_ms` ms since 1970, 0: nothing is covered.
    """

    findings: list[Finding] = field(default_factory=list)
    chains: int = 0
    records: int = 0
    sealed: int = 0
    checkpoints: int = 0
    covers_ms: int = 0
    removed: int = 0
    """Records that are gone by acts of removal."""

    begun: int = 0
    """Chains that are taken up behind a signed record: what came before was not looked at."""

    @property
    def unsealed(self) -> int:
        return self.records - self.sealed

    def find(self, chain: str, sequence: int, what: str) -> None:
        if len(self.findings) < _MOST_FINDINGS:
            self.findings.append(Finding(chain, sequence, what))


@dataclass(slots=True)
class Anchors:
    """What the checkpoints say of the chains.

    Shapes: `heads`: chain -> sequence -> hash; `source`: chain -> who signs it; `covers_ms`: source -> until when its
    last checkpoint covers everything.
    """

    heads: dict[str, dict[int, str]] = field(default_factory=lambda: defaultdict(dict))
    source: dict[str, str] = field(default_factory=dict)
    covers_ms: dict[str, int] = field(default_factory=dict)

    def until_ms(self, chain: str = "") -> int:
        """Until when everything of a chain is covered; of a chain that nobody signs: by all who sign still."""
        source = self.source.get(chain)
        if source is not None:
            return self.covers_ms[source]
        living_ms = max(self.covers_ms.values(), default=0) - _GONE_MS
        return min((until for until in self.covers_ms.values() if until > living_ms), default=0)


def read_checkpoints(sealed: Iterable[Sealed], keys: Sequence[Ed25519PublicKey], verdict: Verdict) -> Anchors:
    """Judge checkpoints, in the order of their numbers for each source, and gather what they say.

    A series may begin anywhere: what came before is older than what is asked for.
    """
    anchors = Anchors()
    last: dict[str, tuple[int, str]] = {}
    for one in sealed:
        try:
            checkpoint = unseal(one, keys)
        except CheckpointBad as bad:
            verdict.find("", 0, f"one of them is not what was signed: {bad}")
            continue
        canonical = one.checkpoint
        number, previous = last.get(checkpoint.source, (0, FIRST_PREVIOUS if checkpoint.number == 1 else ""))
        if checkpoint.number == number and previous == digest(canonical):
            continue
        _follow(checkpoint, number, previous, verdict)
        last[checkpoint.source] = (checkpoint.number, digest(canonical))
        verdict.checkpoints += 1
        _gather(checkpoint, anchors, verdict)
    return anchors


def _follow(checkpoint: Checkpoint, number: int, previous: str, verdict: Verdict) -> None:
    name = f"number {checkpoint.number} of {checkpoint.source}"
    if number and checkpoint.number != number + 1:
        verdict.find("", 0, f"number {number + 1} of {checkpoint.source} is missing, {checkpoint.number} follows")
    elif previous and checkpoint.previous != previous:
        verdict.find("", 0, f"{name} does not follow from the one before")


def _gather(checkpoint: Checkpoint, anchors: Anchors, verdict: Verdict) -> None:
    for head in checkpoint.heads:
        anchors.source[head.chain] = checkpoint.source
        known = anchors.heads[head.chain].setdefault(head.sequence, head.hash)
        if known != head.hash:
            verdict.find(head.chain, head.sequence, "two checkpoints say different things")
    # NOTE: the last one counts, not the latest: where the clock was set back, it has signed that.
    anchors.covers_ms[checkpoint.source] = checkpoint.covers_ms


def compare_copies(
    in_database: Iterable[tuple[str, int, Sealed]],
    outside: Iterable[Sealed],
    shipped: Mapping[str, int],
    verdict: Verdict,
) -> None:
    """Does the database have the checkpoints that are outside it, under their own names?

    Shapes: `in_database` is source and number as columns, and the checkpoint; `shipped` says of a source up to which
    number it should have them all; without that, up to the last one it has.
    """
    known: dict[str, set[int]] = defaultdict(set)
    for source, number, sealed in in_database:
        known[source].add(number)
        found = _named(sealed)
        if found is not None and found != (source, number):
            verdict.find("", 0, f"number {number} of {source} in the database is number {found[1]} of {found[0]}")
    for source, number in sorted({found for found in map(_named, outside) if found is not None}):
        last = max(known[source], default=0)
        if number not in known[source] and number <= max(last, shipped.get(source, 0)):
            verdict.find("", 0, f"number {number} of {source} is missing in the database")


def _named(sealed: Sealed) -> tuple[str, int] | None:
    try:
        checkpoint = _decode_checkpoint(sealed.checkpoint)
    except ValueError:
        return None
    return checkpoint.source, checkpoint.number


_decode_checkpoint = msgspec.json.Decoder(Checkpoint).decode


@dataclass(slots=True)
class Start:
    """Where a chain is taken up: behind record `sequence`, whose hash is known."""

    sequence: int
    hash: bytes


class ChainCheck:
    """One chain's records, fed in the order of their sequence numbers."""

    def __init__(
        self,
        chain: str,
        anchors: Anchors,
        verdict: Verdict,
        start: Start | None = None,
        acts: Acts | None = None,
    ) -> None:
        self._chain = chain
        self._heads = anchors.heads.get(chain, {})
        self._signed = sorted(self._heads)
        self._until_ms = anchors.until_ms(chain)
        self._verdict = verdict
        self._sequence = start.sequence if start else 0
        self._hash = start.hash if start else genesis(chain)
        self._trusted = self._sequence
        self._fed = self._sealed = 0
        self._rewritten = False
        self._acts = acts or Acts()

    @property
    def sequence(self) -> int:
        """The last record that took its place."""
        return self._sequence

    @property
    def hash(self) -> bytes:
        """Of that record."""
        return self._hash

    def feed(self, lines: Iterable[bytes]) -> None:
        """Judge rows as PostgreSQL copies them out: COLUMNS in text format, one line each."""
        lines = iter(lines)
        while batch := list(islice(lines, _AT_ONCE)):
            self._feed(batch)

    def _feed(self, lines: list[bytes]) -> None:
        at = 0
        while at < len(lines):
            # As far as the next record that a checkpoint has signed they need only follow from one another.
            next_head = bisect_right(self._signed, self._sequence)
            most = self._signed[next_head] - self._sequence if next_head < len(self._signed) else 0
            count, self._hash = follow(self._chain, lines, at, self._sequence, self._hash, most=most)
            at += count
            self._sequence += count
            self._verdict.records += count
            self._fed += count
            if count and count == most:
                self._meet_head(self._heads[self._sequence])
            elif at < len(lines):
                self._judge(lines[at])
                at += 1

    def _judge(self, line: bytes) -> None:
        """A row that may be anything."""
        sequence = self._sequence + 1
        canonical = line[line.rfind(b"\t") + 1 : -1]
        if b"\\" in canonical:
            canonical = unescape(canonical)
        found = link(self._hash, sequence, canonical)
        good = _is_good(self._chain, sequence, found, canonical, line)
        if not good and self._skip():
            sequence = self._sequence + 1
            found = link(self._hash, sequence, canonical)
            good = _is_good(self._chain, sequence, found, canonical, line)
        if good:
            self._sequence, self._hash = sequence, found
        elif not self._diagnose(line, canonical):
            return
        self._verdict.records += 1
        self._fed += 1
        if self._sequence in self._heads:
            self._meet_head(self._heads[self._sequence])
        elif not self._signed or self._sequence > self._signed[-1]:
            self._meet_unsigned(canonical)

    def finish(self, end: int | None = None) -> None:
        """All records were fed; `end`: the last one that was asked for."""
        self._skip(end)
        last = max((n for n in self._heads if end is None or n <= end), default=0)
        if last > self._sequence:
            what = f"truncated: records {self._sequence + 1} to {last} are missing, a checkpoint has signed them"
            self._verdict.find(self._chain, self._sequence + 1, what)
        self._verdict.chains += 1
        self._verdict.sealed += self._sealed

    def _skip(self, end: int | None = None) -> bool:
        """Go on behind records that were removed by right, as far as `end`; False if the next one was not."""
        began = self._sequence
        while end is None or self._sequence < end:
            gone = self._acts.at(self._chain, self._sequence + 1)
            if gone is None or (gone.first == self._sequence + 1 and gone.before != self._hash.hex()):
                break
            count = gone.last - self._sequence
            self._verdict.removed += count
            self._sequence, self._hash = gone.last, bytes.fromhex(gone.hash)
            if self._heads.get(gone.last, gone.hash) != gone.hash:
                what = "an act of removal says another hash than the checkpoint"
                self._verdict.find(self._chain, gone.last, what)
            # What an act says is signed, as what a checkpoint says is.
            self._trusted = gone.last
        return self._sequence > began

    def _meet_head(self, signed: str) -> None:
        if self._hash.hex() == signed:
            self._trusted, self._sealed = self._sequence, self._fed
        elif not self._rewritten:
            self._rewritten = True
            what = f"rewritten: records {self._trusted + 1} to {self._sequence} are not those that were signed"
            self._verdict.find(self._chain, self._trusted + 1, what)

    def _meet_unsigned(self, canonical: bytes) -> None:
        """Behind what was signed there may only be what is younger."""
        try:
            at_ms = decode(canonical).at_ms
        except ValueError:
            return
        if at_ms < self._until_ms - _SLACK_MS and not self._rewritten:
            self._rewritten = True
            what = "added: it says it is older than the last checkpoint, which does not know it"
            self._verdict.find(self._chain, self._sequence, what)

    def _diagnose(self, line: bytes, canonical: bytes) -> bool:
        """Say what is wrong with a row; True if it takes its place in the chain all the same."""
        texts = [unescape(text) for text in line[:-1].split(b"\t")]
        try:
            sequence, stored = int(texts[1]), bytes.fromhex(texts[_HASH].decode("ascii").removeprefix("\\x"))
        except (ValueError, IndexError):
            self._verdict.find(self._chain, self._sequence + 1, "unreadable")
            return False
        expected = self._sequence + 1
        if sequence < expected:
            self._verdict.find(self._chain, sequence, "added: this number is there more than once")
            return False
        missing = sequence > expected
        if missing:
            what = f"missing: records {expected} to {sequence - 1}" if sequence - 1 > expected else "missing"
            self._verdict.find(self._chain, expected, what)
        before = self._hash
        self._sequence, self._hash = sequence, stored
        if not missing and link(before, sequence, canonical) != stored:
            self._verdict.find(self._chain, sequence, "changed: its hash does not follow from it and its predecessor")
        self._compare(sequence, stored, canonical, texts)
        return True

    def _compare(self, sequence: int, stored: bytes, canonical: bytes, texts: list[bytes]) -> None:
        try:
            derived = values(self._chain, sequence, stored, canonical)
        except (ValueError, OverflowError, OSError):
            self._verdict.find(self._chain, sequence, "changed: what it holds is no event")
            return
        names = [name for name, want, have in zip(COLUMNS, derived, texts, strict=True) if want.encode() != have]
        if names:
            self._verdict.find(self._chain, sequence, f"changed: {', '.join(names)} differ from the canonical bytes")


def _is_good(chain: str, sequence: int, found: bytes, canonical: bytes, line: bytes) -> bool:
    """Is the row what follows from its canonical bytes?"""
    try:
        return row(chain, sequence, found, canonical) == line
    except (ValueError, OverflowError, OSError):
        return False


def unescape(text: bytes) -> bytes:
    """A value of PostgreSQL's COPY in text format."""
    return _ESCAPE.sub(lambda found: _UNESCAPED.get(found[1], found[1]), text) if b"\\" in text else text


def judge_start(chain: str, start: Start, anchors: Anchors, verdict: Verdict) -> None:
    """May a chain be taken up there: at its beginning, or behind a record that was signed?"""
    known = anchors.heads.get(chain, {}).get(start.sequence) if start.sequence else genesis(chain).hex()
    if known == start.hash.hex():
        verdict.begun += start.sequence > 0
        return
    what = f"missing: it begins behind record {start.sequence}, as which no checkpoint has signed this one"
    verdict.find(chain, 1 if start.sequence else 0, what if start.sequence else "changed: it begins with another hash")


def verify(
    chains: Iterable[str],
    lines_of: Callable[[str], Iterable[bytes]],
    anchors: Anchors,
    verdict: Verdict,
    start_of: Callable[[str], Start | None] = lambda chain: None,
    end_of: Callable[[str], int | None] = lambda chain: None,
    acts: Acts | None = None,
) -> Verdict:
    """Judge all chains, those too that only the checkpoints know.

    Shapes: `lines_of(chain)` yields its rows in order, behind `start_of(chain)` and up to `end_of(chain)`.
    """
    verdict.covers_ms = anchors.until_ms()
    acts = acts or Acts()
    for what in acts.bad:
        verdict.find("", 0, what)
    for chain in sorted({*chains, *anchors.heads}):
        start = start_of(chain)
        if start is not None:
            judge_start(chain, start, anchors, verdict)
        check = ChainCheck(chain, anchors, verdict, start, acts)
        check.feed(lines_of(chain))
        check.finish(end_of(chain))
    return verdict

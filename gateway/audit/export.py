"""The trail in one file, to be kept or verified elsewhere: a line of JSON for each checkpoint, then for each record.

{"caregate_audit_export":1,"from_ms":…,"to_ms":…}
{"checkpoint":"…","signature":"…"}                               canonical bytes as text
{"act":"…","signature":"…"}                                      of a removal, likewise
{"chain":"…","start":…,"hash":"…"}                               the records that follow are of this chain
{"sequence":…,"hash":"…","canonical":"…"}
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import orjson

from gateway.audit.checkpoint import Sealed
from gateway.audit.columns import COLUMNS, row
from gateway.audit.retention import SealedAct
from gateway.audit.verify import Start, unescape

_SEQUENCE, _HASH, _CANONICAL = (COLUMNS.index(name) for name in ("sequence", "hash", "canonical"))
_CHAIN = b'{"chain"'
_RECORD = ["sequence", "hash", "canonical"]


class ExportBad(ValueError):
    """A file that is no export, or no longer one; the message says where."""


class Sink(Protocol):
    """Where an export is written to."""

    def write(self, data: bytes, /) -> int: ...


def write_export(
    file: Sink,
    sealed: Iterable[Sealed],
    chains: Iterable[tuple[str, Start, Iterable[bytes]]],
    times: tuple[int, int],
    acts: Iterable[SealedAct] = (),
) -> int:
    """Write an export; the number of records.

    Shapes: a chain's rows as PostgreSQL copies them out; `times` is from and to, in ms since 1970, 0: no bound.
    Raises: OSError.
    """
    count = 0
    _write(file, {"caregate_audit_export": 1, "from_ms": times[0], "to_ms": times[1]})
    for one in sealed:
        _write(file, {"checkpoint": one.checkpoint, "signature": one.signature})
    for act in acts:
        _write(file, {"act": act.act, "signature": act.signature})
    for chain, start, lines in chains:
        _write(file, {"chain": chain, "start": start.sequence, "hash": start.hash.hex()})
        for line in lines:
            texts = line[:-1].split(b"\t")
            canonical = unescape(texts[_CANONICAL]).decode()
            digest = unescape(texts[_HASH]).decode().removeprefix("\\x")
            _write(file, {"sequence": int(texts[_SEQUENCE]), "hash": digest, "canonical": canonical})
            count += 1
    return count


def _write(file: Sink, line: dict[str, object]) -> None:
    file.write(orjson.dumps(line) + b"\n")


@dataclass(slots=True)
class Export:
    """What an export holds, but for the records: those are read from the file chain by chain.

    Shapes: `chains`: name -> where it is taken up, and the byte its records begin at.
    """

    path: Path
    sealed: list[Sealed] = field(default_factory=list)
    acts: list[SealedAct] = field(default_factory=list)
    chains: dict[str, tuple[Start, int]] = field(default_factory=dict)

    def lines(self, chain: str) -> Iterator[bytes]:
        """A chain's records as rows whose columns are derived: an export has none of its own."""
        if chain not in self.chains:
            return
        with self.path.open("rb") as file:
            file.seek(self.chains[chain][1])
            for number, line in enumerate(file):
                if line.startswith(_CHAIN):
                    return
                yield _row(chain, _parse(line, number), line)


def _row(chain: str, record: dict[str, object], line: bytes) -> bytes:
    # SEC: what else a line said, or said twice, another reader would take for the trail's.
    if list(record) != _RECORD or orjson.dumps(record) != line.rstrip(b"\n"):
        return b"unreadable\n"
    try:
        canonical = str(record["canonical"]).encode()
        return row(chain, int(str(record["sequence"])), bytes.fromhex(str(record["hash"])), canonical)
    except (KeyError, ValueError, OverflowError, OSError):
        return b"unreadable\n"


def read_export(path: Path) -> Export:
    """Raises: ExportBad, OSError."""
    export = Export(path)
    with path.open("rb") as file:
        if _parse(file.readline(), 1).get("caregate_audit_export") != 1:
            raise ExportBad("not an audit export")
        at = file.tell()
        for number, line in enumerate(file, 2):
            at += len(line)
            if line.startswith(b'{"checkpoint"'):
                record = _parse(line, number)
                export.sealed.append(Sealed(str(record.get("checkpoint")), str(record.get("signature"))))
            elif line.startswith(b'{"act"'):
                record = _parse(line, number)
                export.acts.append(SealedAct(str(record.get("act")), str(record.get("signature"))))
            elif line.startswith(_CHAIN):
                chain, start = _chain(_parse(line, number), number)
                if chain in export.chains:
                    raise ExportBad(f"line {number} begins a chain a second time")
                export.chains[chain] = (start, at)
            elif not export.chains:
                raise ExportBad(f"line {number} is of no chain")
    return export


def _chain(record: dict[str, object], number: int) -> tuple[str, Start]:
    try:
        return str(record["chain"]), Start(int(str(record["start"])), bytes.fromhex(str(record["hash"])))
    except (KeyError, ValueError):
        raise ExportBad(f"line {number} says no chain") from None


def _parse(line: bytes, number: int) -> dict[str, object]:
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError:
        raise ExportBad(f"line {number} is torn") from None
    if not isinstance(record, dict):
        raise ExportBad(f"line {number} is no object")
    return record

"""Where marks are looked for: answers, logs, metrics, the audit spool and the audit trail."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from gateway.canary.marks import Marks

PERSONAL_FIELDS = frozenset(
    {"patient", "resource_id", "issuer", "subject", "organisation", "client", "token_id", "client_address"}
)
"""Members of an audit event that say who and whose record: they are what the trail is for."""
_EVENT = b'{"v":'


@dataclass(frozen=True, slots=True)
class Leak:
    """Shapes: `sink` says where, `kinds` what was found there."""

    sink: str
    kinds: frozenset[str]


def look(sink: str, data: bytes, marks: Marks) -> Iterator[Leak]:
    """Leaks in a piece of data."""
    kinds = marks.find(data)
    if kinds:
        yield Leak(sink, frozenset(kinds))


def look_in_files(paths: Iterable[Path], marks: Marks) -> Iterator[Leak]:
    """Leaks in files and in all files of folders. Raises: OSError."""
    for path in sorted(files_of(paths)):
        yield from look(str(path), _content(path), marks)


def look_in_spool(folder: Path, marks: Marks) -> Iterator[Leak]:
    """Leaks in the files of the audit trail: events but for their personal fields, and whatever is no event.

    Raises: OSError.
    """
    for path in sorted(files_of([folder])):
        yield from look(str(path), b"\n".join(without_personal_fields(_content(path))), marks)


def look_in_rows(sink: str, rows: Iterable[Mapping[str, object]], marks: Marks) -> Iterator[Leak]:
    """Leaks in rows of the trail. Shapes: a row is column -> value; `canonical` is an event's text."""
    kinds: set[str] = set()
    for row in rows:
        for column, value in row.items():
            if column in PERSONAL_FIELDS or value is None:
                continue
            data = value if isinstance(value, bytes) else str(value).encode()
            kinds |= marks.find(b"".join(without_personal_fields(data)) if column == "canonical" else data)
    if kinds:
        yield Leak(sink, frozenset(kinds))


def without_personal_fields(data: bytes) -> Iterator[bytes]:
    """Pieces of the data: what is between events as it is, events without their personal fields."""
    decode = json.JSONDecoder().raw_decode
    before, *rest = data.split(_EVENT)
    yield before
    for piece in rest:
        text = (_EVENT + piece).decode("utf-8", "replace")
        try:
            event, end = decode(text)
        except ValueError:
            yield text.encode()
            continue
        yield json.dumps({name: value for name, value in event.items() if name not in PERSONAL_FIELDS}).encode()
        yield text[end:].encode()


def _content(path: Path) -> bytes:
    """A file's bytes; none of one that went away since it was seen, as a spool's files do when they are shipped."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def files_of(paths: Iterable[Path]) -> set[Path]:
    """The files among the paths and below them."""
    return {
        one
        for path in paths
        for one in (path.rglob("*") if path.is_dir() else [path])
        if one.is_file() and not one.is_symlink()
    }

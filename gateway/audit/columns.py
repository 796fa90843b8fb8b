"""The columns of the trail's table, each derived from chain, sequence, hash and canonical bytes. Pure."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

from msgspec.structs import fields

from fastpath.events import Rows
from gateway.audit.event import AuditEvent, decode

if TYPE_CHECKING:
    from mmap import mmap

_DERIVED = (
    "kind", "phase", "duration_us", "request_id", "outcome", "rule", "status", "method", "trace", "delivery", "unit",
    "agent", "patient", "resource_id", "client_address", "route", "action", "resource_type", "phi", "purpose", "issuer",
    "subject", "role", "audience", "organisation", "client", "token_id", "node", "config_version",
)  # fmt: skip
COLUMNS = ("chain", "sequence", "occurred_at", *_DERIVED, "hash", "canonical")
"""In the order of `row`; the last one is the canonical bytes themselves."""


def row(chain: str, sequence: int, digest: bytes, canonical: bytes) -> bytes:
    """A line of PostgreSQL's COPY in text format, and so what COPY gives back for an untouched row.

    Raises: ValueError if the bytes are no event.
    """
    plain = _rows.row(chain.encode(), sequence, digest, canonical)
    return plain if plain is not None else _other_row(chain, sequence, digest, canonical)


def rows(
    chain: str, records: mmap | bytes, at: int, end: int, after: int, until: int, *, most: int, most_bytes: int
) -> tuple[bytes, int, int, int]:
    """The rows of a stretch of a spool's records: see fastpath.events.Rows.stretch.

    Raises: ValueError if there is one whose bytes are no event.
    """
    other = partial(_other_row, chain)
    return _rows.stretch(
        chain.encode(), records, at, end, after, until, most=most, most_bytes=most_bytes, other=other
    )  # fmt: skip


def follow(chain: str, lines: list[bytes], at: int, sequence: int, digest: bytes, *, most: int) -> tuple[int, bytes]:
    """How far lines are the rows of the records that follow record `sequence`: see fastpath.events.Rows.follow."""
    return _rows.follow(chain.encode(), lines, at, sequence, digest, most)


def _other_row(chain: str, sequence: int, digest: bytes, canonical: bytes) -> bytes:
    # What JSON writes with a backslash, COPY does too: tabs, line breaks, backslashes.
    return ("\t".join(text.translate(_ESCAPES) for text in values(chain, sequence, digest, canonical)) + "\n").encode()


def values(chain: str, sequence: int, digest: bytes, canonical: bytes) -> tuple[str, ...]:
    """The same as texts that PostgreSQL reads as values of the columns."""
    e = decode(canonical)
    derived = [_value(getattr(e, name)) for name in _DERIVED]
    return (chain, str(sequence), timestamp(e.at_ms), *derived, f"\\x{digest.hex()}", canonical.decode())


_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r", "\b": "\\b", "\f": "\\f", "\v": "\\v"})


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "t" if value else "f"
    return str(value)


def _second(whole: int) -> bytes:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(whole)).encode()


def timestamp(at_ms: int) -> str:
    """As PostgreSQL writes a timestamptz in UTC with DateStyle ISO."""
    whole, ms = divmod(at_ms, 1000)
    return _second(whole).decode() + (f".{ms:03}".rstrip("0") if ms else "") + "+00"


_KINDS: dict[object, type] = {str: str, int: int, bool: bool}
_MEMBERS = [(member.name, _KINDS[member.type]) for member in fields(AuditEvent) if member.type in _KINDS]
_rows = Rows(_MEMBERS, {"v", "at_ms"}, sum(member.required for member in fields(AuditEvent)), _second)

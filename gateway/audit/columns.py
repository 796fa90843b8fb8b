"""The columns of the trail's table, each derived from chain, sequence, hash and canonical bytes. Pure."""

from __future__ import annotations

import time

from gateway.audit.event import AuditEvent, decode

_DERIVED = (
    "kind", "phase", "duration_us", "request_id", "outcome", "rule", "status", "method", "trace", "delivery", "unit",
    "agent", "patient", "resource_id", "client_address", "route", "action", "resource_type", "phi", "purpose", "issuer",
    "subject", "role", "audience", "organisation", "client", "token_id", "node", "config_version",
)  # fmt: skip
COLUMNS = ("chain", "sequence", "occurred_at", *_DERIVED, "hash", "canonical")
"""In the order of `row`; the last one is the canonical bytes themselves."""


def row(chain: str, sequence: int, digest: bytes, canonical: bytes) -> bytes:
    """A line of PostgreSQL's COPY in text format, and so what COPY gives back for an untouched row.

    Raises: msgspec.MsgspecError if the bytes are no event.
    """
    e = decode(canonical)
    text = (
        f"{chain}\t{sequence}\t{timestamp(e.at_ms)}\t{e.kind}\t{e.phase}\t{e.duration_us}\t{e.request_id}\t{e.outcome}"
        f"\t{e.rule}\t{e.status}\t{e.method}\t{e.trace}\t{e.delivery}\t{e.unit}\t{e.agent}\t{e.patient}"
        f"\t{e.resource_id}\t{e.client_address}\t{e.route}\t{e.action}\t{e.resource_type}\t{'t' if e.phi else 'f'}"
        f"\t{e.purpose}\t{e.issuer}\t{e.subject}\t{e.role}\t{e.audience}\t{e.organisation}\t{e.client}\t{e.token_id}"
        f"\t{e.node}\t{e.config_version}\t\\\\x{digest.hex()}\t{canonical.decode()}\n"
    )
    if b"\\" in canonical:
        # What JSON writes with a backslash, COPY does too: tabs, line breaks, backslashes.
        text = _escaped_row(chain, sequence, digest, canonical, e)
    return text.encode()


def values(chain: str, sequence: int, digest: bytes, canonical: bytes) -> tuple[str, ...]:
    """The same as texts that PostgreSQL reads as values of the columns."""
    e = decode(canonical)
    derived = [_value(getattr(e, name)) for name in _DERIVED]
    return (chain, str(sequence), timestamp(e.at_ms), *derived, f"\\x{digest.hex()}", canonical.decode())


def _escaped_row(chain: str, sequence: int, digest: bytes, canonical: bytes, e: AuditEvent) -> str:
    return "\t".join(text.translate(_ESCAPES) for text in values(chain, sequence, digest, canonical)) + "\n"


_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r", "\b": "\\b", "\f": "\\f", "\v": "\\v"})


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "t" if value else "f"
    return str(value)


_second = (-1, "")


def timestamp(at_ms: int) -> str:
    """As PostgreSQL writes a timestamptz in UTC with DateStyle ISO; the second is formatted once."""
    global _second
    whole, ms = divmod(at_ms, 1000)
    if whole != _second[0]:
        _second = (whole, time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(whole)))
    return f"{_second[1]}.{ms:03}".rstrip("0") + "+00" if ms else f"{_second[1]}+00"

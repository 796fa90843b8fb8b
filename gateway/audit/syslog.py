"""An event as a syslog message, framed for a stream over TLS. Pure.

Source: RFC 5424 (message), RFC 5425 (octet counting over TLS); RFC 3339 times.
"""

from __future__ import annotations

import re

from gateway.audit.event import AuditEvent
from gateway.audit.timestamp import instant

APP_NAME = "caregate"
SD_ID = "caregate@32473"
"""Source: RFC 5612: 32473 is the enterprise number for examples; the name is in front of it."""
_FACILITY = 13
"""Log audit."""
_SEVERITIES = {"refused": 4, "failed": 3, "cut": 3, "pending": 5}
_INFORMATIONAL = 6
_UNPRINTABLE = re.compile(r"[^!-~]")
_ESCAPED = re.compile(r'(["\\\]])')
_PARAMETERS = (
    "outcome", "rule", "action", "patient", "unit", "route", "issuer", "subject", "role", "organisation", "client",
    "client_address", "purpose", "request_id",
)  # fmt: skip


def message(event: AuditEvent, chain: str, sequence: int, canonical: bytes) -> bytes:
    """One message; its text is the canonical bytes, so that a collector can check the chain."""
    priority = _FACILITY * 8 + _SEVERITIES.get(event.outcome, _INFORMATIONAL)
    names = [("chain", chain), ("sequence", str(sequence))]
    names += [(name, value) for name in _PARAMETERS if (value := getattr(event, name))]
    data = " ".join(f'{name}="{_ESCAPED.sub(_escape, value)}"' for name, value in names)
    header = f"<{priority}>1 {instant(event.at_ms)} {_name(event.node, 255)} {APP_NAME} - {_name(event.kind, 32)}"
    return f"{header} [{SD_ID} {data}] ".encode() + b"\xef\xbb\xbf" + canonical


def frame(one: bytes) -> bytes:
    """With its length in front. Source: RFC 5425, 4.3."""
    return str(len(one)).encode() + b" " + one


def _escape(found: re.Match[str]) -> str:
    return "\\" + found[1]


def _name(text: str, most: int) -> str:
    return _UNPRINTABLE.sub("_", text)[:most] or "-"

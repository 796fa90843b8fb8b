"""Events as CSV that a spreadsheet may open: no cell begins a formula. Pure.

Source: RFC 4180; OWASP, CSV injection.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence

from gateway.audit.event import AuditEvent
from gateway.audit.timestamp import instant

EVENT_COLUMNS = (
    "at", "kind", "phase", "outcome", "rule", "status", "action", "patient", "resource_type", "resource_id", "unit",
    "route", "issuer", "subject", "role", "organisation", "client", "client_address", "purpose", "request_id", "trace",
    "delivery", "duration_us", "node", "config_version", "detail", "chain", "sequence",
)  # fmt: skip
_FORMULA = frozenset("=+-@\t\r\n|%\uff1d\uff0b\uff0d\uff20")
"""What begins a formula, or a command, in one spreadsheet or another; full-width forms too."""
_SKIPPED = re.compile(r"(?:[^\S\t\r\n]|['\"\ufeff\u200b-\u200f\u2060])*")
"""White space, marks that are not seen, quotes."""


def cell(value: object) -> str:
    """A value as a spreadsheet shows it and does not run it: what would be a formula begins with an apostrophe."""
    text = str(value).replace("\0", "\ufffd")
    # SEC: spreadsheets skip white space, and quotes of their own, before they look for a formula.
    begins = _SKIPPED.sub("", text, count=1)[:1]
    is_number = text.lstrip("-").isdigit() and text.count("-") <= 1
    return "'" + text if begins in _FORMULA and begins and not is_number else text


def line(values: Iterable[object]) -> str:
    """One record; every cell in quotes."""
    out = io.StringIO()
    csv.writer(out, quoting=csv.QUOTE_ALL, lineterminator="\r\n").writerow([cell(value) for value in values])
    return out.getvalue()


def event_values(event: AuditEvent, chain: str, sequence: int, patient: str) -> Sequence[object]:
    """An event in the order of EVENT_COLUMNS; `patient` as it is to be shown, also where it is the resource."""
    resource_id = patient if event.resource_id == event.patient else event.resource_id
    detail = "; ".join(f"{name}={value}" for name, value in event.detail.items())
    known = {
        "at": instant(event.at_ms),
        "patient": patient,
        "resource_id": resource_id,
        "detail": detail,
        "chain": chain,
        "sequence": sequence,
    }
    return [known[name] if name in known else getattr(event, name) for name in EVENT_COLUMNS]

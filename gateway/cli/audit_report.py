"""`caregate audit report`: who looked at a patient, what a user did, nights, other units, break-glass, denials."""

from __future__ import annotations

import argparse
import csv
import json
import sys
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, TextIO
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from gateway.cli.audit_source import Unusable, add_patient_key, add_source, dsn_of, guarded, iso, note, patients_of
from gateway.cli.said import positive

if TYPE_CHECKING:
    from gateway.audit.pseudonyms import NamesReader

_TIMES = frozenset({"at", "first", "last"})
_HELP = {
    "patient": "accesses to a patient's record",
    "user": "what a user did",
    "unit": "accesses of people at a unit that is not the one they use most",
    "night": "accesses at night",
    "break-glass": "emergency accesses that nobody has reviewed",
    "denials": "bursts of refusals of one caller",
}
_NAMED = ("patient", "resource_id")
"""Columns in which a patient's pseudonym may stand."""
_TOLD = (
    "user", "unit", "role", "from_ms", "to_ms", "from_hour", "to_hour", "timezone", "review_hours", "most", "minutes",
)  # fmt: skip
"""Options that the trail is told of."""
_WIDTH = 40


def add_actions(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    report = actions.add_parser("report", help="ready-made reports")
    kinds = report.add_subparsers(dest="report", metavar="REPORT", required=True)
    for name, text in _HELP.items():
        kind = kinds.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        add_source(kind)
        add_patient_key(kind)
        kind.add_argument("--format", choices=("table", "csv", "json"), default="table")
        if name == "patient":
            kind.add_argument("--patient", required=True, metavar="ID")
        if name == "user":
            kind.add_argument("--user", required=True, metavar="SUBJECT")
        if name in ("unit", "night"):
            kind.add_argument("--unit", default="", help="accesses at this unit only")
            kind.add_argument("--role", default="", help="of this role only")
        if name == "night":
            kind.add_argument("--from-hour", type=int, default=22)
            kind.add_argument("--to-hour", type=int, default=6)
            kind.add_argument("--timezone", default="UTC", help="of the hours, such as Europe/Berlin")
        if name == "break-glass":
            kind.add_argument("--review-hours", type=positive, default=72, help="how long a review may take")
        if name == "denials":
            kind.add_argument("--most", type=positive, default=10, help="so many refusals are a burst")
            kind.add_argument("--minutes", type=positive, default=5, help="within so many minutes")
        kind.set_defaults(run=guarded(_report))


def _report(options: argparse.Namespace) -> int:
    from gateway.store.trail import TrailReader
    from gateway.store.trail_report import ReportReader, columns_of

    values, dsn, names = _values(options), dsn_of(options), columns_of(options.report)
    patient = ""
    with TrailReader(dsn) as trail, ReportReader(dsn) as reader:
        patients = patients_of(options, trail, naming=options.report == "patient")
        if options.report == "patient":
            known = patients.names_of(options.patient)
            values["patients"] = list(known)
            # SEC: the first is the id, which does not stand in the trail.
            patient = next(iter(known[1:]), "")
        rows = [_shown(names, row) for row in reader.rows(options.report, values)]
        _tell_patients(patients, [names.index(name) for name in _NAMED if name in names], rows)
    # NOTE: what is not in the trail is not shown: `note` refuses if it cannot be told.
    query = " ".join(f"{name}={getattr(options, name)}" for name in _TOLD if getattr(options, name, ""))
    note(options, "audit.reported", patient=patient, report=options.report, query=query, found=str(len(rows)))
    _WRITERS[options.format](sys.stdout, names, rows)
    return 0


def _tell_patients(patients: NamesReader, columns: Sequence[int], rows: Sequence[list[object]]) -> None:
    """Put ids in the place of pseudonyms, as far as they are known."""
    ids = patients.ids_of([str(row[column]) for row in rows for column in columns])
    for row in rows:
        for column in columns:
            row[column] = ids.get(str(row[column]), row[column])


def _values(options: argparse.Namespace) -> dict[str, object]:
    now_ms = round(time.time() * 1000)
    if not 0 <= getattr(options, "from_hour", 0) <= 24 or not 0 <= getattr(options, "to_hour", 0) <= 24:
        raise Unusable("--from-hour and --to-hour: 0 to 24")
    try:
        ZoneInfo(getattr(options, "timezone", "UTC"))
    except (ZoneInfoNotFoundError, ValueError):
        raise Unusable("--timezone: takes a name such as Europe/Berlin") from None
    return {
        "from": options.from_ms, "to": options.to_ms or now_ms + 60_000, "now": now_ms,
        "patients": [getattr(options, "patient", "")], "user": getattr(options, "user", ""),
        "unit": getattr(options, "unit", ""), "role": getattr(options, "role", ""),
        "from_hour": getattr(options, "from_hour", 0), "to_hour": getattr(options, "to_hour", 0),
        "zone": getattr(options, "timezone", "UTC"), "review_ms": getattr(options, "review_hours", 0) * 3_600_000,
        "most": getattr(options, "most", 0), "window": getattr(options, "minutes", 0) * 60_000,
    }  # fmt: skip


def _shown(names: Sequence[str], row: Sequence[object]) -> list[object]:
    return [iso(int(str(value))) if name in _TIMES else value for name, value in zip(names, row, strict=True)]


def _table(out: TextIO, names: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Columns in which nothing stands are left out; what would move the cursor is not printed."""
    used = [n for n in range(len(names)) if not rows or any(row[n] not in ("", None) for row in rows)]
    texts = [[_plain(row[n]) for n in used] for row in rows]
    heads = [names[n] for n in used]
    widths = [max(len(line[n]) for line in [heads, *texts]) for n in range(len(used))]
    for line in [heads, *texts]:
        print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip(), file=out)
    print(f"{len(rows)} rows", file=out)


def _plain(value: object) -> str:
    text = "" if value is None else str(value)
    text = "".join(c if c.isprintable() else "\ufffd" for c in text)
    return text if len(text) <= _WIDTH else text[: _WIDTH - 1] + "…"


def _csv(out: TextIO, names: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    from gateway.audit.csv_text import cell

    writer = csv.writer(out, quoting=csv.QUOTE_ALL, lineterminator="\r\n")
    writer.writerow(names)
    writer.writerows([cell("" if value is None else value) for value in row] for row in rows)


def _json(out: TextIO, names: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    print(json.dumps([dict(zip(names, row, strict=True)) for row in rows], ensure_ascii=False, indent=1), file=out)


_WRITERS = {"table": _table, "csv": _csv, "json": _json}

"""`caregate audit`: verify the trail, take a copy of it, list what was begun and never ended."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.cli import audit_export, audit_report, audit_retention
from gateway.cli.audit_source import add_source, checkpoints_of, dsn_of, folder_of, guarded, iso, keys_of, outside_of
from gateway.cli.said import positive

if TYPE_CHECKING:
    from gateway.audit.retention import Acts, SealedAct
    from gateway.audit.verify import Verdict

_SHOWN = 20


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "audit", help="verify the audit trail, export it, report on it, remove what is past its time"
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    verify = actions.add_parser(
        "verify",
        help="was anything changed, removed, added or reordered?",
        description="Ends with 0 if everything is as it was written, 1 if not: then the first bad record is named.",
    )
    add_source(verify)
    verify.add_argument("--export", type=Path, metavar="FILE", help="verify an export instead of the database")
    verify.add_argument(
        "--key", type=Path, action="append", metavar="FILE", help="public key in PEM; may be given more than once"
    )
    verify.add_argument(
        "--fresh", type=positive, metavar="MINUTES",
        help="fail if what is covered ends longer ago: who cuts off the end and its checkpoints leaves nothing else",
    )  # fmt: skip
    verify.set_defaults(run=guarded(_verify))
    unfinished = actions.add_parser(
        "unfinished",
        help="intents without an outcome",
        description="The gateway died, or could not write, while these requests ran. Ends with 1 if there are any.",
    )
    add_source(unfinished)
    unfinished.set_defaults(run=guarded(_unfinished))
    audit_export.add_actions(actions)
    audit_report.add_actions(actions)
    audit_retention.add_actions(actions)


def _verify(options: argparse.Namespace) -> int:
    from gateway.audit.export import read_export
    from gateway.audit.notary import read_shipped
    from gateway.audit.retention import read_acts
    from gateway.audit.span import span_of
    from gateway.audit.verify import Verdict, compare_copies, read_checkpoints, verify
    from gateway.store.trail import TrailReader

    keys = keys_of(options)
    verdict = Verdict()
    if options.export is not None:
        export = read_export(options.export)
        span = span_of([*export.sealed, *checkpoints_of(options)], options.from_ms, options.to_ms)
        anchors = read_checkpoints(span.sealed, keys, verdict)
        starts = {chain: start for chain, (start, _) in export.chains.items()}
        acts = read_acts([*export.acts, *_acts_of(options)], keys)
        verify(export.chains, export.lines, anchors, verdict, starts.get, span.end_of, acts)
        return _tell(verdict, acts, options.fresh)
    with TrailReader(dsn_of(options)) as reader:
        in_database, outside = list(reader.numbered_checkpoints()), checkpoints_of(options)
        compare_copies(in_database, outside, read_shipped(outside_of(options)), verdict)
        span = span_of([*(sealed for _, _, sealed in in_database), *outside], options.from_ms, options.to_ms)
        anchors = read_checkpoints(span.sealed, keys, verdict)

        def lines(chain: str) -> Iterator[bytes]:
            start = span.start_of(chain)
            return reader.lines(chain, start.sequence if start else 0, span.end_of(chain))

        acts = read_acts([*reader.acts(), *_acts_of(options)], keys)
        verify(reader.chains(), lines, anchors, verdict, span.start_of, span.end_of, acts)
    return _tell(verdict, acts, options.fresh)


def _unfinished(options: argparse.Namespace) -> int:
    from gateway.store.trail import TrailReader

    found = 0
    with TrailReader(dsn_of(options)) as reader:
        for occurred_at, chain, sequence, request_id, route in reader.unfinished(
            options.from_ms, options.to_ms or round((time.time() - 60) * 1000)
        ):
            found += 1
            print(f"{occurred_at}  chain {chain} record {sequence}  request {request_id}  route {route}")
    print(f"{found} intents without an outcome")
    return 1 if found else 0


def _acts_of(options: argparse.Namespace) -> list[SealedAct]:
    """The acts of removal outside the database, if they are here."""
    from gateway.audit.removing import ACTS, read_file

    return read_file(folder_of(options) / ACTS)


def _tell(verdict: Verdict, acts: Acts, fresh_min: int | None) -> int:
    """Units: `fresh_min` minutes; None: it may be of any age."""
    if fresh_min is not None and 0 < verdict.covers_ms < (time.time() - fresh_min * 60) * 1000:
        verdict.find("", 0, f"the last is older than {fresh_min} minutes: cut off, or nobody signs")
    for act in acts.acts:
        held = f", {', '.join(act.held)} held" if act.held else ""
        what = f"{act.records} records of {', '.join(act.months)} removed, kept for {act.keep_months} months{held}"
        print(f"act {act.number} of {iso(act.at_ms)} by {act.by}: {what}: {act.reason}")
    for finding in verdict.findings[:_SHOWN]:
        print(finding)
    if len(verdict.findings) > _SHOWN:
        print(f"... and {len(verdict.findings) - _SHOWN} more")
    print(
        f"{verdict.records} records in {verdict.chains} chains, {verdict.sealed} of them under {verdict.checkpoints} "
        f"signed checkpoints, {verdict.unsealed} not yet"
    )
    covers = iso(verdict.covers_ms) if verdict.covers_ms else "never: there is no checkpoint"
    if verdict.removed:
        print(f"{verdict.removed} records are gone by acts of removal")
    if verdict.begun:
        print(f"{verdict.begun} chains are taken up behind a checkpoint: what came before was not looked at")
    print(f"everything is covered until {covers}; what was cut off behind that cannot be told")
    # SEC: nothing there at all is what one leaves behind who takes everything away.
    if not verdict.checkpoints and not verdict.findings:
        print("verify: NOT JUDGED, nothing was signed")
        return 2
    print("verify: FAILED" if verdict.findings else "verify: ok")
    return 1 if verdict.findings else 0

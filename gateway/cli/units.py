"""`caregate units`: the fleet, and why a unit is not connected."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from gateway.cli.fleet import HEADINGS, age, cells, table
from gateway.cli.operator import Unusable, add_options, ask_workers, connect, run_dir_of, unusable
from gateway.cli.said import positive, reason
from gateway.units.fleet import FLAP_WINDOW_S, FleetRow, fleet

if TYPE_CHECKING:
    from gateway.store.unit_operator import RegisteredKey, UnitEvent, UnitRecord

EXIT_UNKNOWN = 1


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "units",
        help="the fleet: who is connected, since when, and why not",
        description="Every unit with its state in all workers of this machine, its keys, and what is kept of it. FLAPS "
        "counts how often it was lost in the last 24 hours.",
    )
    parser.add_argument("unit", nargs="?", metavar="UNIT", help="this unit's connections, keys and timeline")
    parser.add_argument("--json", action="store_true", help="for machines")
    parser.add_argument("--events", type=positive, default=40, metavar="N", help="of the timeline, default 40")
    add_options(parser)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    try:
        workers = _workers(options)
    except Unusable as error:
        return unusable("units", error)
    records: list[UnitRecord] | None = None
    keys: list[RegisteredKey] = []
    events: list[UnitEvent] = []
    try:
        records, keys, events = _kept(options, workers)
    except Unusable as error:
        if not workers:
            return unusable("units", error)
        print(f"note: {reason(error)}: only what the workers know is shown", file=sys.stderr)
    now = datetime.now(UTC)
    rows = fleet(workers, records, keys, now, asked=bool(workers))
    if options.unit is None:
        _show_fleet(rows, options.json)
        return 0
    found = [row for row in rows if row.unit == options.unit]
    if not found:
        print(f"caregate units: neither configuration nor database knows {options.unit}", file=sys.stderr)
        return EXIT_UNKNOWN
    _show_unit(found[0], [key for key in keys if key.unit == options.unit], events, now, options.json)
    return 0


def _workers(options: argparse.Namespace) -> list[dict[str, Any]]:
    try:
        return ask_workers(run_dir_of(options))
    except Unusable as error:
        if options.run_dir is not None:
            raise
        print(f"note: {reason(error)}: no worker was asked", file=sys.stderr)
        return []


def _kept(
    options: argparse.Namespace, workers: list[dict[str, Any]]
) -> tuple[list[UnitRecord], list[RegisteredKey], list[UnitEvent]]:
    """Raises: Unusable."""
    from gateway.store.unit_operator import OperatorError

    live = [connection["conn"] for worker in workers for connection in worker.get("connections", ())]
    with connect(options) as operator:
        try:
            records = operator.records(live, FLAP_WINDOW_S)
            events = [] if options.unit is None else operator.timeline(options.unit, options.events)
            return records, operator.keys(), events
        except OperatorError as error:
            raise Unusable(str(error)) from None


def _show_fleet(rows: list[FleetRow], as_json: bool) -> None:
    if as_json:
        print(json.dumps([row.as_json() for row in rows], indent=2))
        return
    for line in table([HEADINGS, *map(cells, rows)]):
        print(line)
    connected = sum(1 for row in rows if row.state == "connected")
    print(f"{connected} of {len(rows)} connected")


def _show_unit(row: FleetRow, keys: list[RegisteredKey], events: list[UnitEvent], now: datetime, as_json: bool) -> None:
    if as_json:
        document = {**row.as_json(), "keys": [asdict(k) for k in keys], "timeline": [asdict(e) for e in events]}
        print(json.dumps(document, indent=2, default=lambda value: value.isoformat()))
        return
    for line in table([HEADINGS, cells(row)]):
        print(line)
    if row.connections:
        print()
        shown = [("CONNECTION", "WORKER", "STATE", "SINCE", "STREAMS", "RTT", "AGENT", "KEY")]
        for c in row.connections:
            since = datetime.fromtimestamp(c["since"], UTC)
            rtt = "-" if c["rtt_ms"] is None else f"{c['rtt_ms']:.1f}ms"
            shown.append(
                (c["conn"], str(c["worker"]), c["state"], _moment(since), str(c["streams"]), rtt, c["agent"], c["kid"])
            )
        print("\n".join(table(shown)))
    if keys:
        print()
        print("\n".join(table([("KEY", "AGE", "LAST USED", "STATE"), *(_key_cells(key, now) for key in keys)])))
    if events:
        print()
        lines = [(_moment(e.at), e.kind, e.why or "-", e.agent or e.kid or e.actor) for e in reversed(events)]
        print("\n".join(table([("WHEN", "WHAT", "WHY", "WHO"), *lines])))


def _key_cells(key: RegisteredKey, now: datetime) -> tuple[str, ...]:
    state = "live"
    if key.revoked_at is not None:
        state = f"revoked {_moment(key.revoked_at)}"
    elif key.retires_at is not None:
        state = f"{'retired' if key.retires_at <= now else 'retires'} {_moment(key.retires_at)}"
    used = "never" if key.last_used_at is None else _moment(key.last_used_at)
    return key.kid, age((now - key.created_at).total_seconds()), used, state


def _moment(when: datetime) -> str:
    return when.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")

"""The fleet as one row a unit: what the workers hold joined with what the database keeps. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gateway.store.unit_operator import RegisteredKey, UnitRecord

FLAP_WINDOW_S = 86_400


@dataclass(slots=True)
class FleetRow:
    """One unit.

    Shapes: `state` is connected, disconnected, never-connected, unknown, revoked or disabled; `connections` as the
    workers describe them. Units: `rtt_ms`, `clock_offset_ms` milliseconds, a unit's clock ahead is positive;
    `key_age_s` seconds; times RFC 3339.
    """

    unit: str
    state: str
    connections: list[dict[str, Any]] = field(default_factory=list)
    streams: int = 0
    rtt_ms: float | None = None
    clock_offset_ms: float | None = None
    agent: str = ""
    kid: str = ""
    key_age_s: int | None = None
    last_seen: str | None = None
    why: str = ""
    flaps: int = 0

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def fleet(
    workers: Iterable[dict[str, Any]],
    records: Iterable[UnitRecord] | None,
    keys: Iterable[RegisteredKey],
    now: datetime,
    *,
    asked: bool = True,
) -> list[FleetRow]:
    """Every unit that the configuration or the database knows, by its id.

    Shapes: `records` None: the database did not answer; `asked` False: no worker did.
    """
    enabled: dict[str, bool] = {}
    held: dict[str, list[dict[str, Any]]] = {}
    for worker in workers:
        enabled.update(worker.get("known", {}))
        for connection in worker.get("connections", ()):
            entry = {**connection, "worker": worker.get("pid")}
            held.setdefault(str(entry.pop("unit")), []).append(entry)
    by_unit = {record.unit: record for record in records or ()}
    without = ("never-connected" if records is not None else "disconnected") if asked else "unknown"
    registered = list(keys)
    by_kid = {key.kid: key for key in registered}
    units = enabled.keys() | held.keys() | by_unit.keys() | {key.unit for key in registered}
    return [
        _row(unit, enabled.get(unit, True), held.get(unit, []), by_unit.get(unit), by_kid, now, without)
        for unit in sorted(units)
    ]


def _row(
    unit: str,
    enabled: bool,
    connections: list[dict[str, Any]],
    record: UnitRecord | None,
    by_kid: dict[str, RegisteredKey],
    now: datetime,
    without: str,
) -> FleetRow:
    row = FleetRow(unit, _state(enabled, connections, record, without), connections)
    row.streams = sum(connection["streams"] for connection in connections)
    row.rtt_ms = max((c["rtt_ms"] for c in connections if c["rtt_ms"] is not None), default=None)
    offsets = [c["clock_offset_ms"] for c in connections if c["clock_offset_ms"] is not None]
    row.clock_offset_ms = max(offsets, key=abs, default=None)
    row.agent = ", ".join(sorted({connection["agent"] for connection in connections}))
    row.kid = ", ".join(sorted({connection["kid"] for connection in connections}))
    ages = [(now - by_kid[c["kid"]].created_at).total_seconds() for c in connections if c["kid"] in by_kid]
    row.key_age_s = int(max(ages)) if ages else None
    if record is not None:
        row.flaps = record.flaps
        row.last_seen = record.seen_at.astimezone(UTC).isoformat(timespec="seconds") if record.seen_at else None
        row.why = record.reason or record.why
    if connections:
        row.last_seen, row.why = now.isoformat(timespec="seconds"), ""
    return row


def _state(enabled: bool, connections: list[dict[str, Any]], record: UnitRecord | None, without: str) -> str:
    """`without`: of a unit that has no connection, and of which nothing else is known."""
    if record is not None and record.revoked_at is not None:
        return "revoked"
    if not enabled:
        return "disabled"
    if connections:
        return "connected"
    was_seen = record is not None and record.seen_at is not None
    return "disconnected" if was_seen and without != "unknown" else without

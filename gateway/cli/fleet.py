"""The fleet as a table: one row a unit."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.units.fleet import FleetRow

HEADINGS = ("UNIT", "STATE", "LINKS", "RTT", "STREAMS", "AGENT", "CLOCK", "KEY AGE", "LAST SEEN", "FLAPS", "WHY")


def cells(row: FleetRow) -> tuple[str, ...]:
    """A row of the table under HEADINGS."""
    return (
        row.unit,
        row.state,
        str(len(row.connections)),
        "-" if row.rtt_ms is None else f"{row.rtt_ms:.1f}ms",
        str(row.streams),
        row.agent.replace("caregate-agent/", "") or "-",
        "-" if row.clock_offset_ms is None else f"{row.clock_offset_ms / 1000:+.1f}s",
        "-" if row.key_age_s is None else age(row.key_age_s),
        (row.last_seen or "-").replace("+00:00", "Z"),
        str(row.flaps),
        row.why or "-",
    )


def age(seconds: float) -> str:
    """Two figures at most: 40s, 12m, 5h, 31d."""
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds >= 2 * size:
            return f"{int(seconds // size)}{unit}"
    return f"{int(seconds)}s"


def table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Lines with aligned columns; the last column is not padded."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    return ["  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[-1]]) for row in rows]

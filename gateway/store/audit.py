"""The SQL of the audit trail: events in, nothing out."""

from __future__ import annotations

from msgspec.structs import fields

from gateway.audit.event import AuditEvent
from gateway.store.pipeline import Statement
from gateway.store.pool import Database

_SQL_TYPES: dict[object, str] = {str: "text", int: "bigint", bool: "boolean"}
_STAMPS = {"occurred_at": "double precision", "duration_us": "bigint", "node": "text"}
_COLUMNS = {
    **{f.name: _SQL_TYPES[f.type] for f in fields(AuditEvent) if f.name != "started_ns"},
    "event_id": "uuid",
    **_STAMPS,
}
_NAMES = ", ".join(_COLUMNS)
_VALUES = _NAMES.replace("occurred_at", "to_timestamp(occurred_at)")
_RECORD = ", ".join(f"{name} {type_name}" for name, type_name in _COLUMNS.items())
INSERT = Statement(
    b"caregate_audit_insert",
    # The names are the event's own fields. An event that is there already was written before its answer got lost.
    f"INSERT INTO audit.event ({_NAMES}) SELECT {_VALUES} FROM json_to_recordset($1) AS event ({_RECORD}) "  # noqa: S608
    "ON CONFLICT DO NOTHING".encode(),
)


class AuditStore:
    """Writes events over a connection that no portal call can take away."""

    def __init__(self, database: Database) -> None:
        self._lane = database.lane(1, reserve=True)

    def insert(self, rows: bytes, timeout_s: float) -> None:
        """Write events, all or none; those already there are left alone. Durable when it returns.

        Shapes: `rows` is a JSON array of objects with a member for each column; further members are ignored.
        Units: `occurred_at` seconds since 1970.
        Raises: DatabaseUnavailable, DatabaseTimeout, StatementFailed.
        Yields to the hub: until the database has them.
        """
        self._lane.execute(INSERT, (rows,), timeout_s=timeout_s)

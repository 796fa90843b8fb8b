"""The SQL of the registry of units on the operator's side, under the role caregate_operator; for the command line.

Raises everywhere: OperatorError.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, LiteralString

import psycopg
from psycopg.rows import class_row

from gateway.store.units import ALONE

_CONNECT_TIMEOUT_S = 5

_REVOKE: LiteralString = """
INSERT INTO caregate.unit AS had (unit, revoked_at, reason) VALUES (%s, now(), %s)
ON CONFLICT (unit) DO UPDATE SET revoked_at = now(), reason = excluded.reason WHERE had.revoked_at IS NULL
"""
_ENABLE: LiteralString = """
UPDATE caregate.unit SET revoked_at = NULL, reason = '' WHERE unit = %s AND revoked_at IS NOT NULL
"""
_REVOKE_KEY: LiteralString = """
UPDATE caregate.unit_key SET revoked_at = now() WHERE kid = %s AND unit = %s AND revoked_at IS NULL
"""
_ISSUE: LiteralString = """
INSERT INTO caregate.unit_code (digest, unit, expires_at) VALUES (%s, %s, now() + make_interval(secs => %s))
"""
_EVENT: LiteralString = "INSERT INTO caregate.unit_event (unit, kind, kid, why) VALUES (%s, %s, %s, %s)"
_KEYS: LiteralString = """
SELECT kid, unit::text, alg, created_at, retires_at, revoked_at, last_used_at FROM caregate.unit_key
WHERE %(unit)s::text IS NULL OR unit = %(unit)s::text ORDER BY unit, created_at
"""
_RECORDS: LiteralString = """
WITH lost AS (
    SELECT d.unit, count(*) AS flaps
    FROM caregate.unit_event d JOIN caregate.unit_event u ON u.conn = d.conn AND u.kind = 'up'
    WHERE d.kind = 'down' AND d.conn <> '' AND d.at > now() - make_interval(secs => %(window_s)s)
        AND NOT EXISTS (
            SELECT FROM caregate.unit_event o LEFT JOIN caregate.unit_event e ON e.conn = o.conn AND e.kind = 'down'
            WHERE o.unit = d.unit AND o.kind = 'up' AND o.conn <> d.conn AND o.at <= d.at
                AND (e.at > d.at OR (e.at IS NULL AND o.conn = ANY (%(open)s))))
    GROUP BY d.unit
)
SELECT unit::text, p.seen_at, coalesce(p.why, '') AS why, coalesce(l.flaps, 0) AS flaps,
    r.revoked_at, coalesce(r.reason, '') AS reason
FROM caregate.unit_presence p
FULL JOIN caregate.unit r USING (unit)
LEFT JOIN lost l USING (unit)
"""
_TIMELINE: LiteralString = """
SELECT at, kind, why, conn, kid, node, agent, actor FROM caregate.unit_event
WHERE unit = %s ORDER BY at DESC, number DESC LIMIT %s
"""


class OperatorError(RuntimeError):
    """The database does not answer or refuses; the message says what it said."""


@contextmanager
def answering() -> Iterator[None]:
    try:
        yield
    except psycopg.Error as error:
        raise OperatorError(str(error).strip()) from None


@dataclass(frozen=True, slots=True)
class RegisteredKey:
    """A row of unit_key without the key."""

    kid: str
    unit: str
    alg: str
    created_at: datetime
    retires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None


@dataclass(frozen=True, slots=True)
class UnitRecord:
    """What is kept of a unit. Shapes: `why` is empty while it was connected; `flaps` within the window asked for."""

    unit: str
    seen_at: datetime | None
    why: str
    flaps: int
    revoked_at: datetime | None
    reason: str


@dataclass(frozen=True, slots=True)
class UnitEvent:
    """One entry of a unit's timeline. Shapes: `actor` is the database login that wrote it."""

    at: datetime
    kind: str
    why: str
    conn: str
    kid: str
    node: str
    agent: str
    actor: str


class UnitOperator:
    """One operator's connection; close it, or use it as a context manager."""

    def __init__(self, dsn: str) -> None:
        with answering():
            self._connection: psycopg.Connection[Any] = psycopg.connect(
                dsn, autocommit=True, connect_timeout=_CONNECT_TIMEOUT_S, application_name="caregate-operator"
            )

    def __enter__(self) -> UnitOperator:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def issue_code(self, unit: str, digest: bytes, lifetime_s: float) -> None:
        """Let whoever has the code of this digest register one key for the unit."""
        with answering(), self._connection.transaction():
            self._connection.execute(_ISSUE, (digest, unit, lifetime_s))
            self._connection.execute(_EVENT, (unit, "code-issued", "", ""))

    def revoke(self, unit: str, reason: str) -> bool:
        """Shut the unit out until it is enabled again; False if it is already."""
        return self._change(_REVOKE, (unit, reason), (unit, "revoked", "", reason))

    def enable(self, unit: str, reason: str) -> bool:
        """Undo `revoke`; False if there is nothing to undo."""
        return self._change(_ENABLE, (unit,), (unit, "enabled", "", reason))

    def revoke_key(self, unit: str, kid: str, reason: str) -> bool:
        """Refuse the key from now on, for ever; False if the unit has no such key that is not revoked."""
        return self._change(_REVOKE_KEY, (kid, unit), (unit, "key-revoked", kid, reason))

    def _change(self, query: LiteralString, values: tuple[str, ...], event: tuple[str, ...]) -> bool:
        with answering(), self._connection.transaction():
            # Units and keys are changed under one lock, see store.units.
            self._connection.execute("SELECT pg_advisory_xact_lock(%s)", (ALONE,))
            changed = self._connection.execute(query, values).rowcount > 0
            if changed:
                self._connection.execute(_EVENT, event)
        return changed

    def keys(self, unit: str | None = None) -> list[RegisteredKey]:
        """The registered keys of one unit or of all."""
        with answering(), self._connection.cursor(row_factory=class_row(RegisteredKey)) as cursor:
            return cursor.execute(_KEYS, {"unit": unit}).fetchall()

    def records(self, open_connections: list[str], window_s: float) -> list[UnitRecord]:
        """What is kept of each unit.

        Flaps are losses of a unit's last connection. Shapes: `open_connections` are the ids of those that live.
        """
        values = {"open": open_connections, "window_s": window_s}
        with answering(), self._connection.cursor(row_factory=class_row(UnitRecord)) as cursor:
            return cursor.execute(_RECORDS, values).fetchall()

    def timeline(self, unit: str, limit: int) -> list[UnitEvent]:
        """The unit's last events, the newest first."""
        with answering(), self._connection.cursor(row_factory=class_row(UnitEvent)) as cursor:
            return cursor.execute(_TIMELINE, (unit, limit)).fetchall()

"""The SQL of the registry of units on the operator's side, under the role caregate_operator.

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

from gateway.store.revocation import change
from gateway.store.units import ALONE

MAX_AUTHOR_CHARS = 128
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
INSERT INTO caregate.unit_code (digest, unit, expires_at, issued_by, retry)
VALUES (%s, %s, now() + make_interval(secs => %s), %s, %s)
RETURNING number, unit::text, issued_at, expires_at, used_at, used_by, cancelled_at, issued_by
"""
_RETRIED: LiteralString = """
UPDATE caregate.unit_code SET cancelled_at = now(), expires_at = least(expires_at, now())
WHERE retry = %s AND used_at IS NULL AND cancelled_at IS NULL
"""
_SPENT: LiteralString = "SELECT 1 FROM caregate.unit_code WHERE retry = %s AND used_at IS NOT NULL"
_CANCEL: LiteralString = """
UPDATE caregate.unit_code SET cancelled_at = now(), expires_at = least(expires_at, now())
WHERE unit = %s AND number = %s AND used_at IS NULL AND cancelled_at IS NULL
"""
_CODES: LiteralString = """
SELECT number, unit::text, issued_at, expires_at, used_at, used_by, cancelled_at, issued_by FROM caregate.unit_code
WHERE unit = %(unit)s AND (%(before)s::bigint IS NULL OR number < %(before)s) ORDER BY number DESC LIMIT %(limit)s
"""
_CODE: LiteralString = """
SELECT number, unit::text, issued_at, expires_at, used_at, used_by, cancelled_at, issued_by FROM caregate.unit_code
WHERE unit = %s AND number = %s
"""
_EVENT: LiteralString = "INSERT INTO caregate.unit_event (unit, kind, kid, why, author) VALUES (%s, %s, %s, %s, %s)"
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
SELECT number, at, kind, why, conn, kid, node, agent, coalesce(nullif(author, ''), actor) AS actor
FROM caregate.unit_event
WHERE unit = %(unit)s AND (%(at_us)s::bigint IS NULL
    OR (at, number) < (timestamptz 'epoch' + %(at_us)s * interval '1 microsecond', %(number)s))
ORDER BY at DESC, number DESC LIMIT %(limit)s
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
    """One entry of a unit's timeline. Shapes: `actor` is the operator, or the database login that wrote it."""

    number: int
    at: datetime
    kind: str
    why: str
    conn: str
    kid: str
    node: str
    agent: str
    actor: str


@dataclass(frozen=True, slots=True)
class IssuedCode:
    """A one-time code without the code. Shapes: `used_by` is the id of the key that it registered."""

    number: int
    unit: str
    issued_at: datetime
    expires_at: datetime
    used_at: datetime | None
    used_by: str | None
    cancelled_at: datetime | None
    issued_by: str


class CodeSpent(RuntimeError):
    """The request that is repeated had issued a code, and a unit has used it."""


class UnitOperator:
    """One operator's connection; close it, or use it as a context manager."""

    def __init__(self, dsn: str, author: str = "") -> None:
        """Shapes: `author` is whom the timeline names; "": the login."""
        self._author = author[:MAX_AUTHOR_CHARS]
        with answering():
            self._connection: psycopg.Connection[Any] = psycopg.connect(
                dsn, autocommit=True, connect_timeout=_CONNECT_TIMEOUT_S, application_name="caregate-operator"
            )

    def __enter__(self) -> UnitOperator:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def issue_code(self, unit: str, digest: bytes, lifetime_s: float, retry: bytes | None = None) -> IssuedCode:
        """Let whoever has the code of this digest register one key for the unit.

        Shapes: `retry`, 32 bytes, is the same for a repeated request, whose earlier code is called back.
        Raises: CodeSpent if that one was used.
        """
        with answering(), self._connection.transaction(), self._connection.cursor(
            row_factory=class_row(IssuedCode)
        ) as cursor:  # fmt: skip
            if retry is not None:
                cursor.execute("SELECT pg_advisory_xact_lock(%s)", (ALONE,))
                if self._connection.execute(_SPENT, (retry,)).fetchone() is not None:
                    raise CodeSpent
                cursor.execute(_RETRIED, (retry,))
            found = cursor.execute(_ISSUE, (digest, unit, lifetime_s, self._author, retry)).fetchone()
            assert found is not None  # noqa: S101 - an INSERT of one row returns it
            self._note(unit, "code-issued", "", "", after={"code": found.number, "until": found.expires_at})
        return found

    def cancel_code(self, unit: str, number: int, reason: str) -> bool:
        """Nobody may use the code from now on; False if there is none to cancel."""
        with answering(), self._connection.transaction():
            cancelled = self._connection.execute(_CANCEL, (unit, number)).rowcount > 0
            if cancelled:
                of = {"code": number}
                self._note(
                    unit,
                    "code-cancelled",
                    "",
                    reason,
                    before={**of, "cancelled": False},
                    after={**of, "cancelled": True},
                )
        return cancelled

    def code(self, unit: str, number: int) -> IssuedCode | None:
        """One of the unit's codes."""
        with answering(), self._connection.cursor(row_factory=class_row(IssuedCode)) as cursor:
            return cursor.execute(_CODE, (unit, number)).fetchone()

    def codes(self, unit: str, limit: int, before: int | None = None) -> list[IssuedCode]:
        """The unit's codes, the newest first, from the one before number `before` on."""
        with answering(), self._connection.cursor(row_factory=class_row(IssuedCode)) as cursor:
            return cursor.execute(_CODES, {"unit": unit, "before": before, "limit": limit}).fetchall()

    def revoke(self, unit: str, reason: str) -> bool:
        """Shut the unit out until it is enabled again; False if it is already."""
        return self._change(_REVOKE, (unit, reason), (unit, "revoked", "", reason))

    def enable(self, unit: str, reason: str) -> bool:
        """Undo `revoke`; False if there is nothing to undo."""
        return self._change(_ENABLE, (unit,), (unit, "enabled", "", reason))

    def revoke_key(self, unit: str, kid: str, reason: str) -> bool:
        """Refuse the key from now on, for ever; False if the unit has no such key that is not revoked."""
        return self._change(_REVOKE_KEY, (kid, unit), (unit, "key-revoked", kid, reason))

    def revision(self) -> int:
        """Up to which a worker must know the registry to know all that was changed until now."""
        with answering():
            row = self._connection.execute("SELECT number FROM caregate.unit_revision").fetchone()
        return int(row[0]) if row is not None else 0

    def _change(self, query: LiteralString, values: tuple[str, ...], event: tuple[str, str, str, str]) -> bool:
        with answering(), self._connection.transaction():
            # Units and keys are changed under one lock, see store.units.
            self._connection.execute("SELECT pg_advisory_xact_lock(%s)", (ALONE,))
            changed = self._connection.execute(query, values).rowcount > 0
            if changed:
                revoked = event[1] != "enabled"
                self._note(*event, before={"revoked": not revoked}, after={"revoked": revoked})
        return changed

    def _note(self, unit: str, kind: str, kid: str, why: str, *, before: object = None, after: object = None) -> None:
        """Write it into the timeline, and have a worker keep it in the audit trail, see store.revocation.change."""
        self._connection.execute(_EVENT, (unit, kind, kid, why, self._author))
        detail = {name: value for name, value in (("what", kind), ("unit", unit), ("kid", kid)) if value}
        author = self._author or "operator"
        change(self._connection, "unit", "allowed", detail, author, why, before=before, after=after)

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

    def timeline(self, unit: str, limit: int, before: tuple[int, int] | None = None) -> list[UnitEvent]:
        """The unit's last events, the newest first.

        Shapes: `before` is moment and number of the event to begin after. Units: us since 1970.
        """
        at_us, number = before if before is not None else (None, None)
        values = {"unit": unit, "limit": limit, "at_us": at_us, "number": number}
        with answering(), self._connection.cursor(row_factory=class_row(UnitEvent)) as cursor:
            return cursor.execute(_TIMELINE, values).fetchall()

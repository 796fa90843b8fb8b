"""The SQL of the registry of units on the gateway's side: keys in, changes out, the timeline.

What only an operator may do is in `store.unit_operator`.
"""

from __future__ import annotations

import secrets
from typing import Any, LiteralString

import msgspec
import psycopg

from gateway.errors import Conflict
from gateway.store.listener import Listener, answering
from gateway.store.pipeline import Statement
from gateway.store.pool import Database
from gateway.units.model import Changes, NewKey

CHANNEL = "caregate_units"
MAX_LIVE_KEYS = 4
ALONE = 0x0CA2_E6A7_E002
"""The advisory lock of whoever changes units or keys: one order of locks, so no two wait for each other."""
_SECRET_BYTES = 48

_CHANGES: LiteralString = """
SELECT json_build_object(
    'revision', (SELECT number FROM caregate.unit_revision),
    'units', (SELECT coalesce(json_agg(json_build_object('unit', unit, 'revoked', revoked_at IS NOT NULL)), '[]')
              FROM caregate.unit WHERE revision > %(after)s),
    'keys', (SELECT coalesce(json_agg(json_build_object(
                 'kid', kid, 'unit', unit, 'alg', alg, 'public_key', public_key,
                 'created_s', extract(epoch FROM created_at)::float8,
                 'retires_s', extract(epoch FROM retires_at)::float8, 'revoked', revoked_at IS NOT NULL)), '[]')
             FROM caregate.unit_key WHERE revision > %(after)s),
    'contexts', (SELECT coalesce(json_agg(json_build_object(
                     'unit', unit, 'generation', generation, 'secret', secret,
                     'from_s', extract(epoch FROM from_at)::float8)), '[]')
                 FROM caregate.unit_context WHERE revision > %(after)s),
    'whole', %(after)s = 0)::text
"""

_USE_CODE: LiteralString = """
UPDATE caregate.unit_code SET used_at = coalesce(used_at, now()), used_by = %(kid)s
WHERE digest = %(digest)s AND unit = %(unit)s AND expires_at > now() AND (used_at IS NULL OR used_by = %(kid)s)
    AND NOT EXISTS (SELECT FROM caregate.unit u WHERE u.unit = %(unit)s AND u.revoked_at IS NOT NULL)
"""
_ADD_KEY: LiteralString = """
INSERT INTO caregate.unit_key (kid, unit, alg, public_key) VALUES (%s, %s, %s, %s) ON CONFLICT (kid) DO NOTHING
"""
_LIVE_KEYS: LiteralString = """
SELECT kid FROM caregate.unit_key
WHERE unit = %s AND revoked_at IS NULL AND (retires_at IS NULL OR retires_at > now())
"""
_RETIRE: LiteralString = """
UPDATE caregate.unit_key SET retires_at = now() + make_interval(secs => %s)
WHERE kid = %s AND unit = %s AND retires_at IS NULL
"""
_CONTEXT: LiteralString = """
SELECT generation, secret FROM caregate.unit_context WHERE unit = %s ORDER BY generation DESC LIMIT 1
"""
_ADD_CONTEXT: LiteralString = """
INSERT INTO caregate.unit_context (unit, generation, secret, from_at)
VALUES (%s, %s, %s, now() + make_interval(secs => %s))
"""
_ADD_EVENT: LiteralString = "INSERT INTO caregate.unit_event (unit, kind, kid, why) VALUES (%s, %s, %s, %s)"

_WRITE = Statement(
    b"caregate_units_write",
    b"""
WITH given AS (SELECT $1::json AS doc),
events AS (
    INSERT INTO caregate.unit_event (unit, at, kind, why, conn, kid, node, agent)
    SELECT r.unit, to_timestamp(r.at_s), r.kind, r.why, r.conn, r.kid, r.node, r.agent
    FROM given, json_to_recordset(doc -> 'events') AS r (
        unit text, at_s float8, kind text, why text, conn text, kid text, node text, agent text)
    ON CONFLICT DO NOTHING),
presence AS (
    INSERT INTO caregate.unit_presence AS had (unit, seen_at, why)
    SELECT DISTINCT ON (r.unit) r.unit, to_timestamp(r.at_s), r.why
    FROM given, json_to_recordset(doc -> 'presence') AS r (unit text, at_s float8, why text)
    ORDER BY r.unit, r.at_s DESC
    ON CONFLICT (unit) DO UPDATE SET seen_at = excluded.seen_at, why = excluded.why
    WHERE had.seen_at <= excluded.seen_at),
used AS (
    UPDATE caregate.unit_key k SET last_used_at = greatest(k.last_used_at, to_timestamp(r.at_s))
    FROM given, json_to_recordset(doc -> 'used') AS r (kid text, at_s float8) WHERE k.kid = r.kid)
SELECT 1
""",
)
_PRESENCE: LiteralString = "SELECT unit, extract(epoch FROM seen_at)::float8, why FROM caregate.unit_presence"


class UnitStore:
    """What the gateway writes and reads of its units. Every method yields to the hub while the database answers."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lane = database.lane(1, reserve=True)

    def enrol(self, unit: str, digest: bytes, key: NewKey, *, with_context: bool) -> str | None:
        """Spend a code and register the key; the unit's context key, "" if it is not wanted, None if refused.

        A code already spent by the same key is good once more, until it expires: the answer may have been lost.
        Raises: Conflict if the unit has too many keys; DatabaseUnavailable, DatabaseTimeout.
        """
        values = {"digest": digest, "unit": unit, "kid": key.kid}
        with self._database.connection() as connection:
            with connection.transaction() as transaction:
                _alone(connection)
                spent = connection.execute(_USE_CODE, values).rowcount
                if not spent or not _add_key(connection, unit, key, "enrolled"):
                    raise psycopg.Rollback(transaction)
                return _context(connection, unit) if with_context else ""
            return None

    def rotate(
        self,
        unit: str,
        old_kid: str,
        key: NewKey,
        *,
        overlap_s: float,
        with_context: bool,
        context_after_s: float | None,
    ) -> str | None:
        """Register the key beside the old one, which retires after the overlap; as `enrol`.

        Units: `context_after_s` seconds until a new context key signs, None: the context key stays.
        Raises: Conflict if the unit has too many keys; DatabaseUnavailable, DatabaseTimeout.
        """
        with self._database.connection() as connection:
            with connection.transaction() as transaction:
                _alone(connection)
                if not _add_key(connection, unit, key, "key-rotated", f"after {old_kid}"):
                    raise psycopg.Rollback(transaction)
                if old_kid != key.kid:
                    connection.execute(_RETIRE, (overlap_s, old_kid, unit))
                if not with_context:
                    return ""
                if context_after_s is not None:
                    return _next_context(connection, unit, context_after_s)
                return _context(connection, unit)
            return None

    def changes(self, after: int, timeout_s: float) -> Changes:
        """What changed after a revision. Raises: DatabaseUnavailable, DatabaseTimeout."""
        with self._database.connection(timeout_s) as connection:
            return _changes(connection, after)

    def write(self, document: bytes, timeout_s: float) -> None:
        """Write part of the timeline, all of it or nothing; what is there already is left alone.

        Shapes: a JSON object of `events`, `presence` and `used`, arrays of rows as in the statement.
        Raises: DatabaseUnavailable, DatabaseTimeout, StatementFailed.
        """
        self._lane.execute(_WRITE, (document,), timeout_s=timeout_s)

    def presence(self, timeout_s: float) -> list[tuple[str, float, str]]:
        """(unit, last seen in seconds since 1970, why it left or "") of all units that ever were connected.

        Raises: DatabaseUnavailable, DatabaseTimeout.
        """
        with self._database.connection(timeout_s) as connection:
            return connection.execute(_PRESENCE).fetchall()


class UnitFeed(Listener):
    """A connection of its own that is told of changes, see Listener."""

    def __init__(self, dsn: str) -> None:
        super().__init__(dsn, CHANNEL, "caregate-units")

    def changes(self, after: int) -> Changes:
        """What changed after a revision."""
        with answering():
            return _changes(self._connection, after)


def _changes(connection: psycopg.Connection[Any], after: int) -> Changes:
    found = _read_changes(connection, after)
    # A smaller number than the one known is another database: nothing of the old one counts.
    return _read_changes(connection, 0) if found.revision < after else found


def _read_changes(connection: psycopg.Connection[Any], after: int) -> Changes:
    row = connection.execute(_CHANGES, {"after": after}).fetchone()
    assert row is not None  # noqa: S101 - a SELECT without FROM has one
    return msgspec.json.decode(row[0], type=Changes)


def _alone(connection: psycopg.Connection[Any]) -> None:
    connection.execute("SELECT pg_advisory_xact_lock(%s)", (ALONE,))


def _add_key(connection: psycopg.Connection[Any], unit: str, key: NewKey, kind: str, why: str = "") -> bool:
    """False if the key is there and not a live one of this unit. Raises: Conflict."""
    added = connection.execute(_ADD_KEY, (key.kid, unit, key.alg, key.public_key)).rowcount
    live = {kid for (kid,) in connection.execute(_LIVE_KEYS, (unit,))}
    if not added:
        return key.kid in live
    if len(live) > MAX_LIVE_KEYS:
        raise Conflict(f"The unit has {MAX_LIVE_KEYS} keys already; revoke one")
    connection.execute(_ADD_EVENT, (unit, kind, key.kid, why))
    return True


def _context(connection: psycopg.Connection[Any], unit: str) -> str:
    row = connection.execute(_CONTEXT, (unit,)).fetchone()
    return str(row[1]) if row is not None else _next_context(connection, unit, 0.0)


def _next_context(connection: psycopg.Connection[Any], unit: str, after_s: float) -> str:
    row = connection.execute(_CONTEXT, (unit,)).fetchone()
    secret = secrets.token_urlsafe(_SECRET_BYTES)
    connection.execute(_ADD_CONTEXT, (unit, row[0] + 1 if row is not None else 1, secret, after_s))
    if row is not None:
        connection.execute(_ADD_EVENT, (unit, "context-rotated", "", ""))
    return secret

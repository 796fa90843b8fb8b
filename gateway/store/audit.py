"""The SQL of the audit trail: records in, nothing out."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import gevent
import psycopg
from psycopg import sql

from gateway.audit.columns import COLUMNS
from gateway.audit.pseudonyms import Name
from gateway.errors import DatabaseUnavailable
from gateway.store.pool import Database

log = logging.getLogger("caregate.audit")

_NAMES = sql.SQL(", ").join([sql.Identifier(name) for name in COLUMNS])
_COPY = sql.SQL("COPY audit.event ({}) FROM STDIN").format(_NAMES).as_bytes()
_INSERT = sql.SQL("INSERT INTO audit.event ({}) VALUES ({}) ON CONFLICT DO NOTHING").format(
    _NAMES, sql.SQL(", ").join([sql.Placeholder()] * len(COLUMNS))
)

_CHECKPOINT = sql.SQL(
    "INSERT INTO audit.checkpoint (source, number, checkpoint, signature) VALUES (%s, %s, %s, %s) "
    "ON CONFLICT DO NOTHING"
)


_NAMES_OF_PATIENTS = """
INSERT INTO audit.patient (name, lookup, sealed)
SELECT name, decode(lookup, 'hex'), decode(sealed, 'hex') FROM unnest(%s::text[], %s::text[], %s::text[])
    AS made (name, lookup, sealed)
WHERE NOT EXISTS (SELECT FROM audit.erased_patient e WHERE e.name = made.name)
ON CONFLICT DO NOTHING
"""
_OLDEST_NAMES = """
SELECT DISTINCT ON (lookup) encode(lookup, 'hex'), name FROM audit.patient
WHERE lookup = ANY (SELECT decode(one, 'hex') FROM unnest(%s::text[]) one) ORDER BY lookup, made_at, name
"""


class AlreadyThere(Exception):
    """A record of the batch is in the table already: what became of an earlier batch was not known."""


class RowRefused(Exception):
    """The database refuses a row whatever is tried; `sqlstate` says why."""

    def __init__(self, sqlstate: str) -> None:
        super().__init__(sqlstate)
        self.sqlstate = sqlstate


class AuditStore:
    """Writes records over ordinary connections of the pool, one at a time."""

    def __init__(self, database: Database) -> None:
        self._database = database
        database.reserve(1)

    def copy(self, pieces: Iterable[bytes], timeout_s: float) -> None:
        """Write rows, all or none. Durable when it returns.

        Shapes: lines as gateway.audit.columns.row makes them, some to a piece.
        Raises: AlreadyThere, RowRefused, DatabaseUnavailable, DatabaseTimeout; what `pieces` raises.
        Yields to the hub: after each piece, and until the database has them.
        """
        with self._asking(timeout_s) as connection, connection.cursor() as cursor, cursor.copy(_COPY) as copy:
            for rows in pieces:
                copy.write(rows)
                gevent.sleep(0)

    def insert(self, values: Sequence[str], timeout_s: float) -> None:
        """Write one row unless it is there.

        Raises: RowRefused, DatabaseUnavailable, DatabaseTimeout.
        Yields to the hub: until the database has it.
        """
        with self._asking(timeout_s) as connection:
            connection.execute(_INSERT, values)

    def insert_checkpoint(self, source: str, number: int, checkpoint: str, signature: str, timeout_s: float) -> None:
        """Write a signed checkpoint unless it is there.

        Raises: RowRefused, DatabaseUnavailable, DatabaseTimeout.
        Yields to the hub: until the database has it.
        """
        with self._asking(timeout_s) as connection:
            connection.execute(_CHECKPOINT, (source, number, checkpoint, signature))

    def insert_names(self, names: Sequence[Name], timeout_s: float) -> dict[str, str]:
        """Write names of patients unless they are there, or erased; for each lookup the oldest name there is.

        Raises: RowRefused, DatabaseUnavailable, DatabaseTimeout.
        Yields to the hub: until the database has them.
        """
        lookups = list({one.lookup for one in names})
        with self._asking(timeout_s) as connection, connection.transaction():
            values = [[one.name for one in names], [one.lookup for one in names], [one.sealed for one in names]]
            connection.execute(_NAMES_OF_PATIENTS, values)
            rows = connection.execute(_OLDEST_NAMES, (lookups,)).fetchall()
        return dict(rows)

    def erased_names(self, after: int, timeout_s: float) -> tuple[int, list[str]]:
        """The names erased behind a number, and the last number; with -1 the last number alone.

        Raises: DatabaseUnavailable, DatabaseTimeout. Yields to the hub: until the database answered.
        """
        with self._asking(timeout_s) as connection:
            if after < 0:
                found = connection.execute("SELECT coalesce(max(number), 0) FROM audit.erased_patient").fetchone()
                return (int(found[0]) if found is not None else 0), []
            query = "SELECT number, name FROM audit.erased_patient WHERE number > %s ORDER BY number"
            rows = connection.execute(query, (after,)).fetchall()
        return (rows[-1][0] if rows else after), [name for _, name in rows]

    def make_months(self, ahead: int, timeout_s: float) -> int:
        """Have the months of now and of so many to come made; how many were.

        Raises: DatabaseUnavailable, DatabaseTimeout.
        Yields to the hub: until the database has them.
        """
        with self._asking(timeout_s) as connection:
            found = connection.execute("SELECT audit.make_months(%s)", (ahead,)).fetchone()
            return int(found[0]) if found is not None else 0

    def count_unfinished(self, since_s: float, until_s: float, timeout_s: float) -> int:
        """Intents of a span of time that have no outcome. Units: seconds since 1970.

        Raises: DatabaseUnavailable, DatabaseTimeout.
        Yields to the hub: until the database answered.
        """
        query = "SELECT audit.count_unfinished(to_timestamp(%s), to_timestamp(%s))"
        with self._asking(timeout_s) as connection:
            found = connection.execute(query, (since_s, until_s)).fetchone()
            return int(found[0]) if found is not None else 0

    @contextmanager
    def _asking(self, timeout_s: float) -> Iterator[psycopg.Connection[Any]]:
        with self._database.connection(timeout_s) as connection:
            try:
                yield connection
            except psycopg.errors.UniqueViolation:
                raise AlreadyThere from None
            except (psycopg.DataError, psycopg.IntegrityError) as error:
                raise RowRefused(error.sqlstate or "") from error
            except psycopg.ProgrammingError as error:
                # No table, no right: nothing is wrong with the row.
                log.error("the audit trail cannot be written: %s", error.diag.message_primary)
                raise DatabaseUnavailable(retry_after_s=1) from error

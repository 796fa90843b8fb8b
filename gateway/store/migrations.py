"""Numbered migrations of the gateway's own schemas, each applied once, in a transaction of its own."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, LiteralString

import psycopg

SCHEMA = Path(__file__).parent / "schema"
_LOCK = 0x0CA2_E6A7_E001
"""The advisory lock under which one process migrates at a time; any constant of ours."""
_LEDGER: LiteralString = """
CREATE SCHEMA IF NOT EXISTS caregate;
CREATE TABLE IF NOT EXISTS caregate.migration (
    number integer PRIMARY KEY, name text NOT NULL, digest text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now()
);
"""


class MigrationError(RuntimeError):
    """The database cannot be brought to this version of the gateway; the message says why."""


@dataclass(frozen=True, slots=True)
class Migration:
    """One file `NNNN_name.sql`; `digest` is the SHA-256 of its text in hex."""

    number: int
    name: str
    sql: str
    digest: str


def migrations(folder: Path = SCHEMA) -> list[Migration]:
    """The migrations of a folder in their order.

    Raises: MigrationError if numbers are missing or doubled.
    """
    found = []
    for path in sorted(folder.glob("*.sql")):
        number, _, name = path.stem.partition("_")
        sql = path.read_text("utf-8")
        found.append(Migration(int(number), name, sql, hashlib.sha256(sql.encode()).hexdigest()))
    if [migration.number for migration in found] != list(range(1, len(found) + 1)):
        raise MigrationError("the migrations are not numbered 1, 2, 3, ... without a gap")
    return found


def apply_migrations(admin_dsn: str, folder: Path = SCHEMA) -> list[str]:
    """Apply what is missing; the names of what was applied. Running it twice, or twice at once, is harmless.

    Raises: MigrationError, also with what the database said.
    """
    wanted = migrations(folder)
    try:
        return _apply_missing(admin_dsn, wanted)
    except psycopg.Error as error:
        raise MigrationError(str(error).strip()) from error


def _apply_missing(admin_dsn: str, wanted: list[Migration]) -> list[str]:
    with psycopg.connect(admin_dsn, autocommit=True) as connection, _alone(connection):
        connection.execute(_LEDGER)
        rows = connection.execute("SELECT number, digest FROM caregate.migration").fetchall()
        applied: dict[int, str] = dict(rows)
        _refuse_foreign(wanted, applied)
        missing = [migration for migration in wanted if migration.number not in applied]
        for migration in missing:
            _apply(connection, migration)
    return [f"{migration.number:04} {migration.name}" for migration in missing]


@contextmanager
def _alone(connection: psycopg.Connection[Any]) -> Iterator[None]:
    connection.execute("SELECT pg_advisory_lock(%s)", (_LOCK,))
    try:
        yield
    finally:
        if not connection.closed:
            connection.execute("SELECT pg_advisory_unlock(%s)", (_LOCK,))


def _refuse_foreign(wanted: list[Migration], applied: dict[int, str]) -> None:
    known = {migration.number: migration.digest for migration in wanted}
    for number, digest in sorted(applied.items()):
        if number not in known:
            raise MigrationError(f"the database has migration {number:04}, which this version does not know")
        if known[number] != digest:
            raise MigrationError(f"migration {number:04} was changed after it had been applied")


def _apply(connection: psycopg.Connection[Any], migration: Migration) -> None:
    with connection.transaction():
        # A migration may SET LOCAL ROLE, so its own entry comes first.
        connection.execute(
            "INSERT INTO caregate.migration (number, name, digest) VALUES (%s, %s, %s)",
            (migration.number, migration.name, migration.digest),
        )
        connection.execute(migration.sql.encode())

"""What the portal database says about its functions, its tables and the role that asks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, LiteralString, TypeVar

import psycopg
from psycopg.rows import class_row

from gateway.errors import DatabaseUnavailable
from gateway.store.pool import Database

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class FunctionRow:
    """One function of the catalog.

    Shapes: `argument_types` as SQL writes them, `argument_bases` their `typname` with domains resolved, `element_bases`
    the members' for arrays, else empty; all as long as `argument_names`; the last `defaults` arguments have one.
    """

    name: str
    kind: str
    returns: str
    returns_set: bool
    security_definer: bool
    variadic: bool
    volatile: bool
    plain_arguments: bool
    argument_names: list[str]
    argument_types: list[str]
    argument_bases: list[str]
    element_bases: list[str]
    defaults: int
    executable: bool
    usable_schema: bool


@dataclass(frozen=True, slots=True)
class RelationRow:
    """A table or view the gateway's role can reach, or in a schema whose functions it calls."""

    name: str
    kind: str
    row_security: bool
    forced: bool
    security_invoker: bool
    ownable: bool


@dataclass(frozen=True, slots=True)
class RoleRow:
    """The role the gateway is logged in as."""

    name: str
    superuser: bool
    bypasses_row_security: bool


_FUNCTIONS: LiteralString = """
WITH RECURSIVE wanted AS (
    SELECT p.*, n.nspname FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
    WHERE n.nspname || '.' || p.proname = ANY (%s)
), base AS (
    SELECT t.oid AS type_oid, t.oid AS base_oid FROM pg_type t
    WHERE t.oid IN (SELECT unnest(w.proargtypes::oid[]) FROM wanted w)
    UNION ALL
    SELECT b.type_oid, t.typbasetype FROM base b JOIN pg_type t ON t.oid = b.base_oid WHERE t.typtype = 'd'
), resolved AS (
    SELECT b.type_oid, t.typname, coalesce(e.typname, '') AS element
    FROM base b JOIN pg_type t ON t.oid = b.base_oid AND t.typtype <> 'd'
    LEFT JOIN pg_type e ON e.oid = t.typelem AND t.typcategory = 'A'
)
SELECT w.nspname || '.' || w.proname AS name, w.prokind::text AS kind, r.typname::text AS returns,
    w.proretset AS returns_set, w.prosecdef AS security_definer, w.provariadic <> 0 AS variadic,
    w.provolatile = 'v' AS volatile,
    w.proargmodes IS NULL OR w.proargmodes <@ '{i}'::"char"[] AS plain_arguments,
    coalesce(w.proargnames, array_fill(''::text, ARRAY[w.pronargs::integer]))::text[] AS argument_names,
    ARRAY(SELECT format_type(a.oid, NULL) FROM unnest(w.proargtypes::oid[]) WITH ORDINALITY a (oid, n) ORDER BY a.n)
        AS argument_types,
    ARRAY(SELECT d.typname::text FROM unnest(w.proargtypes::oid[]) WITH ORDINALITY a (oid, n)
          JOIN resolved d ON d.type_oid = a.oid ORDER BY a.n) AS argument_bases,
    ARRAY(SELECT d.element::text FROM unnest(w.proargtypes::oid[]) WITH ORDINALITY a (oid, n)
          JOIN resolved d ON d.type_oid = a.oid ORDER BY a.n) AS element_bases,
    w.pronargdefaults::integer AS defaults,
    has_function_privilege(w.oid, 'EXECUTE') AS executable,
    has_schema_privilege(w.pronamespace, 'USAGE') AS usable_schema
FROM wanted w JOIN pg_type r ON r.oid = w.prorettype
"""
_RELATIONS: LiteralString = """
SELECT n.nspname || '.' || c.relname AS name, c.relkind::text AS kind, c.relrowsecurity AS row_security,
    c.relforcerowsecurity AS forced,
    coalesce('security_invoker=true' = ANY (c.reloptions) OR 'security_invoker=on' = ANY (c.reloptions), false)
        AS security_invoker,
    pg_has_role(c.relowner, 'MEMBER') AS ownable
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f')
    AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'audit', 'caregate')
    AND n.nspname NOT LIKE 'pg\\_toast%%' AND n.nspname NOT LIKE 'pg\\_temp%%'
    AND (n.nspname = ANY (%s) OR has_table_privilege(c.oid, 'SELECT, INSERT, UPDATE, DELETE, TRUNCATE'))
ORDER BY 1
"""
_ROLE: LiteralString = """
SELECT rolname::text AS name, rolsuper AS superuser, rolbypassrls AS bypasses_row_security
FROM pg_roles WHERE rolname = current_user
"""


def load_catalog(
    database: Database, names: Sequence[str], schemas: Sequence[str]
) -> tuple[list[FunctionRow], list[RelationRow], RoleRow]:
    """All three for functions of these names and tables in these schemas.

    Raises: DatabaseUnavailable, DatabaseTimeout.
    Yields to the hub: while the database answers.
    """
    try:
        with database.connection() as connection:
            return load_functions(connection, names), load_relations(connection, schemas), load_role(connection)
    except psycopg.Error as error:
        raise DatabaseUnavailable(retry_after_s=1) from error


def load_functions(connection: psycopg.Connection[Any], names: Sequence[str]) -> list[FunctionRow]:
    """The functions of these names; an overloaded one comes more than once."""
    return _rows(connection, FunctionRow, _FUNCTIONS, (list(names),))


def load_relations(connection: psycopg.Connection[Any], schemas: Sequence[str]) -> list[RelationRow]:
    """Tables and views in these schemas, and all others the role has a privilege on."""
    return _rows(connection, RelationRow, _RELATIONS, (list(schemas),))


def load_role(connection: psycopg.Connection[Any]) -> RoleRow:
    """The role that is logged in."""
    return _rows(connection, RoleRow, _ROLE, ())[0]


def _rows(connection: psycopg.Connection[Any], row: type[T], query: LiteralString, values: Sequence[object]) -> list[T]:
    with connection.cursor(row_factory=class_row(row)) as cursor:
        return cursor.execute(query, values or None).fetchall()

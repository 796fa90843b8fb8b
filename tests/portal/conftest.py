"""The demo portal behind a Database, and a way to write functions for one test."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import psycopg
import pytest

from gateway.store.pool import Database


@pytest.fixture
def database(portal) -> Iterator[Database]:
    database = Database(portal.gateway_dsn, pool_max=4, statement_timeout_ms=2_000)
    database.open()
    yield database
    database.close()


@pytest.fixture
def owner(portal) -> Iterator[Callable[[str], None]]:
    """Runs SQL as the administrator; functions and relations it makes with a name like `t_...` go away afterwards."""
    with psycopg.connect(portal.admin_dsn, autocommit=True) as connection:

        def run(sql: str) -> None:
            connection.execute(sql.encode())

        yield run
        connection.execute(_CLEAN)


_CLEAN = """
DO $$
DECLARE found record;
BEGIN
    FOR found IN SELECT oid::regprocedure AS name FROM pg_proc
                 WHERE pronamespace IN ('portal'::regnamespace, 'public'::regnamespace) AND proname LIKE 't\\_%' LOOP
        EXECUTE format('DROP ROUTINE %s', found.name);
    END LOOP;
    FOR found IN SELECT oid::regclass AS name, relkind FROM pg_class
                 WHERE relname LIKE 't\\_%' AND relkind IN ('r', 'v', 'm')
                 AND relnamespace IN ('portal'::regnamespace, 'public'::regnamespace) ORDER BY relkind DESC LOOP
        EXECUTE format('DROP %s %s CASCADE', CASE found.relkind WHEN 'r' THEN 'TABLE' WHEN 'v' THEN 'VIEW'
                       ELSE 'MATERIALIZED VIEW' END, found.name);
    END LOOP;
END $$
"""

"""A Database over the real server, and statements to try it with."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gateway.store.pool import Database


@pytest.fixture
def database(postgres) -> Iterator[Database]:
    database = Database(postgres.gateway_dsn, pool_min=1, pool_max=4, statement_timeout_ms=2_000)
    database.open()
    yield database
    database.close()

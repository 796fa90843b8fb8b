"""At most so many of the pool's connections for one purpose, with a short line before them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import psycopg

from gateway.errors import DatabaseTimeout, Overloaded
from gateway.store.pool import Database
from gateway.turns import Turns

_TIMEOUT_S: Final = 10.0
_NS: Final = 1_000_000_000


class Share(Database):
    """What a purpose that strangers can ask for may take of the database; the rest stays for the others."""

    def __init__(self, database: Database, connections: int, line: int) -> None:
        """Shapes: `line` is how many may wait. NOTE: it is a Database for `connection` alone."""
        self._database = database
        self._turns = Turns(connections)
        self._most = line

    @contextmanager
    def connection(self, timeout_s: float | None = _TIMEOUT_S) -> Iterator[psycopg.Connection[Any]]:
        """As Database.connection. Raises: Overloaded if too many wait, and what that raises."""
        turns = self._turns
        if turns.free:
            turns.free -= 1
        elif turns.line >= self._most:
            raise Overloaded("Too many wait for the database", retry_after_s=1)
        elif not turns.wait(time.monotonic_ns() + int((timeout_s or _TIMEOUT_S) * _NS)):
            raise DatabaseTimeout("The database did not answer in time")
        try:
            with self._database.connection(timeout_s) as connection:
                yield connection
        finally:
            turns.give_back()

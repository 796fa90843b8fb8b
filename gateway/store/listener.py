"""A connection of its own on which PostgreSQL tells of changes (LISTEN/NOTIFY)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import gevent
import psycopg
from psycopg import sql

from gateway.errors import DatabaseUnavailable

_CONNECT_TIMEOUT_S = 2
_ANSWER_TIMEOUT_S = 3.0


class Listener:
    """Raises everywhere: DatabaseUnavailable if the connection is lost or the server does not answer; then make
    another.

    Yields to the hub: in every method.
    """

    def __init__(self, dsn: str, channel: str, name: str) -> None:
        """Shapes: `name` is how PostgreSQL lists the connection."""
        with answering():
            self._connection = psycopg.connect(
                dsn, autocommit=True, connect_timeout=_CONNECT_TIMEOUT_S, application_name=name
            )
            self._connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))

    def wait(self, timeout_s: float) -> None:
        """Until something changed, or the time is over."""
        try:
            for _ in self._connection.notifies(timeout=timeout_s, stop_after=1):
                return
        except psycopg.Error as error:
            raise DatabaseUnavailable(retry_after_s=1) from error

    def close(self) -> None:
        self._connection.close()


@contextmanager
def answering() -> Iterator[None]:
    """The server must answer within it. Raises: DatabaseUnavailable."""
    try:
        with gevent.Timeout(_ANSWER_TIMEOUT_S, DatabaseUnavailable(retry_after_s=1)):
            yield
    except psycopg.Error as error:
        raise DatabaseUnavailable(retry_after_s=1) from error

"""The SQL of the configuration's versions: a worker's connection that is told of new ones, and the operator's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, LiteralString

import gevent
import psycopg
from psycopg.rows import class_row

from gateway.config.version import Entry, Version
from gateway.errors import DatabaseUnavailable

CHANNEL = "caregate_config"
APPLICATION = "caregate-config"
"""How a worker's connection is named in pg_stat_activity."""
_CONNECT_TIMEOUT_S = 2
_ANSWER_TIMEOUT_S = 3.0
_OPERATOR_CONNECT_TIMEOUT_S = 5

_HEAD: LiteralString = "SELECT number, digest FROM caregate.config_version ORDER BY number DESC LIMIT 1"
_NEWEST: LiteralString = """
SELECT number, digest, document, author, reason, actor, at FROM caregate.config_version ORDER BY number DESC LIMIT 1
"""
_ONE: LiteralString = """
SELECT number, digest, document, author, reason, actor, at FROM caregate.config_version WHERE number = %s
"""
_HISTORY: LiteralString = """
SELECT number, digest, author, reason, actor, at FROM caregate.config_version
WHERE %(before)s::bigint IS NULL OR number < %(before)s ORDER BY number DESC LIMIT %(limit)s
"""
_ADD: LiteralString = """
INSERT INTO caregate.config_version (number, digest, document, author, reason)
SELECT %(base)s + 1, %(digest)s, %(document)s, %(author)s, %(reason)s
WHERE %(base)s = (SELECT coalesce(max(number), 0) FROM caregate.config_version)
ON CONFLICT (number) DO NOTHING
"""


class VersionFeed:
    """A worker's connection, which is told of new versions.

    Raises everywhere: DatabaseUnavailable if the connection is lost or the server does not answer; then make another.
    Yields to the hub: in every method.
    """

    def __init__(self, dsn: str) -> None:
        with _answering():
            self._connection = psycopg.connect(
                dsn, autocommit=True, connect_timeout=_CONNECT_TIMEOUT_S, application_name=APPLICATION
            )
            self._connection.execute(f"LISTEN {CHANNEL}")

    def head(self) -> tuple[int, str]:
        """Number and digest of the newest version; 0 and "" if there is none."""
        with _answering():
            return self._connection.execute(_HEAD).fetchone() or (0, "")

    def newest(self) -> Version | None:
        """The newest version; None if there is none."""
        with _answering(), self._connection.cursor(row_factory=class_row(Version)) as cursor:
            return cursor.execute(_NEWEST).fetchone()

    def add_first(self, digest: str, document: str, author: str, reason: str) -> None:
        """Make a document version 1, if there is none yet."""
        with _answering():
            _add(self._connection, 0, digest, document, author, reason)

    def wait(self, timeout_s: float) -> None:
        """Until there is a new version, or the time is over."""
        try:
            for _ in self._connection.notifies(timeout=timeout_s, stop_after=1):
                return
        except psycopg.Error as error:
            raise DatabaseUnavailable(retry_after_s=1) from error

    def close(self) -> None:
        self._connection.close()


class VersionsError(RuntimeError):
    """The database does not answer or refuses; the message says what it said."""


class VersionStore:
    """An operator's connection. Raises everywhere: VersionsError."""

    def __init__(self, dsn: str) -> None:
        with _saying():
            self._connection = psycopg.connect(
                dsn,
                autocommit=True,
                connect_timeout=_OPERATOR_CONNECT_TIMEOUT_S,
                application_name="caregate-config-operator",
            )

    def __enter__(self) -> VersionStore:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._connection.close()

    def newest(self) -> Version | None:
        """The newest version; None if there is none."""
        with _saying(), self._connection.cursor(row_factory=class_row(Version)) as cursor:
            return cursor.execute(_NEWEST).fetchone()

    def read(self, number: int) -> Version | None:
        """The version of that number; None if there is none."""
        with _saying(), self._connection.cursor(row_factory=class_row(Version)) as cursor:
            return cursor.execute(_ONE, (number,)).fetchone()

    def history(self, limit: int, before: int | None = None) -> list[Entry]:
        """The last versions, the newest first, from the one before number `before` on."""
        with _saying(), self._connection.cursor(row_factory=class_row(Entry)) as cursor:
            return cursor.execute(_HISTORY, {"before": before, "limit": limit}).fetchall()

    def add(self, base: int, digest: str, document: str, author: str, reason: str) -> bool:
        """Add the version after `base`; False if `base` is not the newest any more."""
        with _saying():
            return _add(self._connection, base, digest, document, author, reason)


def _add(connection: psycopg.Connection[Any], base: int, digest: str, document: str, author: str, reason: str) -> bool:
    values = {"base": base, "digest": digest, "document": document, "author": author, "reason": reason}
    return connection.execute(_ADD, values).rowcount == 1


@contextmanager
def _answering() -> Iterator[None]:
    try:
        with gevent.Timeout(_ANSWER_TIMEOUT_S, DatabaseUnavailable(retry_after_s=1)):
            yield
    except psycopg.Error as error:
        raise DatabaseUnavailable(retry_after_s=1) from error


@contextmanager
def _saying() -> Iterator[None]:
    try:
        yield
    except psycopg.Error as error:
        raise VersionsError(str(error).strip()) from None

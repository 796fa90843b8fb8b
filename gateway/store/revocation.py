"""The SQL of revocations by session, subject, unit or moment: for workers, the admin API and the operator's commands.

What is revoked is refused by every worker within a second: the insert notifies them (see store.tokens).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import Any, Final, LiteralString

import orjson
import psycopg
from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from gateway.store.pool import Database

JTI_KEPT_S: Final = 2 * 86_400
"""Longer than any token lives."""
KEPT_S: Final = 35 * 86_400
"""Longer than any session lasts."""
NAMED: Final = {"jti": "token_id", "session": "session", "subject": "subject", "unit": "unit"}
"""How the audit trail calls what is revoked."""
_NOTED_AT_ONCE: Final = 100
_CONNECT_TIMEOUT_S: Final = 5

_ADD: LiteralString = """
INSERT INTO caregate.revocation (kind, value, issuer, audience, role, before_at, until_at, author, reason)
SELECT %(kind)s, %(value)s, %(issuer)s, %(audience)s, %(role)s, before_at,
    greatest(before_at, now()) + make_interval(secs => %(kept_s)s), %(author)s, %(reason)s
FROM (SELECT coalesce(to_timestamp(%(before_s)s), clock_timestamp()) AS before_at) moment
RETURNING revision, before_at
"""
_CHANGE: LiteralString = """
INSERT INTO caregate.access_change (kind, outcome, detail, author, reason) VALUES (%s, %s, %s, %s, %s)
"""
_LIST: LiteralString = """
SELECT number, kind, value, issuer, audience, role, before_at, until_at, author, reason, actor, at, revision
FROM caregate.revocation WHERE until_at > now() AND (%(before)s::bigint IS NULL OR number < %(before)s)
ORDER BY number DESC LIMIT %(limit)s
"""
_UNNOTED: LiteralString = """
SELECT number, kind, outcome, detail, author, reason, actor FROM caregate.access_change
WHERE noted_at IS NULL ORDER BY number LIMIT %s FOR UPDATE SKIP LOCKED
"""
_NOTED: LiteralString = "UPDATE caregate.access_change SET noted_at = clock_timestamp() WHERE number = ANY (%s)"

Note = Callable[[str, str, dict[str, str]], None]
"""(kind, outcome, detail): keeps an event in the audit trail."""


class RevocationRefused(ValueError):
    """Nothing was revoked; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewRevocation:
    """What to revoke, and who says so.

    Shapes: `kind` is jti, session, subject, unit or before; `value` names it, "" for before. `issuer`, `audience` and
    `role` narrow the last three kinds; "" is any. Units: `before_s` seconds since 1970, None: now.
    Raises: RevocationRefused.
    """

    kind: str
    value: str = ""
    issuer: str = ""
    audience: str = ""
    role: str = ""
    before_s: float | None = None
    author: str
    reason: str

    def __post_init__(self) -> None:
        if self.kind not in ("jti", "session", "subject", "unit", "before"):
            raise RevocationRefused(f"{self.kind} is not jti, session, subject, unit or before")
        if (self.value == "") != (self.kind == "before"):
            raise RevocationRefused(f"{self.kind} takes {'no' if self.kind == 'before' else 'a'} value")
        if self.kind in ("jti", "session") and (self.issuer or self.audience or self.role or self.before_s is not None):
            raise RevocationRefused(f"a {self.kind} is revoked whole")
        if self.before_s is not None and self.before_s < 0:
            raise RevocationRefused("no token was issued before 1970")
        if not self.author or len(self.author) > 128 or len(self.reason) > 500 or len(self.value) > 4096:
            raise RevocationRefused(
                "the author has 1 to 128 characters, the reason at most 500, the value at most 4096"
            )


@dataclass(frozen=True, slots=True)
class Revoked:
    """What became of it. Shapes: a worker of that `revision` refuses what was issued before `before_at`."""

    revision: int
    before_at: datetime


@dataclass(frozen=True, slots=True)
class RevocationRow:
    """A revocation that is kept still."""

    number: int
    kind: str
    value: str
    issuer: str
    audience: str
    role: str
    before_at: datetime
    until_at: datetime
    author: str
    reason: str
    actor: str
    at: datetime
    revision: int


class RevocationStore:
    """The gateway's side. Every method yields to the hub.

    Raises everywhere: DatabaseUnavailable, DatabaseTimeout.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, new: NewRevocation) -> Revoked:
        """Revoke, in every worker."""
        with self._database.connection() as connection, connection.transaction():
            return add(connection, new)

    def listing(self, limit: int = 100) -> list[RevocationRow]:
        """What is revoked, the newest first."""
        with self._database.connection() as connection:
            return listing(connection, limit)

    def note_changes(self, note: Note) -> int:
        """Keep in the audit trail what no worker has kept yet; how many.

        NOTE: a worker that dies in between leaves the row to another, which may note it a second time; none is lost.
        """
        with self._database.connection() as connection, connection.transaction():
            rows = connection.execute(_UNNOTED, (_NOTED_AT_ONCE,)).fetchall()
            for _, kind, outcome, detail, author, reason, actor in rows:
                note(kind, outcome, {**detail, "author": author, "reason": reason, "actor": actor})
            if rows:
                connection.execute(_NOTED, ([row[0] for row in rows],))
        return len(rows)


class OperatorStoreError(RuntimeError):
    """The database does not answer or refuses; the message says what it said."""


class RevocationOperator:
    """An operator's connection. Raises everywhere: OperatorStoreError."""

    def __init__(self, dsn: str) -> None:
        with saying():
            self._connection: psycopg.Connection[Any] = psycopg.connect(
                dsn, autocommit=True, connect_timeout=_CONNECT_TIMEOUT_S, application_name="caregate-revoke"
            )

    def __enter__(self) -> RevocationOperator:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._connection.close()

    def add(self, new: NewRevocation) -> Revoked:
        """Revoke, in every worker."""
        with saying(), self._connection.transaction():
            return add(self._connection, new)

    def listing(self, limit: int = 100, before: int | None = None) -> list[RevocationRow]:
        """What is revoked, the newest first, from the one before number `before` on."""
        with saying():
            return listing(self._connection, limit, before)


@contextmanager
def saying() -> Iterator[None]:
    """Raises: OperatorStoreError for what the database said."""
    try:
        yield
    except psycopg.Error as error:
        raise OperatorStoreError(str(error).strip()) from None


def add(connection: psycopg.Connection[Any], new: NewRevocation) -> Revoked:
    """Revoke within the connection's transaction. Raises: RevocationRefused, psycopg.Error."""
    values = {
        "kind": new.kind, "value": new.value, "issuer": new.issuer, "audience": new.audience, "role": new.role,
        "before_s": new.before_s, "kept_s": JTI_KEPT_S if new.kind == "jti" else KEPT_S, "author": new.author,
        "reason": new.reason,
    }  # fmt: skip
    row = connection.execute(_ADD, values).fetchone()
    assert row is not None  # noqa: S101 - an INSERT that returns nothing has raised
    detail = {name: str(values[name]) for name in ("issuer", "audience", "role") if values[name]}
    detail["what"] = new.kind
    if new.value:
        detail[NAMED[new.kind]] = new.value
    detail["before"] = row[1].isoformat()
    change(connection, "revocation", "allowed", detail, new.author, new.reason)
    return Revoked(*row)


def change(
    connection: psycopg.Connection[Any], kind: str, outcome: str, detail: dict[str, str], author: str, reason: str,
    *, before: object = None, after: object = None,
) -> None:  # fmt: skip
    """Have a worker note a change in the audit trail.

    Shapes: `before` and `after` are JSON values of which the trail has the digests; None: there was nothing, or it is
    not known.
    Raises: psycopg.Error.
    """
    shown = {name: value[:256] for name, value in detail.items()}
    shown |= {name: _digest(value) for name, value in (("before", before), ("digest", after)) if value is not None}
    connection.execute(_CHANGE, (kind, outcome, Jsonb(shown), author, reason))


def _digest(value: object) -> str:
    return hashlib.sha256(orjson.dumps(value, option=orjson.OPT_SORT_KEYS)).hexdigest()


def listing(connection: psycopg.Connection[Any], limit: int, before: int | None = None) -> list[RevocationRow]:
    """What is revoked, the newest first, from the one before number `before` on. Raises: psycopg.Error."""
    with connection.cursor(row_factory=class_row(RevocationRow)) as cursor:
        return cursor.execute(_LIST, {"limit": limit, "before": before}).fetchall()

"""The SQL by which an operator sees the sessions of logins and ends them, under the role caregate_operator.

Raises everywhere: OperatorError.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, LiteralString

import psycopg
from psycopg.rows import class_row

from gateway.store.unit_operator import answering

_CONNECT_TIMEOUT_S = 5
_COLUMNS: LiteralString = """
SELECT s.id, a.login, a.subject, s.role, s.client, s.scope, s.methods, s.proof_key <> '' AS bound, s.started_at,
    s.used_at, s.ends_at, s.ended_at, s.ended_why
FROM caregate.session s JOIN caregate.account a ON a.id = s.account
"""
_LIST: LiteralString = f"""{_COLUMNS}
WHERE a.subject = %(subject)s AND (%(before)s::timestamptz IS NULL OR (s.started_at, s.id) < (
    %(before)s, %(before_id)s)) ORDER BY s.started_at DESC, s.id DESC LIMIT %(limit)s
"""
_ONE: LiteralString = f"{_COLUMNS} WHERE s.id = %s"
_END: LiteralString = """
UPDATE caregate.session SET ended_at = clock_timestamp(), ended_why = 'operator' WHERE id = %s AND ended_at IS NULL
"""


@dataclass(frozen=True, slots=True)
class KnownSession:
    """A login and what follows from it. Shapes: `bound`: its refresh tokens need the client's key."""

    id: str
    login: str
    subject: str
    role: str
    client: str
    scope: str
    methods: list[str]
    bound: bool
    started_at: datetime
    used_at: datetime
    ends_at: datetime
    ended_at: datetime | None
    ended_why: str


class SessionOperator:
    """One operator's connection; use it as a context manager."""

    def __init__(self, dsn: str) -> None:
        with answering():
            self._connection: psycopg.Connection[Any] = psycopg.connect(
                dsn, autocommit=True, connect_timeout=_CONNECT_TIMEOUT_S, application_name="caregate-operator"
            )

    def __enter__(self) -> SessionOperator:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def sessions(self, subject: str, limit: int, after: str | None = None) -> list[KnownSession]:
        """The subject's sessions, the newest first, from the one after session `after` on."""
        last = self.session(after) if after is not None else None
        if after is not None and last is None:
            return []
        values = {
            "subject": subject, "limit": limit, "before": last.started_at if last is not None else None,
            "before_id": after,
        }  # fmt: skip
        with answering(), self._connection.cursor(row_factory=class_row(KnownSession)) as cursor:
            return cursor.execute(_LIST, values).fetchall()

    def session(self, identity: str) -> KnownSession | None:
        """One session, also one that has ended and is kept still."""
        with answering(), self._connection.cursor(row_factory=class_row(KnownSession)) as cursor:
            return cursor.execute(_ONE, (identity,)).fetchone()

    def end(self, identity: str) -> bool:
        """The session is over, and its tokens are refused by every worker; False if it had ended."""
        with answering():
            return self._connection.execute(_END, (identity,)).rowcount > 0

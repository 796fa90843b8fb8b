"""The SQL of breaking the glass: cases are opened, asked for, ended, reviewed and told of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, LiteralString

from gateway.breakglass.model import MAX_OPEN, Case, NewCase
from gateway.store.pool import Database

_TIMEOUT_S: Final = 5.0
_COLUMNS: LiteralString = """id::text, issuer, subject, role, organisation, unit, patient, reason,
    extract(epoch FROM started_at)::float8, extract(epoch FROM until_at)::float8,
    coalesce(extract(epoch FROM ended_at), 0)::float8, coalesce(extract(epoch FROM reviewed_at), 0)::float8,
    verdict, comment, reviewer"""
_OPEN: LiteralString = "ended_at IS NULL AND until_at > now()"
_LOCK: LiteralString = "SELECT pg_advisory_xact_lock(hashtextextended(%s || chr(10) || %s, 4711))"
_COUNT: LiteralString = f"SELECT count(*) FROM caregate.break_glass WHERE issuer = %s AND subject = %s AND {_OPEN}"  # noqa: S608
_ADD: LiteralString = f"""
INSERT INTO caregate.break_glass (issuer, subject, audience, role, organisation, unit, patient, reason, until_at)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s, now() + make_interval(secs => %s)) RETURNING {_COLUMNS}
"""  # noqa: S608
_FIND: LiteralString = f"""
SELECT id::text FROM caregate.break_glass
WHERE issuer = %s AND subject = %s AND unit = %s AND patient = %s AND {_OPEN} ORDER BY until_at DESC LIMIT 1
"""  # noqa: S608
_OWN: LiteralString = f"""
SELECT {_COLUMNS} FROM caregate.break_glass WHERE issuer = %s AND subject = %s AND {_OPEN} ORDER BY started_at, id
"""  # noqa: S608
_END: LiteralString = f"""
UPDATE caregate.break_glass SET ended_at = now() WHERE id::text = %s AND issuer = %s AND subject = %s AND {_OPEN}
RETURNING {_COLUMNS}
"""  # noqa: S608
_QUEUE: LiteralString = f"""
SELECT {_COLUMNS} FROM caregate.break_glass
WHERE reviewed_at IS NULL AND (%(units)s::text[] IS NULL OR unit = ANY (%(units)s))
    AND (%(after)s = ''
        OR (started_at, id) > (SELECT started_at, id FROM caregate.break_glass WHERE id::text = %(after)s))
ORDER BY started_at, id LIMIT %(limit)s
"""  # noqa: S608
_READ: LiteralString = f"SELECT {_COLUMNS} FROM caregate.break_glass WHERE id::text = %s FOR UPDATE"  # noqa: S608
_REVIEW: LiteralString = f"""
UPDATE caregate.break_glass
SET reviewed_at = now(), verdict = %s, comment = %s, reviewer_issuer = %s, reviewer = %s WHERE id::text = %s
RETURNING {_COLUMNS}
"""  # noqa: S608
_UNNOTIFIED: LiteralString = f"""
SELECT {_COLUMNS} FROM caregate.break_glass WHERE notified_at IS NULL AND notice_at <= now()
    AND started_at > now() - interval '1 day'
ORDER BY notice_at LIMIT 1 FOR UPDATE SKIP LOCKED
"""  # noqa: S608
_NOTIFIED: LiteralString = "UPDATE caregate.break_glass SET notified_at = now() WHERE id::text = %s"
_LATER: LiteralString = """
UPDATE caregate.break_glass SET notice_tries = notice_tries + 1,
    notice_at = now() + least(interval '10 minutes', interval '5 seconds' * power(2, least(notice_tries, 10)))
WHERE id::text = %s
"""


class BreakGlassStore:
    """Every method yields to the hub while the database answers.

    Raises everywhere: DatabaseUnavailable, DatabaseTimeout.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def start(self, new: NewCase) -> Case | None:
        """Open a case; None if the person has as many open as he may."""
        with self._database.connection(_TIMEOUT_S) as connection, connection.transaction():
            connection.execute(_LOCK, (new.issuer, new.subject))
            row = connection.execute(_COUNT, (new.issuer, new.subject)).fetchone()
            if row is None or row[0] >= MAX_OPEN:
                return None
            values = (
                new.issuer, new.subject, new.audience, new.role, new.organisation, new.unit, new.patient, new.reason,
                new.for_s,
            )  # fmt: skip
            return _case(connection.execute(_ADD, values).fetchone())

    def find(self, issuer: str, subject: str, unit: str, patient: str) -> str | None:
        """The open case by which a person may look at a record, if there is one."""
        with self._database.connection(_TIMEOUT_S) as connection:
            row = connection.execute(_FIND, (issuer, subject, unit, patient)).fetchone()
        return None if row is None else str(row[0])

    def own(self, issuer: str, subject: str) -> list[Case]:
        """A person's open cases, the oldest first."""
        with self._database.connection(_TIMEOUT_S) as connection:
            return [Case(*row) for row in connection.execute(_OWN, (issuer, subject))]

    def end(self, case: str, issuer: str, subject: str) -> Case | None:
        """End a case of his own before its time; None if he has none of that id open."""
        with self._database.connection(_TIMEOUT_S) as connection:
            return _case(connection.execute(_END, (case, issuer, subject)).fetchone())

    def queue(self, units: Sequence[str] | None, after: str, limit: int) -> list[Case]:
        """Cases that nobody has reviewed, the oldest first. Shapes: `units` None: of all; `after` a case's id or ""."""
        values = {"units": None if units is None else list(units), "after": after, "limit": limit}
        with self._database.connection(_TIMEOUT_S) as connection:
            return [Case(*row) for row in connection.execute(_QUEUE, values)]

    def review(
        self, case: str, may: Callable[[Case], None], verdict: str, comment: str, issuer: str, reviewer: str
    ) -> Case | None:
        """Write what a reviewer says; None if there is no such case. `may(case)` raises what forbids it."""
        with self._database.connection(_TIMEOUT_S) as connection, connection.transaction():
            found = _case(connection.execute(_READ, (case,)).fetchone())
            if found is None:
                return None
            may(found)
            return _case(connection.execute(_REVIEW, (verdict, comment, issuer, reviewer, case)).fetchone())

    def tell_next(self, tell: Callable[[Case], bool]) -> bool:
        """Have the next notification sent; False if none is due. One worker has a case at a time."""
        with self._database.connection(4 * _TIMEOUT_S) as connection, connection.transaction():
            case = _case(connection.execute(_UNNOTIFIED).fetchone())
            if case is None:
                return False
            connection.execute(_NOTIFIED if tell(case) else _LATER, (case.id,))
            return True


def _case(row: tuple[Any, ...] | None) -> Case | None:
    return None if row is None else Case(*row)

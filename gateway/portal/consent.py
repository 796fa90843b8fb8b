"""Consents that the portal database knows of: one function, asked anew for each request."""

from __future__ import annotations

import hashlib
from typing import Final

from gateway.rbac.consent import Question
from gateway.store.pipeline import Statement
from gateway.store.pool import Database

PARAMETERS: Final = ("p_unit", "p_patient", "p_subject", "p_role", "p_purpose")
"""What such a function takes, all of them text; `true` as JSON permits."""
_CLAIMS: Final = "WITH claims AS MATERIALIZED (SELECT set_config('caregate.claims', $1, true))"


class ConsentFunctions:
    """Asks functions of the portal database. Holds: a statement for each of them."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._statements: dict[str, Statement] = {}

    def permits(self, function: str, question: Question, claims: bytes, deadline_ns: int) -> bool:
        """Does the function say `true`? Row-level security sees the caller's claims.

        Raises: StatementFailed, DatabaseTimeout, DatabaseUnavailable. Yields to the hub: until the database answered.
        """
        values = (question.unit, question.patient, question.subject, question.role, question.purpose)
        statement = self._statements.get(function) or self._write(function)
        answer = self._database.call(
            statement, [value.encode() if value else None for value in values], claims, deadline_ns=deadline_ns
        )
        return answer == b"true"

    def _write(self, function: str) -> Statement:
        """NOTE: the name comes from the checked configuration; see portal.plan for the form of the statement."""
        given = ", ".join(f"{name} => ${n}::text" for n, name in enumerate(PARAMETERS, start=2))
        sql = f"{_CLAIMS} SELECT {function}({given}) FROM claims".encode()  # noqa: S608 see NOTE
        statement = Statement(b"consent_" + hashlib.sha256(sql).hexdigest()[:24].encode(), sql, claims=True)
        self._statements[function] = statement
        return statement

"""The SQL by which an operator looks at one request in the audit trail: what was decided, not about whom.

Raises everywhere: OperatorError.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import LiteralString

import psycopg
from psycopg.rows import class_row

from gateway.store.unit_operator import OperatorError

_CONNECT_TIMEOUT_S = 5
_REQUEST: LiteralString = """
SELECT occurred_at AS at, request_id, phase, outcome, rule, status, method, route, unit, issuer, subject, role,
    audience, client, token_id, delivery, purpose, phi, node, config_version
FROM audit.event WHERE request_id = %s AND kind = 'access'
ORDER BY (phase = 'outcome') DESC, occurred_at DESC LIMIT 1
"""


@dataclass(frozen=True, slots=True)
class PastRequest:
    """An access as the trail has it: who had it made, nothing of whom it is about.

    Shapes: `rule` decided; empty texts are not known.
    """

    at: datetime
    request_id: str
    phase: str
    outcome: str
    rule: str
    status: int
    method: str
    route: str
    unit: str
    issuer: str
    subject: str
    role: str
    audience: str
    client: str
    token_id: str
    delivery: str
    purpose: str
    phi: bool
    node: str
    config_version: int


class OperatorTrail:
    """One connection; use it as a context manager."""

    def __init__(self, dsn: str) -> None:
        try:
            self._connection = psycopg.connect(
                dsn, autocommit=True, connect_timeout=_CONNECT_TIMEOUT_S, application_name="caregate-operator"
            )
        except psycopg.Error as error:
            raise OperatorError(str(error).strip()) from None

    def __enter__(self) -> OperatorTrail:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def request(self, request_id: str) -> PastRequest | None:
        """The outcome of a request, or its intent if there is no outcome."""
        try:
            with self._connection.cursor(row_factory=class_row(PastRequest)) as cursor:
                return cursor.execute(_REQUEST, (request_id,)).fetchone()
        except psycopg.Error as error:
            raise OperatorError(str(error).strip()) from None

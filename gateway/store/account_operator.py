"""The SQL of accounts on the operator's side, under the role caregate_operator; for the command line.

Raises everywhere: OperatorError.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, LiteralString

import psycopg
from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from gateway.store.revocation import change
from gateway.store.unit_operator import OperatorError, answering

_CONNECT_TIMEOUT_S = 5

_ADD: LiteralString = """
INSERT INTO caregate.account (id, login, subject, role, claims, password) VALUES (%s, %s, %s, %s, %s, %s)
"""
_REPLACE: LiteralString = "UPDATE caregate.account SET password = %s WHERE login = %s"
_FACTOR: LiteralString = "UPDATE caregate.account SET totp = %s WHERE login = %s"
_DISABLE: LiteralString = """
UPDATE caregate.account SET disabled_at = now(), reason = %s WHERE login = %s AND disabled_at IS NULL
"""
_ENABLE: LiteralString = """
UPDATE caregate.account SET disabled_at = NULL, reason = %s WHERE login = %s AND disabled_at IS NOT NULL
"""
_LIST: LiteralString = """
SELECT id, login, subject, role, claims::text AS claims, disabled_at, reason, created_at FROM caregate.account
WHERE %(login)s::text IS NULL OR login = %(login)s::text ORDER BY login
"""
_WHO: LiteralString = "SELECT id, subject, role FROM caregate.account WHERE login = %s"
_ADD_PROXY: LiteralString = """
INSERT INTO caregate.proxy AS had (account, patient, subject, until_at, reason)
SELECT id, %(patient)s, %(subject)s, %(until)s, %(reason)s FROM caregate.account WHERE login = %(login)s
ON CONFLICT (account, patient) DO UPDATE
SET subject = excluded.subject, until_at = excluded.until_at, reason = excluded.reason
"""
_DROP_PROXY: LiteralString = """
DELETE FROM caregate.proxy p USING caregate.account a WHERE p.account = a.id AND a.login = %s AND p.patient = %s
"""
_PROXIES: LiteralString = """
SELECT p.patient, p.until_at, p.reason FROM caregate.proxy p JOIN caregate.account a ON a.id = p.account
WHERE a.login = %s ORDER BY p.patient
"""


@dataclass(frozen=True, slots=True)
class KnownAccount:
    """A row of account without what proves it. Shapes: `claims` is JSON."""

    id: str
    login: str
    subject: str
    role: str
    claims: str
    disabled_at: datetime | None
    reason: str
    created_at: datetime


class AccountOperator:
    """One operator's connection; close it, or use it as a context manager."""

    def __init__(self, dsn: str, author: str = "operator") -> None:
        """Shapes: `author` is who is said to have made the changes, in the audit trail."""
        self._author = author
        with answering():
            self._connection: psycopg.Connection[Any] = psycopg.connect(
                dsn, autocommit=True, connect_timeout=_CONNECT_TIMEOUT_S, application_name="caregate-operator"
            )

    def __enter__(self) -> AccountOperator:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def add(
        self, account: str, login: str, subject: str, role: str, claims: Mapping[str, object], password: str
    ) -> None:
        """Shapes: `account` is the new account's id, `password` a hash."""
        try:
            with self._connection.transaction():
                self._connection.execute(_ADD, (account, login, subject, role, Jsonb(dict(claims)), password))
                self._note(login, "added", "")
        except psycopg.errors.UniqueViolation:
            raise OperatorError(f"{login}: there is such a login already, or an account of {role} {subject}") from None
        except psycopg.Error as error:
            raise OperatorError(str(error).strip()) from None

    def set_password(self, login: str, password: str) -> bool:
        """Its sessions end; False if there is no such account, as everywhere."""
        return self._change(_REPLACE, (password, login), login, "password")

    def set_factor(self, login: str, sealed: bytes | None) -> bool:
        """A second factor, or none. Its sessions end."""
        return self._change(_FACTOR, (sealed, login), login, "second-factor" if sealed else "no-second-factor")

    def disable(self, login: str, reason: str) -> bool:
        """It may not log in, and its sessions end; False if it is disabled already too."""
        return self._change(_DISABLE, (reason, login), login, "disabled", reason)

    def enable(self, login: str, reason: str) -> bool:
        """Undo `disable`."""
        return self._change(_ENABLE, (reason, login), login, "enabled", reason)

    def add_proxy(self, login: str, patient: str, subject: str, until: datetime | None, reason: str) -> bool:
        """It may act for the patient, whose tokens have that subject."""
        values = {"login": login, "patient": patient, "subject": subject, "until": until, "reason": reason}
        return self._change(_ADD_PROXY, values, login, "proxy", reason, patient)

    def drop_proxy(self, login: str, patient: str) -> bool:
        """It may act for the patient no more; tokens it has got for that run out by themselves."""
        return self._change(_DROP_PROXY, (login, patient), login, "no-proxy", "", patient)

    def accounts(self, login: str | None = None) -> list[KnownAccount]:
        """One account or all of them."""
        with answering(), self._connection.cursor(row_factory=class_row(KnownAccount)) as cursor:
            return cursor.execute(_LIST, {"login": login}).fetchall()

    def proxies(self, login: str) -> list[tuple[str, datetime | None, str]]:
        """Shapes: (patient, until when, reason)."""
        with answering():
            return self._connection.execute(_PROXIES, (login,)).fetchall()

    def _change(
        self, query: LiteralString, values: Any, login: str, what: str, reason: str = "", patient: str = ""
    ) -> bool:
        with answering(), self._connection.transaction():
            changed = self._connection.execute(query, values).rowcount > 0
            if changed:
                self._note(login, what, reason, patient)
        return changed

    def _note(self, login: str, what: str, reason: str, patient: str = "") -> None:
        """Have a worker keep the change in the audit trail."""
        row = self._connection.execute(_WHO, (login,)).fetchone()
        assert row is not None  # noqa: S101 - it was just changed
        account, subject, role = row
        detail = {"what": what, "account": account, "subject": subject, "role": role, "patient": patient}
        change(self._connection, "account", "allowed", {n: v for n, v in detail.items() if v}, self._author, reason)

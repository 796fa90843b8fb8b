"""The SQL of accounts on the gateway's side: who logs in, and which code of a second factor was used."""

from __future__ import annotations

from typing import Any, Final, LiteralString

from gateway.auth.accounts import Account
from gateway.store.pool import Database

COLUMNS: Final[LiteralString] = (
    "a.id, a.login, a.subject, a.role, a.claims, a.password, a.totp, a.disabled_at IS NOT NULL"
)
_FIND: LiteralString = f"SELECT {COLUMNS} FROM caregate.account a WHERE a.login = %s"  # noqa: S608
_USE_STEP: LiteralString = """
UPDATE caregate.account SET totp_step = %(step)s WHERE id = %(id)s AND totp_step < %(step)s
"""


class AccountStore:
    """Every method yields to the hub while the database answers.

    Raises everywhere: DatabaseUnavailable, DatabaseTimeout.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def find(self, login: str) -> Account | None:
        """The account of a login, disabled or not."""
        with self._database.connection() as connection:
            row = connection.execute(_FIND, (login,)).fetchone()
        return account_of(row) if row is not None else None

    def use_step(self, account: str, step: int) -> bool:
        """Use the one-time code of a step; False if it, or a later one, was used before."""
        with self._database.connection() as connection:
            return connection.execute(_USE_STEP, {"id": account, "step": step}).rowcount == 1


def account_of(row: tuple[Any, ...]) -> Account:
    """Shapes: `row` as COLUMNS."""
    totp = bytes(row[6]) if row[6] is not None else None
    return Account(row[0], row[1], row[2], row[3], row[4], row[5], totp, row[7])

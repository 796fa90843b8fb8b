"""The SQL of keys that the gateway makes, and of the ends of keys: for the command line and the Admin API."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, Final, LiteralString

import psycopg
from psycopg.rows import class_row

from gateway.store.revocation import change, saying

LIVE_AT_ONCE: Final = 2
"""Keys of a role: the old one and the new one."""
ALONE: Final = 0x0CA2_E6A7_E00B
"""The advisory lock under which keys are changed; any constant of ours."""
_CONNECT_TIMEOUT_S: Final = 5

_LIST: LiteralString = """
SELECT kid, role, alg, sealed, created_at, signs_at, retires_at, ended_at, author, actor, revision,
    ended_at IS NOT NULL OR coalesce(retires_at <= clock_timestamp(), false) AS has_ended
FROM caregate.signing_key ORDER BY role, created_at
"""
_ADD: LiteralString = """
INSERT INTO caregate.signing_key (kid, role, alg, sealed, signs_at, author)
VALUES (%(kid)s, %(role)s, %(alg)s, %(sealed)s, coalesce(to_timestamp(%(signs_s)s), clock_timestamp()), %(author)s)
RETURNING signs_at, revision
"""
_END_BY: LiteralString = """
INSERT INTO caregate.signing_key AS known (kid, role, alg, retires_at, author)
VALUES (%(kid)s, %(role)s, '', %(at)s, %(author)s)
ON CONFLICT (kid) DO UPDATE SET retires_at = least(known.retires_at, excluded.retires_at)
RETURNING revision
"""
_END_NOW: LiteralString = """
INSERT INTO caregate.signing_key AS known (kid, role, alg, ended_at, author)
VALUES (%(kid)s, %(role)s, '', clock_timestamp(), %(author)s)
ON CONFLICT (kid) DO UPDATE SET ended_at = clock_timestamp() WHERE known.ended_at IS NULL
RETURNING revision
"""
_SEAL: LiteralString = "UPDATE caregate.signing_key SET sealed = %s WHERE kid = %s RETURNING revision"


class KeyChangeRefused(ValueError):
    """Nothing was changed; the message says why."""


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key that was made. Shapes: `sealed` by auth.sealed.KeySeal. Units: `signs_s` seconds since 1970, None: now."""

    kid: str
    role: str
    alg: str
    sealed: bytes
    signs_s: float | None = None


@dataclass(frozen=True, slots=True)
class KeyRow:
    """A key that was made, or the end of one of the configuration's (without `sealed`)."""

    kid: str
    role: str
    alg: str
    sealed: bytes | None
    created_at: datetime
    signs_at: datetime
    retires_at: datetime | None
    ended_at: datetime | None
    author: str
    actor: str
    revision: int
    has_ended: bool


@dataclass(frozen=True, slots=True)
class Rotated:
    """Shapes: `old` is the key that retires at `retires_at`, "" if the role had none."""

    signs_at: datetime
    old: str
    retires_at: datetime | None
    revision: int


class KeyOperator:
    """An operator's connection. Raises everywhere: OperatorStoreError."""

    def __init__(self, dsn: str) -> None:
        with saying():
            self._connection: psycopg.Connection[Any] = psycopg.connect(
                dsn, autocommit=True, connect_timeout=_CONNECT_TIMEOUT_S, application_name="caregate-keys"
            )

    def __enter__(self) -> KeyOperator:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._connection.close()

    def listing(self) -> list[KeyRow]:
        """Every row, by role."""
        with saying(), self._connection.cursor(row_factory=class_row(KeyRow)) as cursor:
            return cursor.execute(_LIST).fetchall()

    def rotate(self, new: NewKey, documented: list[str], overlap_s: float, author: str, reason: str) -> Rotated:
        """Add a key to a role; the one that signed until then retires `overlap_s` after the new one begins.

        Shapes: `documented` are the kids that the configuration has for the role.
        Raises: KeyChangeRefused if two keys of the role are live.
        """
        with saying(), self._connection.transaction():
            self._connection.execute("SELECT pg_advisory_xact_lock(%s)", (ALONE,))
            rows = {row.kid: row for row in self.listing()}
            live = [kid for kid in documented if kid not in rows or not rows[kid].has_ended]
            live += [row.kid for row in rows.values() if row.role == new.role and row.sealed and not row.has_ended]
            if len(live) >= LIVE_AT_ONCE:
                raise KeyChangeRefused(f"{len(live)} keys of {new.role} are live: {', '.join(live)}; retire one first")
            values = {"kid": new.kid, "role": new.role, "alg": new.alg, "sealed": new.sealed, "signs_s": new.signs_s}
            signs_at, revision = self._one(_ADD, {**values, "author": author})
            retires_at = None
            for old in live:
                retires_at = signs_at + timedelta(seconds=overlap_s)
                (revision,) = self._one(_END_BY, {"kid": old, "role": new.role, "at": retires_at, "author": author})
            detail = {
                "what": "rotated",
                "role": new.role,
                "kid": new.kid,
                "alg": new.alg,
                "signs": signs_at.isoformat(),
            }
            if retires_at is not None:
                detail |= {"old": ", ".join(live), "retires": retires_at.isoformat()}
            change(self._connection, "key", "allowed", detail, author, reason)
        return Rotated(signs_at, ", ".join(live), retires_at, revision)

    def retire(self, kid: str, role: str, author: str, reason: str) -> int:
        """Refuse a key from now on, for ever; the revision from which workers do.

        Raises: KeyChangeRefused if it is ended already.
        """
        with saying(), self._connection.transaction():
            self._connection.execute("SELECT pg_advisory_xact_lock(%s)", (ALONE,))
            row = self._connection.execute(_END_NOW, {"kid": kid, "role": role, "author": author}).fetchone()
            if row is None:
                raise KeyChangeRefused(f"{kid} is retired already")
            change(self._connection, "key", "allowed", {"what": "retired", "role": role, "kid": kid}, author, reason)
        return int(row[0])

    def reseal(self, kid: str, role: str, sealed: bytes, author: str, reason: str) -> None:
        """Put the same key there, sealed under another key-encryption key."""
        with saying(), self._connection.transaction():
            self._one(_SEAL, (sealed, kid))
            change(self._connection, "key", "allowed", {"what": "rewrapped", "role": role, "kid": kid}, author, reason)

    def _one(self, query: LiteralString, values: Any) -> tuple[Any, ...]:
        row: tuple[Any, ...] | None = self._connection.execute(query, values).fetchone()
        assert row is not None  # noqa: S101 - each returns one
        return row

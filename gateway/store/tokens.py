"""The SQL of the token service: revoked tokens and used assertions in, what is revoked out."""

from __future__ import annotations

from typing import Any, LiteralString

import msgspec
import psycopg

from gateway.auth.model import Revocations
from gateway.store.listener import Listener, answering
from gateway.store.pool import Database
from gateway.store.revocation import NAMED, change

CHANNEL = "caregate_tokens"

_CHANGES: LiteralString = """
SELECT json_build_object(
    'revision', (SELECT number FROM caregate.token_revision),
    'tokens', (SELECT coalesce(json_agg(json_build_object(
                   'jti', jti, 'until_s', extract(epoch FROM until_at)::float8)), '[]')
               FROM caregate.revoked_token WHERE revision > %(after)s AND until_at > now()),
    'rules', (SELECT coalesce(json_agg(json_build_object(
                  'kind', kind, 'value', value, 'issuer', issuer, 'audience', audience, 'role', role,
                  'before_s', extract(epoch FROM before_at)::float8,
                  'until_s', extract(epoch FROM until_at)::float8)), '[]')
              FROM caregate.revocation WHERE revision > %(after)s AND until_at > now()),
    'keys', (SELECT coalesce(json_agg(json_build_object(
                 'kid', kid, 'role', role, 'alg', alg, 'sealed', replace(encode(sealed, 'base64'), E'\n', ''),
                 'created_s', extract(epoch FROM created_at)::float8,
                 'signs_s', extract(epoch FROM signs_at)::float8,
                 'retires_s', extract(epoch FROM retires_at)::float8, 'ended', ended_at IS NOT NULL)), '[]')
             FROM caregate.signing_key WHERE revision > %(after)s),
    'whole', %(after)s = 0)::text
"""
_REVOKE: LiteralString = """
INSERT INTO caregate.revoked_token (jti, until_at, revoked_by) VALUES (%s, to_timestamp(%s), %s)
ON CONFLICT (jti) DO NOTHING
"""
_IS_REVOKED: LiteralString = """
SELECT 1 FROM caregate.revoked_token WHERE jti = %(jti)s
UNION ALL SELECT 1 FROM caregate.revocation
    WHERE (kind = 'jti' AND value = %(jti)s) OR (kind = 'session' AND value = %(session)s)
UNION ALL SELECT 1 FROM caregate.session WHERE id = %(session)s AND ended_at IS NOT NULL LIMIT 1
"""
_SPEND: LiteralString = """
INSERT INTO caregate.used_assertion (digest, until_at) VALUES (%s, to_timestamp(%s)) ON CONFLICT DO NOTHING
"""
_FORGET: tuple[LiteralString, ...] = (
    "DELETE FROM caregate.used_assertion WHERE until_at < now() - interval '10 minutes'",
    "DELETE FROM caregate.revoked_token WHERE until_at < now() - interval '10 minutes'",
    "DELETE FROM caregate.revocation WHERE until_at < now() - interval '10 minutes'",
    "DELETE FROM caregate.access_change WHERE noted_at < now() - interval '1 day'",
)


class TokenStore:
    """Every method yields to the hub while the database answers.

    Raises everywhere: DatabaseUnavailable, DatabaseTimeout.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def revoke(self, jti: str, until_s: float, by: str) -> None:
        """Refuse the token everywhere. Units: `until_s` seconds since 1970."""
        with self._database.connection() as connection, connection.transaction():
            if connection.execute(_REVOKE, (jti, until_s, by)).rowcount:
                detail = {"what": "jti", NAMED["jti"]: jti}
                change(connection, "revocation", "allowed", detail, by or "bearer", "revoked by its owner")

    def is_revoked(self, jti: str, session: str = "") -> bool:
        """Is it, by itself or with its session, whether or not a worker has heard of it yet?"""
        with self._database.connection() as connection:
            return connection.execute(_IS_REVOKED, {"jti": jti, "session": session}).fetchone() is not None

    def spend(self, digest: bytes, until_s: float) -> bool:
        """Use an assertion; False if it was used before. Units: `until_s` seconds since 1970."""
        with self._database.connection() as connection:
            return connection.execute(_SPEND, (digest, until_s)).rowcount == 1

    def changes(self, after: int, timeout_s: float) -> Revocations:
        """What was revoked after a revision."""
        with self._database.connection(timeout_s) as connection:
            return _changes(connection, after)

    def forget(self) -> None:
        """Take away what has run out."""
        with self._database.connection() as connection:
            for statement in _FORGET:
                connection.execute(statement)


class TokenFeed(Listener):
    """A connection of its own that is told of revocations, see Listener."""

    def __init__(self, dsn: str) -> None:
        super().__init__(dsn, CHANNEL, "caregate-tokens")

    def changes(self, after: int) -> Revocations:
        """What was revoked after a revision."""
        with answering():
            return _changes(self._connection, after)


def _changes(connection: psycopg.Connection[Any], after: int) -> Revocations:
    found = _read_changes(connection, after)
    # A smaller number than the one known is another database.
    return _read_changes(connection, 0) if found.revision < after else found


def _read_changes(connection: psycopg.Connection[Any], after: int) -> Revocations:
    row = connection.execute(_CHANGES, {"after": after}).fetchone()
    assert row is not None  # noqa: S101 - a SELECT without FROM has one
    return msgspec.json.decode(row[0], type=Revocations)

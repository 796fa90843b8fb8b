"""The SQL of sessions: logins begin them, refresh tokens go from hand to hand in them, and they end.

Whoever presents a refresh token or a code holds a lock on its session or code until its transaction ends, so that of
any number at the same moment one is first, and the others see what it did.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, LiteralString

import psycopg

from gateway.auth.accounts import Account
from gateway.auth.sessions import CODE_LIFETIME_S, REPEAT_S, Code, NewSession, Owned, Presented, RefreshToken, Session
from gateway.store.accounts import COLUMNS, account_of
from gateway.store.pool import Database

_ACCOUNT_WIDTH: Final = 8
_SESSION: LiteralString = """s.id, s.client, s.role, s.scope, s.methods, s.proof_key,
    extract(epoch FROM s.started_at)::float8, extract(epoch FROM s.used_at)::float8,
    extract(epoch FROM s.ends_at)::float8"""
_LOCK_SESSION: LiteralString = f"""
SELECT {COLUMNS}, {_SESSION}
FROM caregate.refresh_token t JOIN caregate.session s ON s.id = t.session JOIN caregate.account a ON a.id = s.account
WHERE t.digest = %s AND s.ended_at IS NULL FOR UPDATE OF s
"""  # noqa: S608
_PRESENTED: LiteralString = """
SELECT extract(epoch FROM t.until_at)::float8, coalesce(extract(epoch FROM t.used_at), 0)::float8, t.used_by,
    t.successor, coalesce(n.used_at IS NOT NULL, false), t.repeated_at IS NOT NULL,
    extract(epoch FROM clock_timestamp())::float8
FROM caregate.refresh_token t LEFT JOIN caregate.refresh_token n ON n.digest = t.successor_digest WHERE t.digest = %s
"""
_ROTATE: LiteralString = """
WITH used AS (
    UPDATE caregate.refresh_token
    SET used_at = clock_timestamp(), used_by = %(proof)s, successor = %(sealed)s, successor_digest = %(next)s
    WHERE digest = %(digest)s AND used_at IS NULL RETURNING session
), lived AS (
    UPDATE caregate.session SET used_at = clock_timestamp() WHERE id = (SELECT session FROM used)
)
INSERT INTO caregate.refresh_token (digest, session, until_at)
SELECT %(next)s, session, to_timestamp(%(until)s) FROM used
"""
_REPEAT: LiteralString = "UPDATE caregate.refresh_token SET repeated_at = clock_timestamp() WHERE digest = %s"
_END: LiteralString = """
UPDATE caregate.session SET ended_at = clock_timestamp(), ended_why = %s WHERE id = %s AND ended_at IS NULL
"""
_BEGIN: LiteralString = """
INSERT INTO caregate.session
    (id, account, client, role, issuer, audience, scope, methods, proof_key, started_at, ends_at)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, to_timestamp(%s), now() + make_interval(secs => %s))
"""
_FIRST: LiteralString = """
INSERT INTO caregate.refresh_token (digest, session, until_at) VALUES (%s, %s, now() + make_interval(secs => %s))
"""
_ADD_CODE: LiteralString = """
INSERT INTO caregate.authorization_code
    (digest, client, redirect_uri, challenge, proof_key, account, scope, methods, until_at)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s, now() + make_interval(secs => %s))
"""
_LOCK_CODE: LiteralString = f"""
SELECT {COLUMNS}, c.client, c.redirect_uri, c.challenge, c.proof_key, c.scope, c.methods, c.used_at IS NOT NULL,
    coalesce(c.session, ''), c.until_at <= now()
FROM caregate.authorization_code c JOIN caregate.account a ON a.id = c.account WHERE c.digest = %s FOR UPDATE OF c
"""  # noqa: S608
_USE_CODE: LiteralString = """
UPDATE caregate.authorization_code SET used_at = now() WHERE digest = %s AND used_at IS NULL
"""
_CODE_GAVE: LiteralString = "UPDATE caregate.authorization_code SET session = %s WHERE digest = %s"
_OWNER: LiteralString = f"""
SELECT {COLUMNS}, {_SESSION}, extract(epoch FROM t.until_at)::float8,
    a.role = s.role AND a.disabled_at IS NULL AND t.used_at IS NULL AND t.until_at > now() AND s.ended_at IS NULL
FROM caregate.refresh_token t JOIN caregate.session s ON s.id = t.session JOIN caregate.account a ON a.id = s.account
WHERE t.digest = %s
"""  # noqa: S608
_WARD: LiteralString = """
SELECT a.id, a.role, p.patient, p.subject, extract(epoch FROM s.ends_at)::float8
FROM caregate.session s JOIN caregate.account a ON a.id = s.account
    LEFT JOIN caregate.proxy p ON p.account = a.id AND p.patient = %(patient)s
        AND (p.until_at IS NULL OR p.until_at > now())
WHERE s.id = %(session)s AND s.ended_at IS NULL AND s.ends_at > now() AND a.disabled_at IS NULL AND a.role = s.role
    AND s.client = %(client)s
"""
_BURN: LiteralString = """
UPDATE caregate.refresh_token SET successor = NULL
WHERE successor IS NOT NULL AND used_at < now() - make_interval(secs => %s)
"""
_FORGET: tuple[LiteralString, ...] = (
    "DELETE FROM caregate.authorization_code WHERE session IS NULL AND until_at < now() - interval '10 minutes'",
    "DELETE FROM caregate.session WHERE least(ends_at, ended_at) < now() - interval '1 day'",
)


class Family:
    """The session of a presented refresh token, locked; `presented` is None for a token that is none, or has ended."""

    def __init__(self, connection: psycopg.Connection[Any], digest: bytes, presented: Presented | None) -> None:
        self._connection = connection
        self._digest = digest
        self.presented = presented

    def rotate(self, next_digest: bytes, until_s: float, proof: bytes, sealed: bytes) -> None:
        """The token is used; its successor is there. Units: seconds since 1970."""
        values = {
            "digest": self._digest, "next": next_digest, "until": until_s, "proof": proof or None,
            "sealed": sealed or None,
        }  # fmt: skip
        self._connection.execute(_ROTATE, values)

    def repeat(self) -> None:
        """The answer was asked for again."""
        self._connection.execute(_REPEAT, (self._digest,))

    def end(self, why: str) -> None:
        """The session is over, with all its tokens."""
        assert self.presented is not None  # noqa: S101
        self._connection.execute(_END, (why, self.presented.session.id))


class Redemption:
    """A presented authorization code, locked; `code` is None where there is none."""

    def __init__(self, connection: psycopg.Connection[Any], digest: bytes, code: Code | None) -> None:
        self._connection = connection
        self._digest = digest
        self.code = code

    def use(self) -> None:
        """It is worth nothing from now on, whatever becomes of this."""
        self._connection.execute(_USE_CODE, (self._digest,))

    def begin(self, session: NewSession, refresh: tuple[bytes, int] | None) -> None:
        """The code gave this session."""
        _begin(self._connection, session, refresh)
        self._connection.execute(_CODE_GAVE, (session.id, self._digest))

    def end(self, why: str) -> None:
        """What the code gave is over."""
        assert self.code is not None  # noqa: S101
        self._connection.execute(_END, (why, self.code.session))


class SessionStore:
    """Every method yields to the hub while the database answers.

    Raises everywhere: DatabaseUnavailable, DatabaseTimeout.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def begin(self, session: NewSession, refresh: tuple[bytes, int] | None) -> None:
        """Shapes: `refresh` is the digest of the first refresh token and its lifetime in seconds."""
        with self._database.connection() as connection, connection.transaction():
            _begin(connection, session, refresh)

    @contextmanager
    def family(self, digest: bytes) -> Iterator[Family]:
        """The session of a refresh token; what is done to it is done when the block ends, or not at all."""
        with self._database.connection() as connection, connection.transaction():
            yield Family(connection, digest, _presented(connection, digest))

    def add_code(
        self, digest: bytes, client: str, redirect_uri: str, challenge: str, proof_key: str, account: Account,
        scope: str, methods: tuple[str, ...],
    ) -> None:  # fmt: skip
        """A code for whoever has the verifier of its challenge."""
        row = (digest, client, redirect_uri, challenge, proof_key, account.id, scope, list(methods), CODE_LIFETIME_S)
        with self._database.connection() as connection:
            connection.execute(_ADD_CODE, row)

    @contextmanager
    def redemption(self, digest: bytes) -> Iterator[Redemption]:
        """A code that is presented; what is done to it is done when the block ends, or not at all."""
        with self._database.connection() as connection, connection.transaction():
            row = connection.execute(_LOCK_CODE, (digest,)).fetchone()
            yield Redemption(connection, digest, _code(row) if row is not None else None)

    def owner(self, digest: bytes) -> Owned | None:
        """Whose a refresh token is; None if it is none."""
        with self._database.connection() as connection:
            row = connection.execute(_OWNER, (digest,)).fetchone()
        if row is None:
            return None
        until_s, good = row[-2:]
        return Owned(_session(row[_ACCOUNT_WIDTH:]), account_of(row[:_ACCOUNT_WIDTH]), until_s, good)

    def end(self, session: str, why: str) -> None:
        """A session is over, with all its tokens."""
        with self._database.connection() as connection:
            connection.execute(_END, (why, session))

    def ward(self, session: str, client: str, patient: str) -> tuple[str, str, str | None, float] | None:
        """The account of a session that lives, its role, the subject of a patient it may act for, the session's end.

        Shapes: None if there is no such session of the client; the subject is None if the account may not act.
        """
        values = {"session": session, "client": client, "patient": patient}
        with self._database.connection() as connection:
            row = connection.execute(_WARD, values).fetchone()
        return (row[0], row[1], row[3], row[4]) if row is not None else None

    def burn(self) -> None:
        """Take away the successors that nobody may ask for any more."""
        with self._database.connection() as connection:
            connection.execute(_BURN, (REPEAT_S,))

    def forget(self) -> None:
        """Take away what has run out."""
        with self._database.connection() as connection:
            for statement in _FORGET:
                connection.execute(statement)


def _begin(connection: psycopg.Connection[Any], session: NewSession, refresh: tuple[bytes, int] | None) -> None:
    row = (
        session.id, session.account, session.client, session.role, session.issuer, session.audience, session.scope,
        list(session.methods), session.proof_key, session.started_s, session.ends_in_s,
    )  # fmt: skip
    connection.execute(_BEGIN, row)
    if refresh is not None:
        connection.execute(_FIRST, (refresh[0], session.id, refresh[1]))


def _presented(connection: psycopg.Connection[Any], digest: bytes) -> Presented | None:
    row = connection.execute(_LOCK_SESSION, (digest,)).fetchone()
    if row is None:
        return None
    # NOTE: read after the lock was got; what the same statement read may be from before it.
    token = connection.execute(_PRESENTED, (digest,)).fetchone()
    assert token is not None  # noqa: S101 - the gateway cannot delete one
    until_s, used_s, used_by, successor, successor_used, repeated, now_s = token
    return Presented(
        _session(row[_ACCOUNT_WIDTH:]),
        account_of(row[:_ACCOUNT_WIDTH]),
        RefreshToken(until_s, used_s, bytes(used_by or b""), bytes(successor or b""), successor_used, repeated),
        now_s,
    )


def _session(row: tuple[Any, ...]) -> Session:
    identity, client, role, scope, methods, proof_key, started_s, used_s, ends_s = row[:9]
    return Session(identity, client, role, scope, tuple(methods), proof_key, started_s, used_s, ends_s)


def _code(row: tuple[Any, ...]) -> Code:
    client, redirect_uri, challenge, proof_key, scope, methods, used, session, expired = row[_ACCOUNT_WIDTH:]
    return Code(
        client, redirect_uri, challenge, proof_key, scope, tuple(methods), account_of(row[:_ACCOUNT_WIDTH]), used,
        session, expired,
    )  # fmt: skip

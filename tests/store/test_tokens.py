"""Revoked tokens and used assertions in PostgreSQL: what the gateway may do to them, and who is told."""

from __future__ import annotations

import time

import psycopg
import pytest

from gateway.auth.model import RevokedToken
from gateway.store.tokens import TokenFeed, TokenStore

DIGEST = bytes(range(32))


@pytest.fixture
def store(database, postgres):
    with psycopg.connect(postgres.admin_dsn, autocommit=True) as admin:
        admin.execute("TRUNCATE caregate.revoked_token, caregate.used_assertion")
    return TokenStore(database)


def admin_sql(postgres, query):
    with psycopg.connect(postgres.admin_dsn, autocommit=True) as admin:
        cursor = admin.execute(query)
        return cursor.fetchall() if cursor.description else []


def test_an_assertion_is_spent_once(store):
    until_s = time.time() + 60
    assert [store.spend(DIGEST, until_s), store.spend(DIGEST, until_s), store.spend(DIGEST[::-1], until_s)] == [
        True, False, True,
    ]  # fmt: skip


def test_changes_since_a_revision(store):
    before = store.changes(0, 1.0)
    assert (before.tokens, before.whole) == ([], True)
    until_s = float(int(time.time()) + 60)
    store.revoke("a", until_s, "labs")
    store.revoke("a", until_s + 1, "labs")
    first = store.changes(before.revision, 1.0)
    assert (first.tokens, first.whole) == ([RevokedToken("a", until_s)], False)
    store.revoke("b", until_s, "")
    assert [token.jti for token in store.changes(first.revision, 1.0).tokens] == ["b"]
    assert [token.jti for token in store.changes(10**9, 1.0).tokens] == ["a", "b"], "another database: all of it"
    assert (store.is_revoked("a"), store.is_revoked("c")) == (True, False)


def test_the_feed_is_told(store, postgres):
    feed = TokenFeed(postgres.gateway_dsn)
    known = feed.changes(0)
    store.revoke("told", time.time() + 60, "")
    begun_s = time.monotonic()
    feed.wait(10.0)
    assert time.monotonic() - begun_s < 5.0
    assert [token.jti for token in feed.changes(known.revision).tokens] == ["told"]
    feed.close()


def test_what_has_run_out_is_forgotten(store, postgres):
    now_s = time.time()
    for jti, age_s in (("old", 1_200), ("just over", 60), ("live", -60)):
        store.revoke(jti, now_s - age_s, "")
    store.spend(DIGEST, now_s - 1_200)
    store.spend(DIGEST[::-1], now_s + 60)
    store.forget()
    assert sorted(admin_sql(postgres, "SELECT jti FROM caregate.revoked_token")) == [("just over",), ("live",)]
    assert admin_sql(postgres, "SELECT digest FROM caregate.used_assertion") == [(DIGEST[::-1],)]


@pytest.mark.parametrize(
    "query",
    [
        "UPDATE caregate.revoked_token SET until_at = now()",
        "UPDATE caregate.token_revision SET number = 1",
        "INSERT INTO caregate.revoked_token (jti, until_at, revoked_by, revision) VALUES ('x', now(), '', 1)",
        "TRUNCATE caregate.revoked_token",
        "UPDATE caregate.used_assertion SET until_at = now()",
        "SELECT digest FROM caregate.used_assertion",
        "TRUNCATE caregate.used_assertion",
        "ALTER TABLE caregate.revoked_token DISABLE ROW LEVEL SECURITY",
    ],
)
def test_what_the_gateway_may_not(store, postgres, query):
    with psycopg.connect(postgres.gateway_dsn) as login, pytest.raises(psycopg.errors.InsufficientPrivilege):
        login.execute(query)


def test_the_gateway_cannot_undo(store, postgres):
    store.revoke("live", time.time() + 60, "")
    store.spend(DIGEST, time.time() + 60)
    with psycopg.connect(postgres.gateway_dsn, autocommit=True) as login:
        assert login.execute("DELETE FROM caregate.revoked_token").rowcount == 0
        assert login.execute("DELETE FROM caregate.used_assertion").rowcount == 0
    assert store.is_revoked("live")
    assert not store.spend(DIGEST, time.time() + 60)


def test_operators_may_nothing(store, postgres):
    for table in ("revoked_token", "used_assertion", "token_revision"):
        rights = f"has_table_privilege('caregate_operator', 'caregate.{table}', 'SELECT, INSERT, UPDATE, DELETE')"
        assert admin_sql(postgres, f"SELECT {rights}") == [(False,)]

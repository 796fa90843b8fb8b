"""Revocations in PostgreSQL: who may add them, who is told, and that each ends once in the audit trail."""

from __future__ import annotations

import psycopg
import pytest

from gateway.auth.model import Revocation
from gateway.errors import AuditUnavailable
from gateway.store.revocation import NewRevocation, RevocationOperator, RevocationRefused, RevocationStore
from gateway.store.tokens import TokenFeed, TokenStore


@pytest.fixture
def clean(postgres):
    with psycopg.connect(postgres.admin_dsn, autocommit=True) as admin:
        admin.execute("TRUNCATE caregate.revocation, caregate.access_change, caregate.revoked_token")


@pytest.fixture
def store(database, clean):
    return RevocationStore(database)


def new(kind="subject", value="s-1", **more):
    return NewRevocation(kind=kind, value=value, author="ada", reason="left", **more)


def test_it_reaches_workers_whole(store, database):
    tokens = TokenStore(database)
    before = tokens.changes(0, 1.0)
    assert (before.rules, before.whole) == ([], True)
    store.add(new("session", "sid-1"))
    done = store.add(new(issuer="https://id", audience="staff", role="nurse", before_s=1_700_000_000.0))
    found = tokens.changes(before.revision, 1.0)
    assert found.revision == done.revision
    assert [(rule.kind, rule.value) for rule in found.rules] == [("session", "sid-1"), ("subject", "s-1")]
    rule = found.rules[1]
    assert rule == Revocation(
        kind="subject", value="s-1", before_s=1_700_000_000.0, until_s=rule.until_s, issuer="https://id",
        audience="staff", role="nurse",
    )  # fmt: skip
    assert rule.until_s > 1_700_000_000 + 30 * 86_400
    assert [row.kind for row in store.listing()] == ["subject", "session"]


def test_the_feed_is_told(store, postgres):
    feed = TokenFeed(postgres.gateway_dsn)
    known = feed.changes(0)
    with RevocationOperator(postgres.operator_dsn) as operator:
        operator.add(new("before", ""))
        assert [row.actor for row in operator.listing()] == ["caregate_operator"]
    feed.wait(10.0)
    assert [rule.kind for rule in feed.changes(known.revision).rules] == ["before"]
    feed.close()


def test_each_change_is_noted_once_with_its_author(store, database):
    store.add(new())
    TokenStore(database).revoke("a-jti", 4e9, "labs")
    noted = []

    def full(*event):
        raise AuditUnavailable

    with pytest.raises(AuditUnavailable):
        store.note_changes(full)
    assert store.note_changes(lambda *event: noted.append(event)) == 2
    assert store.note_changes(lambda *event: noted.append(event)) == 0
    (kind, outcome, first), (_, _, second) = noted
    assert (kind, outcome) == ("revocation", "allowed")
    assert first.items() >= {"what": "subject", "subject": "s-1", "author": "ada", "reason": "left"}.items()
    assert first["actor"] == "caregate_gateway"
    assert (second["token_id"], second["author"]) == ("a-jti", "labs")


def test_what_has_run_out_is_forgotten_and_nothing_else(store, database, postgres):
    store.add(new("jti", "old"))
    store.add(new("jti", "live"))
    with psycopg.connect(postgres.admin_dsn, autocommit=True) as admin:
        admin.execute("UPDATE caregate.revocation SET until_at = now() - interval '1 hour' WHERE value = 'old'")
    with psycopg.connect(postgres.gateway_dsn, autocommit=True) as login:
        assert login.execute("DELETE FROM caregate.revocation").rowcount == 1
    TokenStore(database).forget()
    assert [row.value for row in store.listing()] == ["live"]


@pytest.mark.parametrize("login", ["gateway_dsn", "operator_dsn"])
@pytest.mark.parametrize(
    "query",
    [
        "UPDATE caregate.revocation SET until_at = now()",
        "INSERT INTO caregate.revocation (kind, value, before_at, until_at, author, reason, revision)"
        " VALUES ('jti', 'x', now(), now(), 'a', '', 1)",
        "INSERT INTO caregate.revocation (kind, value, before_at, until_at, author, reason, actor)"
        " VALUES ('jti', 'x', now(), now(), 'a', '', 'somebody')",
        "TRUNCATE caregate.revocation",
        "UPDATE caregate.access_change SET author = 'nobody'",
        "TRUNCATE caregate.access_change",
    ],
)
def test_what_nobody_may(store, postgres, login, query):
    store.add(new())
    with psycopg.connect(getattr(postgres, login)) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute(query)


def test_the_operator_takes_nothing_back(store, postgres):
    store.add(new())
    with psycopg.connect(postgres.operator_dsn, autocommit=True) as login:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            login.execute("DELETE FROM caregate.revocation")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            login.execute("DELETE FROM caregate.access_change")


@pytest.mark.parametrize(
    ("kind", "value", "more"),
    [
        ("tenant", "x", {}), ("jti", "", {}), ("before", "x", {}), ("session", "s", {"role": "nurse"}),
        ("jti", "j", {"before_s": 1.0}), ("subject", "s" * 5_000, {}), ("subject", "s", {"before_s": -6.2e10}),
    ],
    ids=["kind", "no-value", "a-value", "scope", "moment", "long", "year-0"],
)  # fmt: skip
def test_nonsense_is_refused_before_it_is_sent(kind, value, more):
    with pytest.raises(RevocationRefused):
        new(kind, value, **more)

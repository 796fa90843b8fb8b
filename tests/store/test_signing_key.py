"""Keys of roles in PostgreSQL: two live at a time, what has ended stays so, and who may do what."""

from __future__ import annotations

import time

import psycopg
import pytest

from gateway.store.revocation import NewRevocation, OperatorStoreError, RevocationOperator, RevocationStore
from gateway.store.signing_key import KeyChangeRefused, KeyOperator, NewKey
from gateway.store.tokens import TokenStore

SEALED = b"x" * 64


@pytest.fixture
def store(postgres, database):
    with psycopg.connect(postgres.admin_dsn, autocommit=True) as admin:
        admin.execute("TRUNCATE caregate.signing_key, caregate.access_change, caregate.revocation")
    with KeyOperator(postgres.operator_dsn) as operator:
        yield operator


def new(kid, role="nurse", signs_s=None):
    return NewKey(kid, role, "ES256", SEALED, signs_s)


def rotate(store, kid, documented=(), overlap_s=3_600, **more):
    return store.rotate(new(kid, **more), list(documented), overlap_s, "ada", "planned")


def test_the_old_key_ends_when_the_overlap_does(store, database):
    at_s = float(int(time.time()) + 600)
    first = rotate(store, "n-1", ["doc-1"], signs_s=at_s)
    assert (first.old, first.signs_at.timestamp(), first.retires_at.timestamp()) == ("doc-1", at_s, at_s + 3_600)
    rows = {row.kid: row for row in TokenStore(database).changes(0, 1.0).keys}
    assert (rows["n-1"].signs_s, rows["n-1"].retires_s, rows["n-1"].role) == (at_s, None, "nurse")
    assert (rows["doc-1"].retires_s, rows["doc-1"].sealed, rows["doc-1"].ended) == (at_s + 3_600, None, False)


def test_two_are_live_at_a_time(store):
    rotate(store, "n-1", ["doc-1"])
    with pytest.raises(KeyChangeRefused, match=r"2 keys of nurse are live: doc-1, n-1"):
        rotate(store, "n-2", ["doc-1"])
    store.retire("doc-1", "nurse", "ada", "leaked")
    assert rotate(store, "n-2", ["doc-1"]).old == "n-1"
    rotate(store, "c-1", role="clerk")
    with pytest.raises(KeyChangeRefused):
        rotate(store, "x-1", ["doc-8", "doc-9"], role="partner")


def test_what_has_ended_stays_so(store, postgres, database):
    rotate(store, "n-1", ["doc-1"], overlap_s=0)
    assert [row.kid for row in store.listing() if row.has_ended] == ["doc-1"]
    store.retire("n-1", "nurse", "ada", "leaked")
    with pytest.raises(KeyChangeRefused, match="retired already"):
        store.retire("n-1", "nurse", "ada", "again")
    with psycopg.connect(postgres.admin_dsn, autocommit=True) as admin:
        for change in ("ended_at = NULL", "retires_at = NULL", "retires_at = now() + interval '1 day'"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                admin.execute(f"UPDATE caregate.signing_key SET {change}")
    with pytest.raises(OperatorStoreError, match="duplicate"):
        rotate(store, "n-1")


def test_each_change_is_noted(store, database):
    rotate(store, "n-1", ["doc-1"])
    store.reseal("n-1", "nurse", b"y" * 64, "ada", "another key")
    store.retire("doc-1", "nurse", "ada", "leaked")
    noted = []
    assert RevocationStore(database).note_changes(lambda kind, outcome, detail: noted.append((kind, detail))) == 3
    assert [(kind, detail["what"]) for kind, detail in noted] == [
        ("key", "rotated"), ("key", "rewrapped"), ("key", "retired"),
    ]  # fmt: skip
    assert {detail["author"] for _, detail in noted} == {"ada"}
    assert noted[0][1].items() >= {"role": "nurse", "kid": "n-1", "old": "doc-1", "alg": "ES256"}.items()
    assert "sealed" not in str(noted)


@pytest.mark.parametrize(
    ("login", "query"),
    [
        ("gateway_dsn", "INSERT INTO caregate.signing_key (kid, role, alg, author) VALUES ('x', 'nurse', '', 'a')"),
        ("gateway_dsn", "UPDATE caregate.signing_key SET ended_at = now()"),
        ("gateway_dsn", "DELETE FROM caregate.signing_key"),
        ("operator_dsn", "DELETE FROM caregate.signing_key"),
        ("operator_dsn", "UPDATE caregate.signing_key SET role = 'admin'"),
        ("operator_dsn", "TRUNCATE caregate.signing_key"),
    ],
)
def test_what_nobody_may(store, postgres, login, query):
    rotate(store, "n-1")
    with psycopg.connect(getattr(postgres, login)) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute(query)


# --- logins end with what is revoked


@pytest.fixture
def sessions(postgres, store):
    """Two accounts with a session each, begun an hour ago; whether they go on."""
    with psycopg.connect(postgres.admin_dsn, autocommit=True) as admin:
        admin.execute("TRUNCATE caregate.account CASCADE")
        for name, role, units in (("a", "nurse", '["north"]'), ("b", "clerk", '["south"]')):
            admin.execute(
                "INSERT INTO caregate.account (id, login, subject, role, claims, password)"
                " VALUES (%s, %s, %s, %s, %s, %s)",
                (name * 22, name, f"sub-{name}", role, f'{{"units": {units}}}',
                 "$argon2id$v=19$m=65536,t=3,p=1$" + "A" * 22 + "$" + "A" * 43),
            )  # fmt: skip
            admin.execute(
                "INSERT INTO caregate.session"
                " (id, account, client, role, issuer, audience, methods, ends_at, started_at) VALUES"
                " (%s, %s, 'app', %s, 'https://id', 'app', '{pwd}', now() + interval '1 day',"
                " now() - interval '1 hour')",
                (f"{name}s" * 11, name * 22, role),
            )
        yield lambda: [
            row[0][0] for row in admin.execute("SELECT id FROM caregate.session WHERE ended_at IS NULL ORDER BY id")
        ]
        admin.execute("TRUNCATE caregate.account CASCADE")


@pytest.mark.parametrize(
    ("what", "left"),
    [
        ({"kind": "session", "value": "as" * 11}, ["b"]),
        ({"kind": "subject", "value": "sub-a"}, ["b"]),
        ({"kind": "subject", "value": "sub-a", "role": "clerk"}, ["a", "b"]),
        ({"kind": "subject", "value": "sub-a", "issuer": "https://another"}, ["a", "b"]),
        ({"kind": "subject", "value": "sub-a", "before_s": 1_000_000_000.0}, ["a", "b"]),
        ({"kind": "unit", "value": "south"}, ["a"]),
        ({"kind": "before"}, []),
        ({"kind": "before", "role": "nurse"}, ["b"]),
        ({"kind": "before", "audience": "staff"}, ["a", "b"]),
        ({"kind": "jti", "value": "sub-a"}, ["a", "b"]),
    ],
    ids=str,
)
def test_a_revocation_ends_logins(sessions, postgres, what, left):
    assert sessions() == ["a", "b"]
    with RevocationOperator(postgres.operator_dsn) as operator:
        operator.add(NewRevocation(author="ada", reason="", **what))
    assert sessions() == left

"""The registry of units in PostgreSQL: codes, keys, rotation, the timeline, and who may do what."""

from __future__ import annotations

import hashlib
import json

import gevent
import psycopg
import pytest

from gateway.errors import Conflict, DatabaseUnavailable
from gateway.store.unit_operator import OperatorError, UnitOperator
from gateway.store.units import MAX_LIVE_KEYS, UnitFeed, UnitStore
from gateway.units.model import NewKey

CODE = hashlib.sha256(b"code").digest()
TABLES = "unit, unit_key, unit_context, unit_code, unit_event, unit_presence"


@pytest.fixture
def operator_dsn(postgres):
    return postgres.admin_dsn.replace("//postgres@", "//caregate_operator@")


@pytest.fixture
def store(database, postgres):
    names = ", ".join(f"caregate.{name.strip()}" for name in TABLES.split(","))
    with psycopg.connect(postgres.admin_dsn, autocommit=True) as admin:
        admin.execute(f"TRUNCATE {names}")
    return UnitStore(database)


@pytest.fixture
def operator(store, operator_dsn):
    with UnitOperator(operator_dsn) as made:
        yield made


def key(name: str) -> NewKey:
    return NewKey(f"kid-{name}", "EdDSA", f"-----BEGIN PUBLIC KEY----- {name}")


def admin_sql(postgres, query):
    with psycopg.connect(postgres.admin_dsn, autocommit=True) as admin:
        cursor = admin.execute(query)
        return cursor.fetchall() if cursor.description else []


def test_a_code_is_for_one_key_of_one_unit(store, operator):
    operator.issue_code("north", CODE, 60)
    assert store.enrol("south", CODE, key("a"), with_context=True) is None
    secret = store.enrol("north", CODE, key("a"), with_context=True)
    assert secret is not None
    assert len(secret) == 64
    assert store.enrol("north", CODE, key("b"), with_context=True) is None
    assert store.enrol("north", CODE, key("a"), with_context=True) == secret, "its answer may have been lost"
    assert [k.kid for k in operator.keys("north")] == ["kid-a"]
    assert [(e.kind, e.actor) for e in reversed(operator.timeline("north", 9))] == [
        ("code-issued", "caregate_operator"), ("enrolled", "caregate_gateway"),
    ]  # fmt: skip


def test_codes_that_are_not_good(store, operator, postgres):
    assert store.enrol("north", CODE, key("a"), with_context=False) is None
    operator.issue_code("north", CODE, 60)
    admin_sql(postgres, "UPDATE caregate.unit_code SET expires_at = now()")
    assert store.enrol("north", CODE, key("a"), with_context=False) is None
    admin_sql(postgres, "UPDATE caregate.unit_code SET expires_at = now() + interval '1 h'")
    operator.revoke("north", "")
    assert store.enrol("north", CODE, key("a"), with_context=False) is None
    operator.enable("north", "")
    assert store.enrol("north", CODE, key("a"), with_context=False) == ""


def test_a_key_that_was_revoked_or_is_another_units_is_not_registered(store, operator):
    for unit in ("north", "south", "west"):
        operator.issue_code(unit, hashlib.sha256(unit.encode()).digest(), 60)
    assert store.enrol("north", hashlib.sha256(b"north").digest(), key("a"), with_context=False) == ""
    assert store.enrol("south", hashlib.sha256(b"south").digest(), key("a"), with_context=False) is None
    operator.revoke_key("north", "kid-a", "")
    assert store.enrol("north", hashlib.sha256(b"north").digest(), key("a"), with_context=False) is None
    # What was refused spent no code.
    assert store.enrol("south", hashlib.sha256(b"south").digest(), key("b"), with_context=False) == ""


def test_too_many_keys_spend_no_code(store, operator):
    for number in range(MAX_LIVE_KEYS + 1):
        digest = hashlib.sha256(str(number).encode()).digest()
        operator.issue_code("north", digest, 60)
        if number < MAX_LIVE_KEYS:
            assert store.enrol("north", digest, key(str(number)), with_context=False) == ""
    with pytest.raises(Conflict):
        store.enrol("north", digest, key("last"), with_context=False)
    operator.revoke_key("north", "kid-0", "old machine")
    assert store.enrol("north", digest, key("last"), with_context=False) == ""


def rotate(store, old, new, **changes):
    options = {"overlap_s": 600, "with_context": True, "context_after_s": None, **changes}
    return store.rotate("north", old, key(new), **options)


def test_rotation_retires_the_old_key_and_may_be_repeated(store, operator):
    operator.issue_code("north", CODE, 60)
    secret = store.enrol("north", CODE, key("a"), with_context=True)
    assert rotate(store, "kid-a", "b") == rotate(store, "kid-a", "b") == secret
    old, new = operator.keys("north")
    assert old.retires_at is not None
    assert (new.kid, new.retires_at) == ("kid-b", None)
    assert [e.kind for e in operator.timeline("north", 9)].count("key-rotated") == 1


def test_a_key_of_the_document_can_vouch_too(store):
    assert rotate(store, "kid-of-the-document", "a") is not None


def test_a_context_key_is_replaced_after_a_while(store, operator):
    first = rotate(store, "doc", "a")
    second = rotate(store, "kid-a", "b", context_after_s=60.0)
    assert first != second
    found = sorted(store.changes(0, 5.0).contexts, key=lambda row: row.generation)
    assert [row.secret for row in found] == [first, second]
    assert 55 < found[1].from_s - found[0].from_s < 120
    assert rotate(store, "kid-b", "c") == second, "the newest is handed out"


def test_changes_come_in_their_order_and_are_told(store, operator, postgres):
    feed = UnitFeed(postgres.gateway_dsn)
    known = feed.changes(0)
    assert (known.whole, known.keys) == (True, [])
    rotate(store, "doc", "a")
    with gevent.Timeout(5):
        feed.wait(5.0)
    found = feed.changes(known.revision)
    assert [row.kid for row in found.keys] == ["kid-a"]
    assert not found.whole
    assert feed.changes(found.revision).keys == []
    operator.revoke_key("north", "kid-a", "")
    assert [row.revoked for row in feed.changes(found.revision).keys] == [True]
    assert feed.changes(found.revision + 10_000).whole, "another database"
    feed.close()


def test_use_of_a_key_is_no_change(store, operator):
    rotate(store, "doc", "a")
    before = store.changes(0, 5.0).revision
    store.write(json.dumps({"events": [], "presence": [], "used": [{"kid": "kid-a", "at_s": 1e9}]}).encode(), 5.0)
    assert store.changes(0, 5.0).revision == before
    assert operator.keys()[0].last_used_at.timestamp() == 1e9


def event(kind, conn, at_s, why="", unit="north"):
    return {"unit": unit, "at_s": at_s, "kind": kind, "why": why, "conn": conn, "kid": "", "node": "n", "agent": "a"}


def write(store, *events, presence=()):
    store.write(json.dumps({"events": events, "presence": presence, "used": []}).encode(), 5.0)


def test_whoever_reports_first_is_kept(store, operator):
    write(store, event("up", "c1", 1.0), event("down", "c1", 2.0, "worker-lost"))
    write(store, event("down", "c1", 3.0, "worker-lost"))
    assert [(e.kind, e.at.timestamp()) for e in operator.timeline("north", 9)] == [("down", 2.0), ("up", 1.0)]


def test_presence_never_runs_backwards(store):
    for at_s, why in ((10.0, ""), (12.0, "silent"), (11.0, "")):
        write(store, presence=[{"unit": "north", "at_s": at_s, "why": why}])
    assert store.presence(5.0) == [("north", 12.0, "silent")]


FLAPS = [
    ("lost-and-back", [("up", "a", 1), ("down", "a", 2), ("up", "b", 3), ("down", "b", 4)], [], 2),
    ("make-before-break", [("up", "a", 1), ("up", "b", 2), ("down", "a", 3)], ["b"], 0),
    ("out-of-order", [("down", "a", 3), ("up", "b", 2), ("up", "a", 1)], ["b"], 0),
    ("both-at-once", [("up", "a", 1), ("up", "b", 1), ("down", "a", 5), ("down", "b", 5)], [], 2),
    ("one-after-the-other", [("up", "a", 1), ("up", "b", 1), ("down", "a", 5), ("down", "b", 6)], [], 1),
    ("a-killed-gateway's", [("up", "z", 0), ("up", "a", 1), ("down", "a", 3)], [], 1),
]


@pytest.mark.parametrize(("events", "live", "flaps"), [c[1:] for c in FLAPS], ids=[c[0] for c in FLAPS])
def test_flaps(store, operator, postgres, events, live, flaps):
    now_s = admin_sql(postgres, "SELECT extract(epoch FROM now())::float8 - 100")[0][0]
    write(
        store,
        *(event(kind, conn, now_s + at) for kind, conn, at in events),
        presence=[{"unit": "north", "at_s": now_s, "why": ""}],
    )
    assert [record.flaps for record in operator.records(live, 86_400)] == [flaps]


GATEWAY_MAY_NOT = [
    "INSERT INTO caregate.unit_code (digest, unit, expires_at) VALUES (sha256('x'), 'north', now() + interval '1 h')",
    "UPDATE caregate.unit_code SET expires_at = now() + interval '1 y'",
    "INSERT INTO caregate.unit (unit, revoked_at) VALUES ('north', NULL)",
    "UPDATE caregate.unit SET revoked_at = NULL",
    "UPDATE caregate.unit_key SET revoked_at = NULL",
    "UPDATE caregate.unit_key SET public_key = ''",
    "UPDATE caregate.unit_key SET created_at = now()",
    "UPDATE caregate.unit_context SET secret = ''",
    "UPDATE caregate.unit_revision SET number = 1",
    "SELECT * FROM caregate.unit_event",
    "UPDATE caregate.unit_event SET why = ''",
    "INSERT INTO caregate.unit_event (unit, kind, actor) VALUES ('north', 'up', 'somebody')",
    *(f"DELETE FROM caregate.{name.strip()}" for name in TABLES.split(",")),
]
OPERATOR_MAY_NOT = [
    "SELECT * FROM caregate.unit_context",
    "SELECT * FROM caregate.unit_code",
    "INSERT INTO caregate.unit_key (kid, unit, alg, public_key) VALUES ('k', 'north', 'EdDSA', '')",
    "UPDATE caregate.unit_key SET retires_at = NULL",
    "INSERT INTO caregate.unit_event (unit, kind, actor) VALUES ('north', 'up', 'somebody')",
    "SELECT * FROM audit.event",
    *(f"DELETE FROM caregate.{name.strip()}" for name in TABLES.split(",")),
]


@pytest.mark.parametrize("query", GATEWAY_MAY_NOT)
def test_what_the_gateway_may_not(store, postgres, query):
    with psycopg.connect(postgres.gateway_dsn) as login, pytest.raises(psycopg.errors.InsufficientPrivilege):
        login.execute(query)


@pytest.mark.parametrize("query", OPERATOR_MAY_NOT)
def test_what_the_operator_may_not(store, operator_dsn, query):
    with psycopg.connect(operator_dsn) as login, pytest.raises(psycopg.errors.InsufficientPrivilege):
        login.execute(query)


def test_a_database_that_is_away(operator_dsn):
    with pytest.raises(OperatorError):
        UnitOperator("postgresql://caregate_operator@/caregate?host=/nowhere")
    with pytest.raises(DatabaseUnavailable):
        UnitFeed("postgresql://caregate_gateway@/caregate?host=/nowhere")


def test_what_an_operator_does_goes_into_the_audit_trail(store, operator, operator_dsn, postgres):
    admin_sql(postgres, "TRUNCATE caregate.access_change")
    code = operator.issue_code("north", CODE, 60)
    operator.cancel_code("north", code.number, "typed wrong")
    store.enrol("north", CODE, key("a"), with_context=True)
    operator.issue_code("north", hashlib.sha256(b"other").digest(), 60)
    store.enrol("north", hashlib.sha256(b"other").digest(), key("a"), with_context=True)
    with UnitOperator(operator_dsn, "mia") as mia:
        assert mia.revoke_key("north", "kid-a", "lost")
        assert mia.revoke("north", "gone")
        assert not mia.revoke("north", "again")
        assert mia.enable("north", "back")
    rows = admin_sql(postgres, "SELECT kind, detail, author, reason, actor FROM caregate.access_change ORDER BY number")
    assert [(kind, detail["unit"], actor) for kind, detail, _, _, actor in rows] == [
        ("unit", "north", "caregate_operator")
    ] * 6
    assert [(detail["what"], detail.get("kid"), author, reason) for _, detail, author, reason, _ in rows] == [
        ("code-issued", None, "operator", ""), ("code-cancelled", None, "operator", "typed wrong"),
        ("code-issued", None, "operator", ""), ("key-revoked", "kid-a", "mia", "lost"),
        ("revoked", None, "mia", "gone"), ("enabled", None, "mia", "back"),
    ]  # fmt: skip
    details = [detail for _, detail, *_ in rows]
    assert [("before" in one, len(one["digest"])) for one in details] == [
        (False, 64), (True, 64), (False, 64), (True, 64), (True, 64), (True, 64),
    ]  # fmt: skip
    assert (details[4]["before"], details[4]["digest"]) == (details[5]["digest"], details[5]["before"])

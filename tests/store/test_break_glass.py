"""Cases of breaking the glass in PostgreSQL: how many, for how long, once ended, once reviewed, told of by one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from gateway.breakglass.model import LONGEST_S, MAX_OPEN, NewCase
from gateway.store.break_glass import BreakGlassStore

ISSUER = "https://id.test"
REASON = "unconscious on arrival"


@pytest.fixture
def store(database, postgres):
    sql(postgres, "TRUNCATE caregate.break_glass")
    return BreakGlassStore(database)


def sql(postgres, query, values=()):
    with psycopg.connect(postgres.admin_dsn, autocommit=True) as admin:
        cursor = admin.execute(query, values)
        return cursor.fetchall() if cursor.description else []


def new(**changes) -> NewCase:
    fields = {
        "issuer": ISSUER, "subject": "weber", "audience": "staff", "role": "practitioner", "organisation": "",
        "unit": "north", "patient": "p-1", "reason": REASON, "for_s": 600, **changes,
    }  # fmt: skip
    return NewCase(**fields)


def test_a_case_opens_one_record_of_one_unit_to_one_person(store):
    case = store.start(new())
    assert case.until_s - case.started_s == pytest.approx(600)
    assert store.find(ISSUER, "weber", "north", "p-1") == case.id
    for asked in (
        ("https://other.test", "weber", "north", "p-1"), (ISSUER, "other", "north", "p-1"),
        (ISSUER, "weber", "south", "p-1"), (ISSUER, "weber", "north", "p-2"), (ISSUER, "weber", "north", "P-1"),
    ):  # fmt: skip
        assert store.find(*asked) is None, asked


def test_it_is_over_in_time(store, postgres):
    case = store.start(new())
    sql(postgres, "UPDATE caregate.break_glass SET until_at = started_at + interval '1 microsecond'")
    assert store.find(ISSUER, "weber", "north", "p-1") is None
    assert store.own(ISSUER, "weber") == []
    assert store.end(case.id, ISSUER, "weber") is None
    assert [found.id for found in store.queue(None, "", 9)] == [case.id], "reviewed it must be all the same"


def test_it_is_ended_once_by_its_holder(store):
    case = store.start(new())
    assert store.end(case.id, ISSUER, "somebody") is None
    assert store.end("not an id", ISSUER, "weber") is None
    assert store.end(case.id, ISSUER, "weber").ended_s
    assert store.end(case.id, ISSUER, "weber") is None
    assert store.find(ISSUER, "weber", "north", "p-1") is None


def test_nobody_has_too_many_open_not_even_at_once(store):
    with ThreadPoolExecutor(12) as pool:
        made = list(pool.map(lambda n: store.start(new(patient=f"p-{n}")), range(12)))
    assert sum(case is not None for case in made) == MAX_OPEN
    assert store.start(new(subject="other")) is not None
    store.end(next(case for case in made if case).id, ISSUER, "weber")
    assert store.start(new()) is not None


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"for_s": LONGEST_S + 1}, id="too long"),
        pytest.param({"for_s": 0}, id="no time"),
        pytest.param({"reason": "short"}, id="no reason"),
        pytest.param({"patient": ""}, id="no patient"),
        pytest.param({"unit": ""}, id="no unit"),
    ],
)
def test_the_database_refuses_what_must_not_be(store, changes):
    with pytest.raises(psycopg.errors.CheckViolation):
        store.start(new(**changes))


def test_the_gateway_s_login_changes_nothing_else(store, postgres):
    case = store.start(new())
    with psycopg.connect(postgres.gateway_dsn, autocommit=True) as gateway:
        for statement in (
            "DELETE FROM caregate.break_glass",
            "UPDATE caregate.break_glass SET until_at = until_at + interval '1 hour'",
            "UPDATE caregate.break_glass SET reason = 'another reason'",
            "UPDATE caregate.break_glass SET patient = 'p-2'",
            "TRUNCATE caregate.break_glass",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                gateway.execute(statement)
        store.end(case.id, ISSUER, "weber")
        with pytest.raises(psycopg.errors.RestrictViolation):
            gateway.execute("UPDATE caregate.break_glass SET ended_at = NULL")


def test_a_review_is_written_once_by_somebody_else(store):
    case = store.start(new())
    seen = []
    written = store.review(case.id, seen.append, "justified", "as it should be", ISSUER, "auditor-1")
    assert [found.id for found in seen] == [case.id]
    assert (written.verdict, written.reviewer) == ("justified", "auditor-1")
    assert store.queue(None, "", 9) == []
    with pytest.raises(psycopg.errors.RestrictViolation):
        store.review(case.id, seen.append, "unjustified", "or not", ISSUER, "auditor-2")
    assert store.review("00000000-0000-0000-0000-000000000000", seen.append, "justified", "x", ISSUER, "a") is None
    other = store.start(new(patient="p-2"))
    with pytest.raises(psycopg.errors.CheckViolation):
        store.review(other.id, seen.append, "justified", "by myself", ISSUER, "weber")


def test_what_a_reviewer_forbids_is_not_written(store):
    case = store.start(new())

    def forbid(found):
        raise PermissionError

    with pytest.raises(PermissionError):
        store.review(case.id, forbid, "justified", "x", ISSUER, "auditor-1")
    assert len(store.queue(None, "", 9)) == 1


def test_the_queue_is_by_unit_and_in_pages(store):
    made = [store.start(new(unit=unit, patient=f"p-{n}")) for n, unit in enumerate(["north", "south", "north"])]
    assert [case.id for case in store.queue(["north"], "", 9)] == [made[0].id, made[2].id]
    assert store.queue([], "", 9) == []
    first = store.queue(None, "", 2)
    assert [case.id for case in first + store.queue(None, first[-1].id, 2)] == [case.id for case in made]


def test_each_case_is_told_of_until_it_is_taken(store, postgres):
    case = store.start(new())
    told = []
    assert store.tell_next(lambda found: told.append(found.id) or False)
    assert not store.tell_next(lambda found: True), "the next attempt is not due"
    sql(postgres, "UPDATE caregate.break_glass SET notice_at = now()")
    assert store.tell_next(lambda found: told.append(found.id) or True)
    sql(postgres, "UPDATE caregate.break_glass SET notice_at = now()")
    assert not store.tell_next(lambda found: True)
    assert told == [case.id, case.id]


def test_two_workers_do_not_tell_of_the_same_case(store):
    store.start(new())
    inside = []
    assert store.tell_next(lambda found: inside.append(store.tell_next(lambda other: True)) or True)
    assert inside == [False]

from datetime import date

import psycopg
import pytest

from gateway.demo.fhir_data import DEMO_UNITS
from gateway.demo.portal_data import PATIENTS, UNITS, keep_or_load_portal, load_portal, patient_id, units_of

_DAY = date(2031, 5, 5)
_DIGEST = """
SELECT md5(string_agg(t::text, '|' ORDER BY t::text)) FROM (
    SELECT row(p.*)::text AS t FROM portal.patients p UNION ALL SELECT row(a.*)::text FROM portal.appointments a
    UNION ALL SELECT row(s.*)::text FROM portal.shared_summaries s
    UNION ALL SELECT row(f.*)::text FROM portal.staff f) x
"""


@pytest.fixture
def admin(portal):
    with psycopg.connect(portal.admin_dsn, autocommit=True) as connection:
        yield connection


def test_loading_again_gives_the_same(portal, admin):
    load_portal(portal.admin_dsn, _DAY)
    first = admin.execute(_DIGEST).fetchone()
    load_portal(portal.admin_dsn, _DAY)
    assert admin.execute(_DIGEST).fetchone() == first
    load_portal(portal.admin_dsn)


def test_what_was_booked_stays_until_other_code_made_the_portal(portal, admin):
    load_portal(portal.admin_dsn)
    booked = "SELECT count(*) FROM portal.appointments WHERE reason = 'kept'"
    admin.execute(
        "INSERT INTO portal.appointments (patient, unit, starts_at, reason) "
        "VALUES ('pat-0001', 'linden-clinic', '2040-01-01', 'kept')"
    )
    assert not keep_or_load_portal(portal.admin_dsn)
    assert admin.execute(booked).fetchone() == (1,)
    admin.execute("COMMENT ON SCHEMA portal IS 'demo of other code'")
    assert keep_or_load_portal(portal.admin_dsn)
    assert admin.execute(booked).fetchone() == (0,)


def test_everybody_is_there(admin):
    counts = admin.execute(
        "SELECT (SELECT count(*) FROM portal.patients), (SELECT count(*) FROM portal.healthcare_units), "
        "(SELECT min(n) FROM (SELECT count(*) n FROM portal.appointments WHERE starts_at > now() GROUP BY patient) x)"
    ).fetchone()
    assert counts[:2] == (PATIENTS, len(UNITS))
    assert counts[2] >= 2


@pytest.mark.parametrize("number", range(1, PATIENTS + 1))
def test_the_units_know_the_same_patients(number):
    assert set(units_of(number)) == {unit.id for unit in DEMO_UNITS.values() if number in unit.patient_numbers()}


@pytest.mark.parametrize(
    ("table", "column", "value"),
    [
        ("appointments", "patient", patient_id(1)),
        ("appointments", "unit", "linden-clinic"),
        ("shared_summaries", "patient", patient_id(1)),
        ("registrations", "unit", "linden-clinic"),
        ("patients", "id", patient_id(1)),
    ],
)
def test_reads_can_use_an_index_with_row_level_security_on(portal, table, column, value):
    with psycopg.connect(portal.gateway_dsn) as connection:
        connection.execute("SET LOCAL enable_seqscan = off")
        rows = connection.execute(f"EXPLAIN SELECT FROM portal.{table} WHERE {column} = '{value}'").fetchall()
    plan = "\n".join(row[0] for row in rows)
    assert f"Index Cond: ({column} = " in plan or f"Index Cond: (({column} = " in plan, plan

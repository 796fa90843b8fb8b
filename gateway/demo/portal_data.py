"""The demo portal's people, appointments and summaries: invented, believable, the same in every new database."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Any

import psycopg

_SCHEMA = Path(__file__).with_name("portal.sql")
_SEED = 20_260
PATIENTS = 60
APPOINTMENTS_EACH = 14
UNITS: tuple[tuple[str, str, str, str], ...] = (
    ("st-marien-hospital", "St. Marien Hospital", "hospital", "Marienfeld"),
    ("linden-clinic", "Linden Clinic", "clinic", "Lindenau"),
    ("hollow-creek-post", "Hollow Creek Rural Post", "rural", "Hollow Creek"),
)
_TREATED_BY: dict[int, tuple[int, ...]] = {0: (2,), 1: (0, 1), 2: (1,), 3: (0, 2)}
"""Patient number modulo 4 -> indexes of the units that treat her; pat-0001 is known at the hospital and the clinic."""
_GIVEN = {
    "female": ("Anna", "Berta", "Clara", "Dora", "Elsa", "Frieda", "Greta", "Hanna", "Ida", "Judith"),
    "male": ("Anton", "Bruno", "Conrad", "Daniel", "Emil", "Felix", "Gustav", "Henrik", "Ivo", "Jonas"),
}
_FAMILY = ("Specimen", "Muster", "Beispiel", "Placeholder", "Sampleton", "Testmann", "Fictus", "Dummler")
_PROFESSIONS = ("physician", "physician", "nurse", "nurse", "clerk", "radiographer")
_REASONS = ("check-up", "blood pressure", "vaccination", "follow-up", "laboratory", "consultation")
_TITLES = ("Discharge summary", "Medication plan", "Laboratory overview", "Vaccination record")
_MINUTES = (10, 15, 20, 30)

Row = tuple[Any, ...]
_CONSENTS: list[Row] = [
    ("pat-0005", "st-marien-hospital", None, False), ("pat-0005", "st-marien-hospital", "ETREAT", True),
]  # fmt: skip
"""She has withdrawn her consent at the hospital, but for emergencies."""


def load_portal(admin_dsn: str, today: date | None = None) -> None:
    """Replace the portal's tables, functions and data; appointments lie around `today` (UTC), 10 in the past, 4 ahead.

    Raises: psycopg.Error.
    """
    day = today if today is not None else datetime.now(UTC).date()
    with psycopg.connect(admin_dsn) as connection, connection.cursor() as cursor:
        cursor.execute(_SCHEMA.read_bytes())
        # FORCE holds for the owner too; a superuser passes, and leaves the role that the schema was made with.
        cursor.execute("RESET ROLE")
        for table, columns, rows in _tables(day):
            with cursor.copy(f"COPY portal.{table} ({columns}) FROM STDIN".encode()) as copy:
                for row in rows:
                    copy.write_row(row)
        cursor.execute("ANALYZE portal.patients, portal.registrations, portal.appointments, portal.shared_summaries")
        cursor.execute(f"COMMENT ON SCHEMA portal IS '{_made_by()}'".encode())


def keep_or_load_portal(admin_dsn: str) -> bool:
    """Load the portal if the database has none, or one that other code made; was it loaded?

    Raises: psycopg.Error.
    """
    with psycopg.connect(admin_dsn) as connection:
        found = connection.execute("SELECT obj_description('portal'::regnamespace, 'pg_namespace')").fetchone()
    if found == (_made_by(),):
        return False
    load_portal(admin_dsn)
    return True


def _made_by() -> str:
    """Changes with the tables, the functions and the people."""
    code = _SCHEMA.read_bytes() + Path(__file__).read_bytes()
    return f"demo {hashlib.sha256(code).hexdigest()}"


def patient_id(number: int) -> str:
    """Units: `number` counts from 1."""
    return f"pat-{number:04d}"


def units_of(number: int) -> tuple[str, ...]:
    """The units that treat a patient, the same as in the units' own records."""
    return tuple(UNITS[index][0] for index in _TREATED_BY[number % 4])


def _tables(today: date) -> Iterator[tuple[str, str, list[Row]]]:
    dice = random.Random(_SEED)  # noqa: S311 - demo data
    numbers = range(1, PATIENTS + 1)
    yield "healthcare_units", "id, name, kind, city", list(UNITS)
    yield (
        "patients",
        "id, family_name, given_name, birth_date, sex, phone",
        [_patient(number, dice) for number in numbers],
    )
    yield (
        "registrations",
        "patient, unit, since",
        [(patient_id(n), unit, date(2020 + n % 5, 1 + n % 12, 1)) for n in numbers for unit in units_of(n)],
    )
    yield "staff", "id, unit, name, profession", [row for unit, *_ in UNITS for row in _staff(unit)]
    yield (
        "appointments",
        "patient, unit, staff, starts_at, minutes, reason, status",
        [row for number in numbers for row in _appointments(number, today, dice)],
    )
    yield "consents", "patient, unit, purpose, permits", _CONSENTS
    yield (
        "shared_summaries",
        "patient, unit, title, content, shared_at",
        [row for number in numbers for row in _summaries(number, today)],
    )


def _patient(number: int, dice: random.Random) -> Row:
    sex = "female" if number % 2 else "male"
    names = _GIVEN[sex]
    born = date(1945, 1, 1) + timedelta(days=dice.randrange(22_000))
    family, given = _FAMILY[number % len(_FAMILY)], names[number // 2 % len(names)]
    return (patient_id(number), family, given, born, sex, f"+00 555 {number:04d}")


def _staff_id(unit: str, index: int) -> str:
    return f"{unit}-staff-{index + 1}"


def _staff(unit: str) -> Iterator[Row]:
    for index, profession in enumerate(_PROFESSIONS):
        names = _GIVEN["female" if index % 2 else "male"]
        yield (_staff_id(unit, index), unit, f"{names[-1 - index]} {_FAMILY[index]}", profession)


def _appointments(number: int, today: date, dice: random.Random) -> Iterator[Row]:
    units = units_of(number)
    for index in range(APPOINTMENTS_EACH):
        days = (index - 10) * 12 + dice.randrange(1, 9)
        moment = datetime.combine(
            today + timedelta(days=days), time(8 + dice.randrange(9), 15 * dice.randrange(4)), UTC
        )
        unit = units[index % len(units)]
        status = "booked" if days >= 0 else dice.choice(("attended", "attended", "attended", "missed", "cancelled"))
        staff = _staff_id(unit, dice.randrange(2))
        yield (patient_id(number), unit, staff, moment, dice.choice(_MINUTES), dice.choice(_REASONS), status)


def _summaries(number: int, today: date) -> Iterator[Row]:
    for index, unit in enumerate(units_of(number)):
        title = _TITLES[(number + index) % len(_TITLES)]
        moment = datetime.combine(today - timedelta(days=20 + 7 * index + number % 30), time(12), UTC)
        yield (patient_id(number), unit, title, f"{title} of a patient who does not exist, written at {unit}.", moment)

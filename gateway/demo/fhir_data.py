"""The clinical records of the three demo units: FHIR R4, synthetic, the same at every start.

A person keeps name, sex and date of birth at every unit that knows her; what was measured there differs. The id of a
patient at a unit is the portal's (`pat-0001`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import date
from typing import Any

import orjson
from carebundle import generate_bundle, generate_patient, to_json

Resource = dict[str, Any]

PEOPLE_SEED = 20260
PEOPLE = 60
KINDS = (
    "Patient",
    "Observation",
    "Condition",
    "MedicationRequest",
    "AllergyIntolerance",
    "DiagnosticReport",
    "Encounter",
    "Practitioner",
)
_PROFILES = ("type2_diabetes", "hypertension", "healthy", "ckd_stage3", "anaemia")
_SYSTEM = "https://caregate.example/portal-patient-id"


@dataclass(frozen=True, slots=True)
class DemoUnit:
    """`remainders`: person n is a patient here if n modulo 4 is among them."""

    id: str
    seed: int
    visits_on: date
    remainders: frozenset[int]

    def patient_numbers(self) -> list[int]:
        return [number for number in range(1, PEOPLE + 1) if number % 4 in self.remainders]


DEMO_UNITS = {
    unit.id: unit
    for unit in (
        DemoUnit("st-marien-hospital", 101, date(2026, 1, 12), frozenset({1, 3})),
        DemoUnit("linden-clinic", 202, date(2026, 2, 3), frozenset({1, 2})),
        DemoUnit("hollow-creek-post", 303, date(2025, 11, 20), frozenset({0, 3})),
    )
}
"""pat-0001 (remainder 1) has records at the hospital and the clinic, none at the rural post."""


def patient_id(number: int) -> str:
    return f"pat-{number:04d}"


@dataclass(slots=True)
class Records:
    """All resources of one unit by kind and id."""

    unit: str
    by_kind: dict[str, dict[str, Resource]] = field(default_factory=lambda: {kind: {} for kind in KINDS})

    def add(self, resource: Resource) -> None:
        self.by_kind[resource["resourceType"]][resource["id"]] = resource

    def read(self, kind: str, resource_id: str) -> Resource | None:
        return self.by_kind[kind].get(resource_id)

    def of_patient(self, kind: str, patient: str) -> Iterator[Resource]:
        reference = f"Patient/{patient}"
        about = "patient" if kind == "AllergyIntolerance" else "subject"
        return (item for item in self.by_kind[kind].values() if item.get(about, {}).get("reference") == reference)


def generate_records(unit: DemoUnit) -> Records:
    """Everything this unit knows; takes about a second for thirty patients."""
    records = Records(unit.id)
    for number in unit.patient_numbers():
        for resource in _resources_of(unit, number):
            records.add(resource)
    return records


def _resources_of(unit: DemoUnit, number: int) -> Iterable[Resource]:
    sex = "F" if number % 2 else "M"
    person = orjson.loads(
        generate_patient(seed=PEOPLE_SEED, sex=sex, age_range=(25, 80), index=number).model_dump_json(
            by_alias=True, exclude_none=True
        )
    )
    age = max(20, unit.visits_on.year - int(person["birthDate"][:4]))
    bundle = generate_bundle(
        profile=_PROFILES[(number + unit.seed) % len(_PROFILES)],
        seed=unit.seed,
        sex=sex,
        age_range=(age, age),
        reference_date=unit.visits_on,
        index=number,
    )
    entries = orjson.loads(to_json(bundle))["entry"]
    references = {entry["fullUrl"]: _reference(entry, number) for entry in entries}
    for entry in entries:
        resource: Resource = _with_references(entry["resource"], references)
        if resource["resourceType"] == "Patient":
            resource = {**person, "identifier": [{"system": _SYSTEM, "value": patient_id(number)}]}
        kind, _, resource_id = references[entry["fullUrl"]].partition("/")
        yield {"resourceType": kind, **resource, "id": resource_id}


def _reference(entry: dict[str, Any], number: int) -> str:
    kind = entry["resource"]["resourceType"]
    own_id = patient_id(number) if kind == "Patient" else entry["fullUrl"].removeprefix("urn:uuid:")
    return f"{kind}/{own_id}"


def _with_references(value: Any, references: dict[str, str]) -> Any:
    """The same JSON value with every `urn:uuid:` reference replaced."""
    if isinstance(value, dict):
        return {key: _with_references(item, references) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_references(item, references) for item in value]
    return references.get(value, value) if isinstance(value, str) else value

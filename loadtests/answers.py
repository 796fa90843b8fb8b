"""Is it the right answer? Each check returns what is wrong with one, or None; a status alone proves little.

What is returned holds no ids, so that the same fault of many requests is counted as one.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any
from urllib.parse import parse_qs

import orjson

Check = Callable[[Any], str | None]


def judge(status: int, body: bytes, expected_status: int, check: Check) -> str | None:
    """Status first, then JSON, then what it says."""
    if status != expected_status:
        return f"status {status}{_problem(body)}"
    try:
        content = orjson.loads(body)
    except ValueError:
        return "not JSON"
    try:
        return check(content)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError):
        return "JSON of another shape"


def _problem(body: bytes) -> str:
    """The problem's type, which the gateway puts into every error it makes."""
    try:
        return f" {orjson.loads(body)['type']}"
    except (ValueError, KeyError, TypeError):
        return ""


def bundle_of(unit: str, patient: str) -> Check:
    """A unit's search result about one patient."""

    def check(bundle: Any) -> str | None:
        if bundle["resourceType"] != "Bundle":
            return "no Bundle"
        if _unit(bundle) != unit:
            return "another unit's answer"
        asked = parse_qs(_target(bundle).partition("?")[2]).get("patient")
        subjects = {entry["resource"]["subject"]["reference"] for entry in bundle["entry"]}
        return None if asked == [patient] and subjects == {f"Patient/{patient}"} else "another patient's answer"

    return check


def record_of(unit: str, patient: str) -> Check:
    """A unit's Patient resource."""

    def check(resource: Any) -> str | None:
        if _unit(resource) != unit:
            return "another unit's answer"
        if _target(resource) != f"/fhir/Patient/{patient}":
            return "an answer to another target"
        return None if (resource["resourceType"], resource["id"]) == ("Patient", patient) else "another resource"

    return check


def _source(resource: Any) -> str:
    text: str = resource["meta"]["source"]
    return text.removeprefix("urn:caregate:unit:")


def _unit(resource: Any) -> str:
    return _source(resource).partition("/")[0]


def _target(resource: Any) -> str:
    _, slash, rest = _source(resource).partition("/")
    return slash + rest


def appointments_of(patient: str) -> Check:
    """The portal's list of a patient's appointments; everybody in it has some."""

    def check(answer: Any) -> str | None:
        if not answer["appointments"]:
            return "no appointments"
        named = {answer["patient"], *(appointment["patient"] for appointment in answer["appointments"])}
        return None if named == {patient} else "another patient's answer"

    return check


def profile_of(patient: str) -> Check:
    """The portal's record of a patient."""

    def check(profile: Any) -> str | None:
        return None if profile["id"] == patient else "another patient's answer"

    return check


def booked_by(patient: str, unit: str, starts_at: str) -> Check:
    """The portal's answer to a booking. Shapes: `starts_at` RFC 3339 in UTC, as it was asked for."""

    def check(appointment: Any) -> str | None:
        if datetime.fromisoformat(appointment["starts_at"]) != datetime.fromisoformat(starts_at):
            return "another booking"
        return None if (appointment["patient"], appointment["unit"]) == (patient, unit) else "another booking"

    return check

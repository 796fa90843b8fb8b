from __future__ import annotations

from typing import Any

import orjson
import pytest

from loadtests import answers
from loadtests.simulated_unit import answer

UNIT, OTHER_UNIT = "load-unit-0001", "load-unit-0010"
TARGET = "/fhir/Observation?patient=pat-0001&category=laboratory"


def unit_body(unit: str, target: str, method: str = "GET") -> bytes:
    return answer(unit, method, target)[1]


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        pytest.param(unit_body(UNIT, TARGET), None, id="right"),
        pytest.param(unit_body(OTHER_UNIT, TARGET), "another unit's answer", id="another unit"),
        pytest.param(unit_body(UNIT, TARGET.replace("0001", "0002")), "another patient's answer", id="another patient"),
        pytest.param(unit_body(UNIT, "/fhir/Observation"), "another patient's answer", id="no patient"),
        pytest.param(unit_body(UNIT, "/fhir/Patient/pat-0001"), "no Bundle", id="another resource"),
        pytest.param(unit_body(UNIT, "/elsewhere"), "no Bundle", id="outcome"),
        pytest.param(b"{}", "JSON of another shape", id="empty object"),
        pytest.param(b"[]", "JSON of another shape", id="array"),
        pytest.param(b"", "not JSON", id="empty"),
        pytest.param(unit_body(UNIT, TARGET)[:-1], "not JSON", id="truncated"),
    ],
)
def test_lab_results(body: bytes, fault: str | None) -> None:
    assert answers.judge(200, body, 200, answers.bundle_of(UNIT, "pat-0001")) == fault


def test_lab_results_with_anothers_entry() -> None:
    bundle: dict[str, Any] = orjson.loads(unit_body(UNIT, TARGET))
    bundle["entry"][1]["resource"]["subject"]["reference"] = "Patient/pat-0002"
    check = answers.bundle_of(UNIT, "pat-0001")
    assert answers.judge(200, orjson.dumps(bundle), 200, check) == "another patient's answer"


@pytest.mark.parametrize(
    ("unit", "target", "fault"),
    [
        pytest.param(UNIT, "/fhir/Patient/pat-0001", None, id="right"),
        pytest.param(OTHER_UNIT, "/fhir/Patient/pat-0001", "another unit's answer", id="another unit"),
        pytest.param(UNIT, "/fhir/Patient/pat-0002", "an answer to another target", id="another patient"),
        pytest.param(UNIT, "/fhir/Person/pat-0001", "an answer to another target", id="another type"),
    ],
)
def test_record(unit: str, target: str, fault: str | None) -> None:
    assert answers.judge(200, unit_body(unit, target), 200, answers.record_of(UNIT, "pat-0001")) == fault


PATIENT = "pat-0001"
BOOKED = {"patient": PATIENT, "unit": "linden-clinic", "starts_at": "2030-01-01T08:15:00+00:00"}


@pytest.mark.parametrize(
    ("check", "content", "fault"),
    [
        pytest.param(
            answers.appointments_of(PATIENT),
            {"patient": PATIENT, "appointments": [{"patient": PATIENT}]},
            None,
            id="her appointments",
        ),
        pytest.param(
            answers.appointments_of(PATIENT),
            {"patient": PATIENT, "appointments": [{"patient": PATIENT}, {"patient": "pat-0002"}]},
            "another patient's answer",
            id="another's among her appointments",
        ),
        pytest.param(
            answers.appointments_of(PATIENT),
            {"patient": "pat-0002", "appointments": [{"patient": PATIENT}]},
            "another patient's answer",
            id="another's list",
        ),
        pytest.param(
            answers.appointments_of(PATIENT),
            {"patient": PATIENT, "appointments": []},
            "no appointments",
            id="no appointments",
        ),
        pytest.param(answers.profile_of(PATIENT), {"id": PATIENT}, None, id="her profile"),
        pytest.param(answers.profile_of(PATIENT), {"id": "pat-0002"}, "another patient's answer", id="another's"),
        pytest.param(answers.profile_of(PATIENT), None, "JSON of another shape", id="no profile"),
    ],
)
def test_portal(check: answers.Check, content: object, fault: str | None) -> None:
    assert answers.judge(200, orjson.dumps(content), 200, check) == fault


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        pytest.param({}, None, id="right"),
        pytest.param({"starts_at": "2030-01-01T09:15:00+01:00"}, None, id="the same moment elsewhere"),
        pytest.param({"starts_at": "2030-01-01T08:30:00+00:00"}, "another booking", id="another moment"),
        pytest.param({"starts_at": "soon"}, "JSON of another shape", id="no moment"),
        pytest.param({"patient": "pat-0002"}, "another booking", id="another patient"),
        pytest.param({"unit": "st-marien-hospital"}, "another booking", id="another unit"),
    ],
)
def test_booking(change: dict[str, str], fault: str | None) -> None:
    check = answers.booked_by(PATIENT, "linden-clinic", "2030-01-01T08:15:00Z")
    assert answers.judge(201, orjson.dumps({**BOOKED, **change}), 201, check) == fault


@pytest.mark.parametrize(
    ("status", "body", "fault"),
    [
        pytest.param(503, b'{"type": "urn:x:unit-not-connected"}', "status 503 urn:x:unit-not-connected", id="problem"),
        pytest.param(502, b"<html>", "status 502", id="not a problem"),
        pytest.param(404, b'{"a": 1}', "status 404", id="JSON without type"),
        pytest.param(201, b"{}", "status 201", id="another success"),
    ],
)
def test_status_comes_first(status: int, body: bytes, fault: str) -> None:
    assert answers.judge(status, body, 200, lambda content: None) == fault


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [
        pytest.param("GET", TARGET, 200, id="search"),
        pytest.param("GET", "/fhir/Patient/p", 200, id="read"),
        pytest.param("POST", "/fhir/Observation", 201, id="create"),
        pytest.param("DELETE", "/fhir/Patient/p", 404, id="another method"),
        pytest.param("GET", "/admin", 404, id="another path"),
    ],
)
def test_simulated_unit_says_who_and_what(method: str, target: str, status: int) -> None:
    response, body = answer(UNIT, method, target)
    assert (response.status, response.length) == (status, len(body))
    assert orjson.loads(body)["meta"]["source"] == f"urn:caregate:unit:{UNIT}{target}"

"""The demo units' FHIR service through falcon.testing."""

from __future__ import annotations

import time

import falcon.testing
import jwt
import pytest

from gateway.agent.context_token import ContextVerifier
from gateway.demo.fhir_data import DEMO_UNITS, generate_records
from gateway.demo.unit_service import create_app

KEY = b"k" * 32
HOSPITAL, CLINIC, POST = "st-marien-hospital", "linden-clinic", "hollow-creek-post"
OBSERVATION = {
    "resourceType": "Observation",
    "status": "final",
    "code": {"text": "Glucose"},
    "subject": {"reference": "Patient/pat-0001"},
}


@pytest.fixture(scope="module")
def records():
    return {unit: generate_records(DEMO_UNITS[unit]) for unit in DEMO_UNITS}


@pytest.fixture
def client(records):
    return falcon.testing.TestClient(create_app(records[CLINIC], ContextVerifier(CLINIC, KEY)))


def context(**claims):
    token = jwt.encode({"aud": CLINIC, "exp": time.time() + 60, "sub": "s", **claims}, KEY, "HS256")
    return {"X-Caregate-Context": token}


# --- data


@pytest.mark.parametrize(("unit", "known"), [(HOSPITAL, True), (CLINIC, True), (POST, False)])
def test_first_patient_has_results_in_two_units(records, unit, known):
    app = falcon.testing.TestClient(create_app(records[unit]))
    bundle = app.simulate_get("/fhir/Observation?patient=pat-0001&category=laboratory").json
    assert (bundle["total"] > 5) is known
    assert app.simulate_get("/fhir/Patient/pat-0001").status_code == (200 if known else 404)


def test_a_person_is_the_same_everywhere_and_the_values_are_not(records):
    persons = [records[unit].read("Patient", "pat-0001") for unit in (HOSPITAL, CLINIC)]
    assert persons[0] == persons[1]
    values = [
        [item.get("valueQuantity") for item in records[unit].of_patient("Observation", "pat-0001")]
        for unit in (HOSPITAL, CLINIC)
    ]
    assert values[0] != values[1]


def test_records_are_the_same_at_every_start(records):
    assert generate_records(DEMO_UNITS[POST]) == records[POST]


def test_thirty_patients_and_every_reference_leads_somewhere(records):
    for unit in records.values():
        assert len(unit.by_kind["Patient"]) == 30
        for resource in unit.by_kind["Observation"].values():
            for name in ("subject", "encounter"):
                kind, _, resource_id = resource[name]["reference"].partition("/")
                assert unit.read(kind, resource_id) is not None


# --- reading


@pytest.mark.parametrize(
    ("path", "status", "kind"),
    [
        ("/fhir/metadata", 200, "CapabilityStatement"),
        ("/fhir/Patient/pat-0001", 200, "Patient"),
        ("/fhir/Patient/pat-0003", 404, "OperationOutcome"),
        ("/fhir/Patient", 200, "Bundle"),
        ("/fhir/Patient?_id=pat-0001", 200, "Bundle"),
        ("/fhir/Condition?patient=pat-0001", 200, "Bundle"),
        ("/fhir/MedicationRequest?patient=Patient/pat-0001", 200, "Bundle"),
        ("/fhir/AllergyIntolerance?patient=pat-0001", 200, "Bundle"),
        ("/fhir/Observation?patient=nobody", 200, "Bundle"),
        ("/fhir/Observation?patient=pat-0001&subject=Patient/pat-0002", 400, "OperationOutcome"),
        ("/fhir/Observation?patient=pat-0001&patient=pat-0002", 400, "OperationOutcome"),
        ("/fhir/Observation?unheard-of=1", 400, "OperationOutcome"),
        ("/fhir/Observation?_count=many", 400, "OperationOutcome"),
        ("/fhir/Nothing", 404, "OperationOutcome"),
        ("/fhir/Nothing/1", 404, "OperationOutcome"),
        ("/nothing", 404, "OperationOutcome"),
    ],
)
def test_answers(client, path, status, kind):
    answer = client.simulate_get(path)
    assert (answer.status_code, answer.json["resourceType"]) == (status, kind)
    assert answer.headers["content-type"].startswith("application/fhir+json")


@pytest.mark.parametrize(
    ("query", "total"),
    [
        ("code=2951-2", 1),
        ("code=http://loinc.org|2951-2", 1),
        ("code=http://other|2951-2", 0),
        ("code=2951-2,2823-3", 2),
        ("category=vital-signs&code=2951-2", 0),
    ],
)
def test_token_search(client, query, total):
    assert client.simulate_get(f"/fhir/Observation?patient=pat-0001&{query}").json["total"] == total


def test_pages(client):
    seen, url = [], "/fhir/Observation?patient=pat-0001&_count=10"
    while url:
        bundle = client.simulate_get(url).json
        seen += [entry["resource"]["id"] for entry in bundle["entry"]]
        following = [link["url"] for link in bundle["link"] if link["relation"] == "next"]
        url = following[0].partition(".example")[2] if following else ""
    assert len(seen) == len(set(seen)) == bundle["total"] > 20


# --- writing


def test_create_and_read_back(client):
    made = client.simulate_post("/fhir/Observation", json=OBSERVATION)
    assert made.status_code == 201
    assert client.simulate_get(made.headers["location"]).json == {**OBSERVATION, "id": made.json["id"]}


@pytest.mark.parametrize(
    ("body", "status"),
    [
        pytest.param("{", 400, id="not json"),
        pytest.param("[]", 400, id="not an object"),
        pytest.param('{"resourceType": "Patient"}', 400, id="another type"),
        pytest.param({"status": "done"}, 422, id="status"),
        pytest.param({"code": {}}, 422, id="code"),
        pytest.param({"subject": {"reference": "Patient/nobody"}}, 422, id="stranger"),
        pytest.param({"subject": "pat-0001"}, 422, id="subject"),
        pytest.param({"subject": None}, 422, id="no subject"),
    ],
)
def test_refused_observations(client, body, status):
    text = body if isinstance(body, str) else falcon.media.JSONHandler().serialize({**OBSERVATION, **body}, "").decode()
    answer = client.simulate_post("/fhir/Observation", body=text, content_type="application/fhir+json")
    assert (answer.status_code, answer.json["resourceType"]) == (status, "OperationOutcome")


def test_other_methods_and_types(client):
    assert client.simulate_post("/fhir/Patient", json={}).status_code == 405
    assert client.simulate_delete("/fhir/Observation").status_code == 405
    assert client.simulate_post("/fhir/Observation", body="x", content_type="text/plain").status_code == 415


# --- the gateway's context


@pytest.mark.parametrize(
    ("path", "claims", "status"),
    [
        pytest.param("/fhir/Patient/pat-0001", {"patient": "pat-0001"}, 200, id="own record"),
        pytest.param("/fhir/Patient/pat-0002", {"patient": "pat-0001"}, 403, id="another's record"),
        pytest.param("/fhir/Patient/pat-0003", {"patient": "pat-0001"}, 403, id="unknown record"),
        pytest.param("/fhir/Patient/pat-0002", {}, 200, id="no patient named"),
        pytest.param("/fhir/Patient/pat-0002", {"patient": None}, 200, id="staff"),
        pytest.param("/fhir/Observation?patient=pat-0001", {"patient": "pat-0001"}, 200, id="own results"),
        pytest.param("/fhir/Observation?patient=pat-0002", {"patient": "pat-0001"}, 403, id="another's results"),
        pytest.param("/fhir/Observation", {"patient": "pat-0001"}, 403, id="everybody's results"),
        pytest.param("/fhir/Patient", {"patient": "pat-0001"}, 403, id="everybody"),
        pytest.param("/fhir/Patient/pat-0001", {"aud": HOSPITAL}, 403, id="for another unit"),
        pytest.param("/fhir/Patient/pat-0001", {"exp": 1}, 403, id="expired"),
    ],
)
def test_context(client, path, claims, status):
    assert client.simulate_get(path, headers=context(**claims)).status_code == status


def test_single_resource_of_another_patient_is_refused(client, records):
    other = next(records[CLINIC].of_patient("Observation", "pat-0002"))["id"]
    assert client.simulate_get(f"/fhir/Observation/{other}", headers=context(patient="pat-0001")).status_code == 403
    assert client.simulate_get(f"/fhir/Observation/{other}").status_code == 200


def test_written_for_another_patient_is_refused(client):
    answer = client.simulate_post("/fhir/Observation", json=OBSERVATION, headers=context(patient="pat-0002"))
    assert answer.status_code == 403


# --- for tests


def test_probes(client):
    assert client.simulate_get("/health").json == {"status": "ok", "unit": CLINIC}
    assert client.simulate_get("/slow?ms=1").json == {"waited_ms": 1}
    assert len(client.simulate_get("/bytes?n=100000").content) == 100_000
    echoed = client.simulate_post("/echo", body=b"abc", headers={"X-One": "1"}).json
    assert (echoed["length"], "x-one" in echoed["fields"]) == (3, True)

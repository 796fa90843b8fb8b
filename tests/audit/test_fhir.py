"""Events as FHIR: valid R4, as IHE's patterns want them, and byte for byte what the golden files say.

`python -m pytest tests/audit/test_fhir.py` compares; with CAREGATE_TEST_GOLDEN=write in the environment it writes them.
"""

import copy
import itertools
import json
import os
from pathlib import Path

import pytest
from fhir.resources.R4B.auditevent import AuditEvent as FhirAuditEvent
from fhir.resources.R4B.bundle import Bundle
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.audit.event import AuditEvent
from gateway.audit.fhir import audit_event, bundle
from gateway.audit.kinds import KINDS
from tests.audit.balp import PROFILE, faults

GOLDEN = Path(__file__).parent / "golden"
BASE = {
    "v": 1, "kind": "access", "phase": "outcome", "at_ms": 1_772_323_200_123, "duration_us": 8_412,
    "request_id": "0d1ad0d4-6d5c-4ab1-9d0b-6b1f0b8f6f0e", "outcome": "allowed", "rule": "allowed", "status": 200,
    "method": "GET", "trace": "4bf92f3577b34da6a3ce929d0e0e4736", "delivery": "dispatched",
    "unit": "st-marien-hospital",
    "agent": "caregate/0.1.0", "patient": "pat-0001", "resource_id": "obs-7", "client_address": "192.0.2.7",
    "route": "unit-observation", "action": "R", "resource_type": "Observation", "phi": True, "purpose": "TREAT",
    "issuer": "https://id.caregate.test/staff", "subject": "user-weber", "role": "practitioner",
    "audience": "staff-portal",
    "organisation": "org-1", "client": "ward-app", "token_id": "jti-1", "node": "gw-1", "config_version": 7,
}  # fmt: skip
NOBODY = dict.fromkeys(("issuer", "subject", "role", "audience", "organisation", "client", "token_id"), "")
SYSTEM = {
    **NOBODY, "request_id": "", "method": "", "trace": "", "delivery": "", "patient": "", "resource_id": "",
    "route": "",
    "client_address": "", "resource_type": "", "phi": False, "purpose": "", "rule": "", "status": 0, "duration_us": 0,
}  # fmt: skip
CASES = {
    "patient-read": {},
    "read": {"patient": "", "resource_type": "", "resource_id": "", "unit": "", "agent": "", "organisation": ""},
    "patient-create": {"action": "C", "method": "POST", "status": 201},
    "update": {"action": "U", "method": "PUT", "patient": ""},
    "patient-patch": {"action": "U", "method": "PATCH", "purpose": ""},
    "patient-delete": {"action": "D", "method": "DELETE", "status": 204},
    "delete-by-client": {"action": "D", "method": "DELETE", "patient": "", "subject": ""},
    "pseudonym": {"patient": "p." + "5" * 32},
    "refused": {"outcome": "refused", "rule": "binding:patient", "status": 403},
    "token-refused": {**NOBODY, "outcome": "refused", "rule": "token:expired", "status": 401},
    "failed": {"outcome": "failed", "rule": "unit-not-connected", "status": 503, "delivery": "not_dispatched"},
    "intent": {"phase": "intent", "outcome": "pending", "status": 0},
    "cut": {**SYSTEM, "phase": "completion", "outcome": "cut", "request_id": "r-1", "action": ""},
    "unit-up": {**SYSTEM, "kind": "unit.up", "action": "E", "detail": {"conn": "c-1", "kid": "st-marien-hospital"}},
    "config": {
        **SYSTEM, "kind": "config", "action": "U", "unit": "", "agent": "",
        "detail": {"version": "8", "digest": "b" * 64, "before": "a" * 64, "author": "ops", "reason": "limits"},
    },
    "login-refused": {**SYSTEM, "kind": "login", "action": "E", "outcome": "refused", "rule": "otp",
                      "subject": "user-weber", "client_address": "2001:db8::7", "detail": {"method": "totp"}},
    "break-glass": {"kind": "break-glass.started", "action": "E",
                    "detail": {"case": "bg-1", "reason": "unconscious, ward 3"}},
    "audit-searched": {"kind": "audit.searched", "unit": "", "agent": "", "resource_type": "", "resource_id": "",
                       "detail": {"query": "date=ge2026-03-01&patient=*", "found": "2"}},
}  # fmt: skip


def resource(**changes):
    return audit_event(AuditEvent(**{**BASE, **changes}), "a" * 16, 42)


@pytest.mark.parametrize("name", CASES)
def test_as_the_golden_file_says(name):
    found = resource(**CASES[name])
    path = GOLDEN / f"{name}.json"
    if os.environ.get("CAREGATE_TEST_GOLDEN") == "write":
        path.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    assert found == json.loads(path.read_text())


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.json")), ids=lambda path: path.stem)
def test_golden_files_are_valid(path):
    document = json.loads(path.read_text())
    read = FhirAuditEvent.model_validate_json(json.dumps(document))
    assert json.loads(read.model_dump_json()).keys() == document.keys()
    assert faults(document) == []


def test_who_claims_a_profile():
    claims = {name: resource(**case).get("meta", {}).get("profile", [""])[0].removeprefix(PROFILE)
              for name, case in CASES.items()}  # fmt: skip
    assert {name: profile for name, profile in claims.items() if profile} == {
        "patient-read": "PatientRead", "read": "Read", "patient-create": "PatientCreate", "update": "Update",
        "patient-patch": "PatientUpdate", "patient-delete": "PatientDelete", "delete-by-client": "Delete",
        "pseudonym": "PatientRead",
    }  # fmt: skip


BROKEN = {
    "no outcome": lambda r: r.pop("outcome"),
    "another action": lambda r: r.update(action="C"),
    "no data": lambda r: r["entity"].pop(1),
    "no patient": lambda r: r["entity"].pop(0),
    "two patients": lambda r: r["entity"].append(r["entity"][0]),
    "no server": lambda r: r["agent"].pop(1),
    "client without network": lambda r: r["agent"][0].pop("network"),
    "user with network": lambda r: r["agent"][2].update(network={"address": "x"}),
    "user is no requestor": lambda r: r["agent"][2].update(requestor=False),
    "no source": lambda r: r.pop("source"),
}


@pytest.mark.parametrize("breaking", BROKEN.values(), ids=BROKEN)
def test_the_check_of_the_profile_sees_faults(breaking):
    found = copy.deepcopy(resource())
    assert faults(found) == []
    breaking(found)
    assert faults(found)


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_whatever_an_event_holds_is_a_valid_resource(data):
    texts = [name for name, value in BASE.items() if isinstance(value, str) and name not in ("kind", "phase", "action")]
    changes = {name: data.draw(TEXT) for name in data.draw(st.sets(st.sampled_from(texts), max_size=6))}
    changes["kind"] = data.draw(st.sampled_from(["access", *KINDS, "unheard.of"]))
    changes["action"] = data.draw(st.sampled_from(["", *"CRUDE"]))
    changes["detail"] = data.draw(st.dictionaries(st.sampled_from(["a", "b-c"]), TEXT, max_size=2))
    found = resource(**changes)
    FhirAuditEvent.model_validate_json(json.dumps(found))
    assert faults(found) == []
    assert sum(agent["requestor"] for agent in found["agent"]) == 1


@pytest.mark.parametrize("text", ["\x0c", "a\x1fb\x85c", "\u2028", "\x01", "a\tb\r\nc"])
def test_text_that_fhir_cannot_hold(text):
    found = resource(request_id=text, agent=text, rule=text, detail={"a": text})
    FhirAuditEvent.model_validate_json(json.dumps(found))
    assert faults(found) == []
    assert ("\ufffd" in json.dumps(found, ensure_ascii=False)) == ("\n" not in text)


def test_pages_are_valid_bundles():
    for count in (0, 1, 3):
        resources = [resource(request_id=f"r-{n}") for n in range(count)]
        links = dict(
            itertools.islice({"self": "/audit/v1/AuditEvent?x", "next": "/audit/v1/AuditEvent?y"}.items(), count)
        )
        page = bundle(resources, links, 1_772_323_200_123)
        assert len(Bundle.model_validate_json(json.dumps(page)).entry or []) == count

"""The trail over HTTP on a real platform: who may see what, and that looking is seen."""

from __future__ import annotations

import time
import uuid
from urllib.parse import quote

import jwt
import psycopg
import pytest
from fhir.resources.R4B.bundle import Bundle

from gateway.demo import story

pytestmark = pytest.mark.integration

SPAN = "date=ge2020-01-01&date=lt2100-01-01"
SEARCH = "/audit/v1/AuditEvent?" + SPAN
ISSUERS = {"operations": "https://id.caregate.test/operations", "staff-portal": "https://id.caregate.test/staff"}
ALGORITHMS = {"auditor": ("EdDSA", "operations"), "hcu_admin": ("ES384", "staff-portal"),
              "practitioner": ("ES256", "staff-portal"), "platform_admin": ("EdDSA", "operations")}  # fmt: skip


@pytest.fixture(scope="module")
def token(platform):
    def token(role, **claims):
        algorithm, audience = ALGORITHMS[role]
        name = role.replace("_", "-")
        key = (platform.directory / "keys" / f"{role}.key").read_bytes()
        now = int(time.time())
        payload = {
            "iss": ISSUERS[audience], "aud": audience, "sub": f"user-{name}", "role": role, "iat": now,
            "exp": now + 300,
            "jti": str(uuid.uuid4()), **claims,
        }  # fmt: skip
        return jwt.encode(payload, key, algorithm, {"kid": f"{name}-1"})

    return token


@pytest.fixture(scope="module")
def accesses(platform, request):
    """Some of each: own record, another's (refused), staff at his unit and at another (refused)."""
    from tests.integration.conftest import Client, eventually

    call = Client(platform)
    relayed = f"/units/v1/{story.HOSPITAL}/patients/{story.OWN}/lab-results"
    eventually(lambda: call("GET", relayed, "PATIENT").status == 200)
    asked = {}
    shared = {"title": "Letter", "content": "text"}
    for name, method, path, who, body in (
        ("own", "GET", f"/portal/v1/patients/{story.OWN}/appointments", "PATIENT", None),
        ("unit", "GET", f"/units/v1/{story.HOSPITAL}/patients/{story.OWN}/lab-results", "PATIENT", None),
        ("other", "GET", f"/portal/v1/patients/{story.OTHER}/appointments", "PATIENT", None),
        ("staff", "POST", f"/staff/v1/units/{story.HOSPITAL}/patients/{story.OWN}/summaries", "PRACTITIONER", shared),
        ("foreign", "POST", f"/staff/v1/units/{story.CLINIC}/patients/{story.OWN}/summaries", "PRACTITIONER", shared),
    ):
        asked[name] = call(method, path, who, body).headers["X-Request-Id"]
    return asked


@pytest.fixture
def search(call, token, wait, accesses):
    """Ask until the events of `accesses` have arrived."""

    def ids(document):
        return [
            entity["what"]["identifier"]["value"]
            for entry in document.get("entry", [])
            for entity in entry["resource"]["entity"]
            if entity["type"]["code"] == "XrequestId"
        ]

    def search(query, who=None, *, has=()):
        def ask():
            answer = call("GET", SEARCH + query, who or token("auditor"))
            assert answer.status == 200, answer.body
            return answer.json if {accesses[name] for name in has} <= set(ids(answer.json)) else None

        document = wait(ask, 15)
        Bundle.model_validate(document)
        return document, ids(document)

    return search


def test_an_auditor_sees_what_he_asks_for(search, accesses):
    names = accesses
    _, found = search(f"&patient={story.OWN}&_count=200&kind=access", has=["own", "unit", "staff", "foreign"])
    assert names["other"] not in found
    for query, has, lacks in (
        (f"&unit={story.HOSPITAL}&patient={story.OWN}", ["unit", "staff"], ["own", "foreign"]),
        ("&user=user-weber&outcome=4", ["foreign"], ["staff"]),
        ("&user=user-anna&outcome=refused", ["other"], ["own"]),
        ("&role=practitioner&action=C", ["staff", "foreign"], ["own"]),
        (f"&request={accesses['staff']}", ["staff"], ["own", "unit", "foreign", "other"]),
        ("&address=127.0.0.1&route=appointments", ["own", "other"], ["staff"]),
    ):
        _, found = search(query + "&_count=200", has=has)
        assert not {names[name] for name in lacks} & set(found), query


def test_pages(search, call, token, accesses):
    first, _ = search("&_count=2&user=user-anna,user-weber", has=[])
    seen, links = [], {link["relation"]: link["url"] for link in first["link"]}
    assert len(first["entry"]) == 2
    while links.get("next") and len(seen) < 8:
        answer = call("GET", links["next"], token("auditor"))
        assert answer.status == 200
        seen += [entry["resource"]["id"] for entry in answer.json["entry"]]
        links = {link["relation"]: link["url"] for link in answer.json["link"]}
    assert len(seen) == len(set(seen)) > 2
    assert not set(seen) & {entry["resource"]["id"] for entry in first["entry"]}
    one = call("GET", f"/audit/v1/AuditEvent/{seen[0]}", token("auditor"))
    assert (one.status, one.json["id"], one.headers["Content-Type"]) == (200, seen[0], "application/fhir+json")
    assert call("GET", "/audit/v1/AuditEvent/none-1", token("auditor")).status == 404


def test_an_admin_sees_his_units_only(search, call, token, accesses):
    admin = token("hcu_admin", units=[story.HOSPITAL])
    document, found = search("&_count=200", admin, has=["unit", "staff"])
    assert {accesses["own"], accesses["other"], accesses["foreign"]} & set(found) == set()
    agents = [agent for entry in document["entry"] for agent in entry["resource"]["agent"]]
    units = {a["who"]["identifier"]["value"] for a in agents if a["type"]["coding"][0]["code"] == "unit"}
    assert units == {story.HOSPITAL}
    assert call("GET", SEARCH + f"&unit={story.CLINIC}", admin).json["type"] == "urn:caregate:problem:binding-refused"
    foreign, _ = search(f"&unit={story.CLINIC}&_count=1")
    path = f"/audit/v1/AuditEvent/{foreign['entry'][0]['resource']['id']}"
    assert call("GET", path, admin).status == 404


REFUSED = {
    "no token": (SEARCH, None, 401, "token-missing"),
    "no permission": (SEARCH, ("platform_admin", {}), 403, "permission-refused"),
    "a practitioner": (SEARCH, ("practitioner", {"units": [story.HOSPITAL]}), 403, "permission-refused"),
    "a patient": (SEARCH, "PATIENT", 403, "permission-refused"),
    "an admin of nothing": (SEARCH, ("hcu_admin", {}), 403, "binding-refused"),
    "an admin of what is no list": (SEARCH, ("hcu_admin", {"units": []}), 403, "binding-refused"),
    "no date": ("/audit/v1/AuditEvent?patient=x", ("auditor", {}), 400, "query-refused"),
    "unknown parameter": (SEARCH + "&name=x", ("auditor", {}), 400, "query-refused"),
    "own log of no patient": ("/me/access-log", ("auditor", {"patient": story.OWN}), 404, "not-found"),
    "own log without token": ("/me/access-log", None, 401, "token-missing"),
    "own log of another": (f"/me/access-log?patient={story.OTHER}", "PATIENT", 400, "query-refused"),
}


@pytest.mark.parametrize(("path", "who", "status", "code"), REFUSED.values(), ids=REFUSED)
def test_refused(call, token, path, who, status, code):
    bearer = token(who[0], **who[1]) if isinstance(who, tuple) else who
    answer = call("GET", path, bearer)
    assert (answer.status, answer.json["type"]) == (status, f"urn:caregate:problem:{code}")


def test_a_patient_sees_who_looked_at_her_record(call, wait, accesses):
    def log():
        answer = call("GET", "/me/access-log?_count=200", "PATIENT")
        assert answer.status == 200, answer.body
        found = {entry["request_id"]: entry for entry in answer.json["accesses"]}
        return found if {accesses[name] for name in ("own", "unit", "staff", "foreign")} <= found.keys() else None

    found = wait(log, 15)
    assert accesses["other"] not in found, "another patient's record"
    staff = found[accesses["staff"]]
    assert (staff["unit"], staff["role"], staff["outcome"], staff["own"]) == (
        story.HOSPITAL, "practitioner", "allowed", False,
    )  # fmt: skip
    assert found[accesses["foreign"]]["outcome"] == "refused"
    assert found[accesses["own"]]["own"] is True
    assert "user-weber" not in str(found), "roles are told, not people"
    page = call("GET", "/me/access-log?_count=1", "PATIENT").json
    following = call("GET", page["next"], "PATIENT").json
    assert following["accesses"][0] != page["accesses"][0]


def test_a_decoy_in_front_hides_nobody(call, wait):
    """Of several patients of a search each finds it in her log, and more than are recorded are not answered."""
    records = f"/units/v1/{story.HOSPITAL}/fhir/Observation?patient="
    looked = call("GET", f"{records}decoy-1,{story.OWN}", "PRACTITIONER")
    assert looked.status == 200

    def seen():
        listed = call("GET", "/me/access-log?_count=200", "PATIENT").json["accesses"]
        return next((one for one in listed if one.get("request_id") == looked.headers["X-Request-Id"]), None)

    shown = wait(seen, 15)
    assert (shown["kind"], shown["outcome"], shown["own"], shown["unit"], shown["route"]) == (
        "access.also", "allowed", False, story.HOSPITAL, "unit-fhir-read",
    )  # fmt: skip
    many = ",".join(f"d{number}" for number in range(101))
    assert call("GET", records + many, "PRACTITIONER").status == 200
    answer = call("GET", f"{records}{many},{story.OWN}", "PRACTITIONER")
    assert (answer.status, answer.json["type"]) == (400, "urn:caregate:problem:query-refused")


def test_looking_is_an_event_before_it_is_answered(platform, call, token, wait):
    answer = call("GET", SEARCH + f"&patient={story.OWN}&_count=3", token("auditor", org="inspectorate"))
    own = call("GET", "/me/access-log", "PATIENT")

    def told():
        with psycopg.connect(platform._postgres.admin_dsn) as connection:
            query = (
                "SELECT kind, subject, patient, organisation, canonical FROM audit.event "
                "WHERE request_id = ANY(%s) AND kind <> 'access' ORDER BY kind"
            )
            ids = [answer.headers["X-Request-Id"], own.headers["X-Request-Id"]]
            rows = connection.execute(query, (ids,)).fetchall()
            return rows if len(rows) == 2 else None

    looked, searched = wait(told, 15)
    assert looked[:2] == ("audit.read-own", "user-anna")
    assert (searched[0], searched[1], searched[3]) == ("audit.searched", "user-auditor", "inspectorate")
    assert looked[2][:2] == searched[2][:2] == "p.", "a pseudonym"
    assert story.OWN not in looked[4] + searched[4]
    assert quote("patient=*", safe="=*") in searched[4].replace("%2A", "*")


def test_nothing_is_told_while_the_database_is_away(platform, call, token):
    platform._postgres.stop()
    try:
        answer = call("GET", SEARCH, token("auditor"))
        assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
    finally:
        platform._postgres.start()

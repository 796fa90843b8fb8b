"""What the trail's outcome says of a create, and of a body that a rule has read, through the gateway."""

from __future__ import annotations

import json

import pytest

from gateway.audit.event import Accesses, decode
from gateway.config import check_consent
from gateway.routing.kinds import endpoint

FHIR = "application/fhir+json"
P1, P2, P3 = ({"reference": f"Patient/p-{n}"} for n in (1, 2, 3))
MADE = {"resourceType": "Observation", "id": "o-7", "subject": P1}
OBSERVATION = "fhir/Observation"


class Server:
    """Answers as it is told."""

    def __init__(self):
        self.status, self.fields, self.body, self.said = "201 Created", {}, b"", None

    def on_request(self, req, resp):
        resp.status, resp.data = self.status, self.body
        resp.content_type = FHIR
        resp.context.said = self.said
        for name, value in self.fields.items():
            resp.set_header(name, value)


@pytest.fixture
def server():
    return Server()


@pytest.fixture
def events(gateway_of, base, ways, server, monkeypatch):
    """`events(method, path, body)` -> what the trail says of the request."""
    monkeypatch.setattr(check_consent, "hook_names", lambda: frozenset({"asked"}))

    def route(path, **more):
        return {"path": path, "methods": ["POST", "PUT"], "audiences": ["staff"], "roles": ["nurse"],
                "resource": "ping", **more}  # fmt: skip

    base["limits"]["address"] = {"per": "address", "rate": 1000, "burst": 1000}
    base["controllers"] |= {
        "fhir": route("/v1/fhir/{rest:path}", audit={"fhir": "rest"}),
        "observations": route("/v1/observations", audit={"resource": "Observation"}),
        "observation": route("/v1/observations/{id}", audit={"resource": "Observation", "id": "id"}),
        "notes": route("/v1/notes", audit={"resource": "Note"}),
        "bound": route("/v1/bound", audit={"resource": "Observation"},
                       bind=[{"param": "body:/subject/reference", "claim": "patients", "reference": "Patient"}]),
        "asked": route("/v1/asked/{rest:path}", audit={"fhir": "rest"},
                       consent={"hook": "asked", "patient": "body:/entry/*/for"}),
    }  # fmt: skip
    made = gateway_of(base)
    monkeypatch.setattr(made.public._router._resources, "of", lambda route: endpoint(server))
    made._consents._hooks = {"asked": lambda question, deadline_ns: True}
    found = []
    monkeypatch.setattr(
        made.audit, "enqueue_finished", lambda ctx, s: found.append(decode(Accesses("n").encode(ctx, s, 1, 1)))
    )
    made.clients, made.events = ways(made), found
    return made


@pytest.fixture(params="ml", ids=["middleware", "lane"])
def told(request, events, token):
    def told(method, path, body=None, claims=None):
        fields = {"Authorization": f"Bearer {token('nurse', **(claims or {}))}", "Content-Type": FHIR}
        sent = None if body is None else json.dumps(body)
        events.clients[request.param].simulate_request(method, path, headers=fields, body=sent)
        event = events.events.pop()
        assert not events.events
        return event.resource_type, event.resource_id, event.patient

    return told


@pytest.mark.parametrize(
    ("path", "fields", "body", "expected"),
    [
        pytest.param(OBSERVATION, {"Location": "https://u/fhir/Observation/o-7/_history/1"}, None,
                     ("Observation", "o-7", ""), id="Location"),
        pytest.param(OBSERVATION, {"Location": "Observation/o-7"}, MADE, ("Observation", "o-7", "p-1"), id="both"),
        pytest.param(OBSERVATION, {}, MADE, ("Observation", "o-7", "p-1"), id="body"),
        pytest.param("fhir/Patient", {"Location": "/fhir/Patient/p-9"}, None, ("Patient", "p-9", "p-9"), id="patient"),
        pytest.param("observations", {"Location": "/x/Observation/o-8"}, MADE, ("Observation", "o-8", "p-1"),
                     id="typed"),
        pytest.param("observations", {}, {"id": "7"}, ("Observation", "7", ""), id="typed, no resource"),
        pytest.param(OBSERVATION, {"Location": "/fhir/Patient/p-9"}, None, ("Observation", "", ""), id="another type"),
        pytest.param(OBSERVATION, {}, {"resourceType": "OperationOutcome", "id": "x"}, ("Observation", "", ""),
                     id="no resource of the type"),
        pytest.param(OBSERVATION, {"Location": "/fhir/Observation/a%20b"}, {"id": 7, "subject": [1]},
                     ("Observation", "", ""), id="no ids"),
        pytest.param(OBSERVATION, {"Content-Encoding": "gzip"}, MADE, ("Observation", "", ""), id="coded"),
        pytest.param(OBSERVATION, {}, [[]], ("Observation", "", ""), id="a list"),
        pytest.param("fhir/Observation/_search", {}, MADE, ("Observation", "", ""), id="a search"),
        pytest.param("fhir/Observation/1/$x", {}, MADE, ("Observation", "1", ""), id="an operation"),
        pytest.param("fhir/", {}, {"resourceType": "Bundle", "id": "b"}, ("", "", ""), id="a batch"),
        pytest.param("observations/1", {}, MADE, ("Observation", "1", ""), id="a record named"),
        pytest.param("notes", {}, {"id": "7"}, ("Note", "", ""), id="no type of FHIR"),
    ],
)  # fmt: skip
def test_what_the_answer_to_a_create_names(told, server, path, fields, body, expected):
    server.fields, server.body = fields, b"" if body is None else json.dumps(body).encode()
    assert told("POST", f"/v1/{path}") == expected


def test_the_record_is_named_as_whoever_made_it_says(told, server):
    server.said, server.fields = "/fhir/Observation/o-7", {"Location": "/v1/observations/o-7"}
    assert told("POST", "/v1/observations") == ("Observation", "o-7", "")


@pytest.mark.parametrize("body", [b"", b"{", b'"\\ud800"', b"[" * 60_000, b" " * 70_000], ids=len)
def test_an_answer_that_is_no_json_names_nothing(told, server, body):
    server.body = body
    assert told("POST", "/v1/fhir/Observation") == ("Observation", "", "")


@pytest.mark.parametrize("status", ["202 Accepted", "400 Bad Request", "404 Not Found"])
def test_nothing_was_made(told, server, status):
    server.status, server.fields = status, {"Location": "Observation/o-7"}
    assert told("POST", "/v1/fhir/Observation") == ("Observation", "", "")


@pytest.mark.parametrize(
    ("method", "path", "body", "expected"),
    [
        pytest.param("POST", "bound", {"subject": P1}, ("Observation", "", "p-1"), id="bound"),
        pytest.param("PUT", "bound", {"subject": P1}, ("Observation", "", "p-1"), id="put"),
        pytest.param("POST", "bound", {"subject": P2}, ("Observation", "", "p-2"), id="refused"),
        pytest.param("POST", "bound", {"patient": P3}, ("Observation", "", "p-3"), id="absent"),
        pytest.param("POST", "asked/Bundle", {"entry": [{"for": "Patient/p-4"}]}, ("Bundle", "", "p-4"), id="consent"),
        pytest.param("PUT", "asked/Observation/1", {"entry": [{"for": "Patient/p-4"}]}, ("Observation", "1", "p-4"),
                     id="consent of a record"),
    ],
)  # fmt: skip
def test_whom_a_body_names_that_a_rule_reads(told, server, method, path, body, expected):
    server.status = "200 OK"
    assert told(method, f"/v1/{path}", body, claims={"patients": ["p-1"]}) == expected

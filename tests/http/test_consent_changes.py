"""A request that changes a patient's consent, or tries to, leaves an event that says so beside its access."""

from __future__ import annotations

import hashlib
import json

import pytest

from gateway.routing.kinds import endpoint

ANSWER = json.dumps({"resourceType": "Consent", "id": "c-7", "patient": {"reference": "Patient/p-1"}}).encode()


class Server:
    """Has done what it was asked."""

    def on_request(self, req, resp):
        resp.status = "201 Created" if req.method == "POST" else "200 OK"
        resp.content_type, resp.data = "application/fhir+json", ANSWER


@pytest.fixture(params="ml", ids=["middleware", "lane"])
def told(request, gateway_of, base, ways, token, monkeypatch):
    """`told(method, path)` -> the events beside the access, as (kind, outcome, members)."""

    def route(path, **more):
        return {"path": path, "methods": ["GET", "POST", "PUT", "PATCH", "DELETE"], "audiences": ["staff"],
                "roles": ["nurse"], "resource": "ping", **more}  # fmt: skip

    base["limits"]["address"] = {"per": "address", "rate": 1000, "burst": 1000}
    base["controllers"] |= {
        "fhir": route("/v1/fhir/{rest:path}", audit={"fhir": "rest"}),
        "consents": route("/v1/consents", audit={"resource": "Consent"}),
        "consent": route("/v1/patients/{patient}/consents/{id}", audit={"resource": "Consent", "id": "id"}),
        "shut": route("/v1/shut/{id}", audit={"resource": "Consent", "id": "id"}, roles=["ward_admin"]),
        "notes": route("/v1/notes", audit={"resource": "Observation"}),
    }
    made, found = gateway_of(base), []
    monkeypatch.setattr(made.public._router._resources, "of", lambda route: endpoint(Server()))
    monkeypatch.setattr(
        type(made.audit), "note", lambda self, kind, outcome, *, ctx, **more: found.append((kind, outcome, more))
    )
    client = ways(made)[request.param]

    def told(method, path):
        client.simulate_request(method, path, headers={"Authorization": f"Bearer {token('nurse')}"}, body="{}")
        return found

    return told


@pytest.mark.parametrize(
    ("method", "path", "kind", "consent", "patient"),
    [
        ("POST", "/v1/fhir/Consent", "consent.given", "c-7", "p-1"),
        ("PUT", "/v1/fhir/Consent/c-3", "consent.changed", "c-3", "p-1"),
        ("PATCH", "/v1/fhir/Consent/c-3", "consent.changed", "c-3", "p-1"),
        ("DELETE", "/v1/fhir/Consent/c-3", "consent.withdrawn", "c-3", "p-1"),
        ("POST", "/v1/consents", "consent.given", "c-7", "p-1"),
        ("PUT", "/v1/patients/p-9/consents/c-4", "consent.changed", "c-4", "p-9"),
        ("DELETE", "/v1/patients/p-9/consents/c-4", "consent.withdrawn", "c-4", "p-9"),
    ],
)
def test_a_change(told, method, path, kind, consent, patient):
    [(found, outcome, more)] = told(method, path)
    assert (found, outcome, more["consent"], more["resource_id"], more["patient"]) == (
        kind, "allowed", consent, consent, patient,
    )  # fmt: skip
    assert (more["resource_type"], more["digest"]) == ("Consent", hashlib.sha256(ANSWER).hexdigest())


def test_an_attempt(told):
    [(kind, outcome, more)] = told("DELETE", "/v1/shut/c-4")
    assert (kind, outcome, more["rule"], more["consent"], more["digest"]) == (
        "consent.withdrawn", "refused", "role", "c-4", "",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/fhir/Consent/c-3"), ("POST", "/v1/fhir/Consent/_search"), ("POST", "/v1/fhir/Consent/$check"),
        ("POST", "/v1/notes"), ("DELETE", "/v1/fhir/Observation/o-1"), ("GET", "/v1/consents"),
    ],
)  # fmt: skip
def test_what_changes_none(told, method, path):
    assert told(method, path) == []

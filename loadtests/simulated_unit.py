"""What a simulated unit answers: a little FHIR that says who answers and what was asked, so that a caller can tell."""

from __future__ import annotations

from urllib.parse import parse_qs, urlsplit

import orjson

from gateway.relay.frames import Response

FHIR_JSON = "application/fhir+json; charset=utf-8"


def answer(unit: str, method: str, target: str) -> tuple[Response, bytes]:
    """The answer to one request and its body. Units: times 0 ms, since nothing is asked elsewhere."""
    path, query = urlsplit(target).path, parse_qs(urlsplit(target).query)
    kind, _, identity = path.removeprefix("/fhir/").partition("/")
    if not path.startswith("/fhir/") or method not in ("GET", "POST"):
        return _encode(404, _outcome(unit, target))
    if method == "POST":
        return _encode(201, {"resourceType": kind, "meta": source(unit, target)})
    if identity:
        return _encode(200, {"resourceType": kind, "id": identity, "meta": source(unit, target)})
    return _encode(200, _bundle(unit, target, kind, query.get("patient", [""])[0]))


def source(unit: str, target: str) -> dict[str, str]:
    """FHIR's `meta.source` names where a resource comes from."""
    return {"source": f"urn:caregate:unit:{unit}{target}"}


def _bundle(unit: str, target: str, kind: str, patient: str) -> dict[str, object]:
    subject = {"reference": f"Patient/{patient}"}
    resources = [{"resourceType": kind, "id": f"{unit}-{n}", "status": "final", "subject": subject} for n in range(3)]
    return {
        "resourceType": "Bundle",
        "type": "searchset",
        "total": len(resources),
        "meta": source(unit, target),
        "entry": [{"resource": resource} for resource in resources],
    }


def _outcome(unit: str, target: str) -> dict[str, object]:
    return {
        "resourceType": "OperationOutcome",
        "meta": source(unit, target),
        "issue": [{"severity": "error", "code": "not-found"}],
    }


def _encode(status: int, resource: dict[str, object]) -> tuple[Response, bytes]:
    body = orjson.dumps(resource)
    fields = [("content-type", FHIR_JSON), ("cache-control", "no-store")]
    return Response(status, fields, len(body)), body

"""A demo unit's own HTTP service: FHIR R4 over the records of one hospital, clinic or post.

It stands for the software that a unit already has, and listens on loopback for the unit's agent alone. That is why
`gevent.pywsgi` is good enough here, with no second server to configure and one process a unit; it must not face a
network (its documentation says so, and its parser accepts what smugglers send).

Run: `python -m gateway.demo.unit_service --unit linden-clinic --port 9102 [--context-key FILE] [--journal FILE]`
"""

from __future__ import annotations

import argparse
import hashlib
import signal
import socket
import sys
import time
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import falcon
import gevent
import orjson
from gevent import pywsgi

from gateway.agent.context_token import ContextRefused, ContextVerifier
from gateway.demo.fhir_data import DEMO_UNITS, KINDS, Records, Resource, generate_records
from gateway.demo.journal import Journal

FHIR_JSON = "application/fhir+json; charset=utf-8"
MAX_COUNT = 200
DEFAULT_COUNT = 50
MAX_WRITTEN = 1_000
"""Observations kept that callers posted; the oldest goes first."""
MAX_DEBUG_MS = 120_000
MAX_DEBUG_BYTES = 67_108_864
_STATUSES = frozenset(
    {"registered", "preliminary", "final", "amended", "corrected", "cancelled", "entered-in-error", "unknown"}
)
_PATIENT_PARAMETERS = frozenset({"_id", "_count", "_offset"})
_CLINICAL_PARAMETERS = frozenset({"patient", "subject", "category", "code", "_id", "_count", "_offset"})


class FhirError(Exception):
    """An answer as OperationOutcome. `code` is FHIR's IssueType."""

    def __init__(self, status: str, code: str, diagnostics: str) -> None:
        super().__init__(diagnostics)
        self.status = status
        self.code = code
        self.diagnostics = diagnostics


def not_found() -> FhirError:
    return FhirError(falcon.HTTP_404, "not-found", "No such resource here")


def invalid(diagnostics: str, status: str = falcon.HTTP_400) -> FhirError:
    return FhirError(status, "invalid", diagnostics)


class ContextCheck:
    """Falcon middleware: believes the gateway's context token, and holds the request to the patient it names.

    The patient is left in `req.context.patient`: None if the context names none, or none was sent.
    """

    def __init__(self, verifier: ContextVerifier | None) -> None:
        self._verifier = verifier

    def process_request(self, req: falcon.Request, resp: falcon.Response) -> None:
        req.context.patient = None
        token = req.get_header("X-Caregate-Context")
        if token is None or self._verifier is None:
            return
        try:
            claims = self._verifier.verify(token, time.time())
        except ContextRefused as error:
            raise FhirError(falcon.HTTP_403, "security", "The request's context is not valid") from error
        patient = claims.get("patient")
        req.context.patient = None if patient is None else str(patient)


def hold_to_patient(req: falcon.Request, patient: str | None) -> None:
    """Raises: FhirError if the context names a patient and the request is about another, or about all."""
    bound = req.context.patient
    if bound is not None and bound != patient:
        raise FhirError(falcon.HTTP_403, "forbidden", "The request's context is for another patient")


class Kind:
    """`/fhir/{kind}`: search; POST for Observation."""

    def __init__(self, records: Records, journal: Journal) -> None:
        self._records = records
        self._journal = journal
        self._written: list[str] = []
        self._base = f"https://{records.unit}.example/fhir"
        for observation in journal.read(MAX_WRITTEN):
            self._keep(observation)

    def on_get(self, req: falcon.Request, resp: falcon.Response, kind: str) -> None:
        _known(kind)
        parameters = _parameters(req, _PATIENT_PARAMETERS if kind == "Patient" else _CLINICAL_PARAMETERS)
        found = list(self._found(req, kind, parameters))
        _answer(resp, self._bundle(kind, parameters, found))

    def on_post(self, req: falcon.Request, resp: falcon.Response, kind: str) -> None:
        if kind != "Observation":
            raise FhirError(falcon.HTTP_405, "not-supported", "Only Observation can be created")
        observation = self._validated(req)
        observation = {**observation, "id": str(uuid.uuid4())}
        self._journal.append(observation)
        self._keep(observation)
        resp.set_header("Location", f"/fhir/Observation/{observation['id']}")
        _answer(resp, observation, falcon.HTTP_201)

    def _found(self, req: falcon.Request, kind: str, parameters: dict[str, str]) -> Iterator[Resource]:
        wanted = parameters.get("_id")
        if kind == "Patient":
            hold_to_patient(req, wanted)
            candidates: Iterable[Resource] = self._records.by_kind[kind].values()
        else:
            patient = _patient_of(parameters)
            hold_to_patient(req, patient)
            candidates = self._of(kind, patient)
        for resource in candidates:
            if wanted not in {None, resource["id"]}:
                continue
            if all(_has_code(resource.get(name), parameters.get(name)) for name in ("category", "code")):
                yield resource

    def _of(self, kind: str, patient: str | None) -> Iterable[Resource]:
        if patient is None:
            return self._records.by_kind[kind].values()
        return self._records.of_patient(kind, patient)

    def _bundle(self, kind: str, parameters: dict[str, str], found: list[Resource]) -> Resource:
        count = min(_number(parameters, "_count", DEFAULT_COUNT), MAX_COUNT)
        offset = _number(parameters, "_offset", 0)
        links = [{"relation": "self", "url": f"{self._base}/{kind}?{urlencode(parameters)}"}]
        if offset + count < len(found):
            following = urlencode({**parameters, "_count": count, "_offset": offset + count})
            links.append({"relation": "next", "url": f"{self._base}/{kind}?{following}"})
        return {
            "resourceType": "Bundle",
            "type": "searchset",
            "total": len(found),
            "link": links,
            "entry": [
                {"fullUrl": f"{self._base}/{kind}/{item['id']}", "resource": item, "search": {"mode": "match"}}
                for item in found[offset : offset + count]
            ],
        }

    def _validated(self, req: falcon.Request) -> Resource:
        """A little of what a FHIR server would check."""
        if (req.content_type or "").partition(";")[0].strip() not in {"application/fhir+json", "application/json"}:
            raise FhirError(falcon.HTTP_415, "not-supported", "Send application/fhir+json")
        try:
            # NOTE: where no length is announced Falcon's bounded stream is empty, and pywsgi ends the other one itself.
            stream = req.stream if req.content_length is None else req.bounded_stream
            value = orjson.loads(stream.read())
        except orjson.JSONDecodeError as error:
            raise invalid("The body is not JSON") from error
        if not isinstance(value, dict) or value.get("resourceType") != "Observation":
            raise invalid("An Observation is expected")
        if value.get("status") not in _STATUSES:
            raise invalid("Observation.status is missing or unknown", falcon.HTTP_422)
        _require_code(value.get("code"))
        patient = _subject(value)
        if self._records.read("Patient", patient) is None:
            raise invalid("Observation.subject is not a patient of this unit", falcon.HTTP_422)
        hold_to_patient(req, patient)
        return value

    def _keep(self, observation: Resource) -> None:
        self._records.add(observation)
        self._written.append(observation["id"])
        if len(self._written) > MAX_WRITTEN:
            del self._records.by_kind["Observation"][self._written.pop(0)]


class Instance:
    """`/fhir/{kind}/{id}`: read."""

    def __init__(self, records: Records) -> None:
        self._records = records

    def on_get(self, req: falcon.Request, resp: falcon.Response, kind: str, resource_id: str) -> None:
        _known(kind)
        resource = self._records.read(kind, resource_id)
        if kind == "Patient":
            hold_to_patient(req, resource_id)
        if resource is None:
            raise not_found()
        if kind not in {"Patient", "Practitioner"}:
            hold_to_patient(req, _subject(resource))
        _answer(resp, resource)


class Metadata:
    """`/fhir/metadata`: what this server can do."""

    def __init__(self, unit: str) -> None:
        self._unit = unit

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        resources = [
            {
                "type": kind,
                "interaction": [{"code": code} for code in _interactions(kind)],
                "searchParam": [
                    {"name": name, "type": "reference" if name in {"patient", "subject"} else "token"}
                    for name in sorted(_PATIENT_PARAMETERS if kind == "Patient" else _CLINICAL_PARAMETERS)
                    if name not in {"_count", "_offset"}
                ],
            }
            for kind in KINDS
        ]
        statement: Resource = {
            "resourceType": "CapabilityStatement",
            "status": "active",
            "date": "2026-01-01",
            "kind": "instance",
            "implementation": {"description": f"Demo unit {self._unit}: synthetic records"},
            "fhirVersion": "4.0.1",
            "format": ["application/fhir+json"],
            "rest": [{"mode": "server", "resource": resources}],
        }
        _answer(resp, statement)


class Health:
    def __init__(self, unit: str) -> None:
        self._unit = unit

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        resp.media = {"status": "ok", "unit": self._unit}


class Slow:
    """`/slow?ms=N`: answers after N milliseconds, for tests of deadlines."""

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        wait_ms = min(_number(_parameters(req, frozenset({"ms"})), "ms", 0), MAX_DEBUG_MS)
        gevent.sleep(wait_ms / 1000)
        resp.media = {"waited_ms": wait_ms}

    on_post = on_get


class Bytes:
    """`/bytes?n=N[&chunked=1]`: a body of N zero bytes, for tests of size."""

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        parameters = _parameters(req, frozenset({"n", "chunked"}))
        left = min(_number(parameters, "n", 0), MAX_DEBUG_BYTES)
        resp.content_type = "application/octet-stream"
        if "chunked" not in parameters:
            resp.content_length = left
        resp.stream = _zeros(left)


class Echo:
    """`/echo`: says what arrived (length, digest, names of fields), for tests of what is relayed."""

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        digest = hashlib.sha256()
        length = 0
        while piece := req.bounded_stream.read(65_536):
            digest.update(piece)
            length += len(piece)
        names = sorted(name.lower() for name in req.headers)
        resp.media = {"method": req.method, "length": length, "sha256": digest.hexdigest(), "fields": names}

    on_post = on_put = on_patch = on_delete = on_get


def create_app(records: Records, verifier: ContextVerifier | None = None, journal: Path | None = None) -> falcon.App:  # type: ignore[type-arg]
    app = falcon.App(middleware=[ContextCheck(verifier)])
    app.req_options.auto_parse_qs_csv = False
    app.add_error_handler(FhirError, _on_fhir_error)
    app.add_error_handler(falcon.HTTPError, _on_http_error)
    app.add_route("/health", Health(records.unit))
    app.add_route("/slow", Slow())
    app.add_route("/bytes", Bytes())
    app.add_route("/echo", Echo())
    app.add_route("/fhir/metadata", Metadata(records.unit))
    app.add_route("/fhir/{kind}", Kind(records, Journal(journal)))
    app.add_route("/fhir/{kind}/{resource_id}", Instance(records))
    return app


class _Server(pywsgi.WSGIServer):  # type: ignore[misc]
    """PERF: pywsgi sends head and body apart; with Nagle's delay the body waits 40 ms for an acknowledgement."""

    def handle(self, client_socket: Any, address: object) -> None:
        client_socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        super().handle(client_socket, address)


def main(arguments: list[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT. The first line on stdout says, as JSON, where."""
    options = _options(arguments)
    verifier = None
    if options.context_key is not None:
        verifier = ContextVerifier(options.unit, Path(options.context_key).read_bytes().rstrip(b"\r\n"))
    app = create_app(generate_records(DEMO_UNITS[options.unit]), verifier, options.journal)
    server = _Server((options.host, options.port), app, log=None, error_log=sys.stderr)
    server.start()
    for number in (signal.SIGTERM, signal.SIGINT):
        gevent.signal_handler(number, server.stop, 2)
    print(orjson.dumps({"unit": options.unit, "port": server.server_port}).decode(), flush=True)
    server.serve_forever()
    return 0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="unit_service", description="A demo unit's FHIR service, on loopback.")
    parser.add_argument("--unit", required=True, choices=sorted(DEMO_UNITS))
    parser.add_argument("--port", required=True, type=int, help="0: a free one, printed on stdout")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--context-key", metavar="FILE", help="check x-caregate-context with this key")
    parser.add_argument("--journal", type=Path, metavar="FILE", help="keep what callers write; default: forget it")
    return parser.parse_args(arguments)


# --- parts of a request


def _known(kind: str) -> None:
    if kind not in KINDS:
        raise not_found()


def _parameters(req: falcon.Request, known: frozenset[str]) -> dict[str, str]:
    """Each at most once. Raises: FhirError for one that this search does not have."""
    found: dict[str, str] = {}
    for name, value in req.params.items():
        if name not in known:
            raise FhirError(falcon.HTTP_400, "not-supported", "A search parameter is not supported")
        if not isinstance(value, str):
            raise invalid("A search parameter was given twice")
        found[name] = value
    return found


def _patient_of(parameters: dict[str, str]) -> str | None:
    named = {parameters[name].removeprefix("Patient/") for name in ("patient", "subject") if name in parameters}
    if len(named) > 1:
        raise invalid("patient and subject name different patients")
    return named.pop() if named else None


def _number(parameters: dict[str, str], name: str, default: int) -> int:
    text = parameters.get(name)
    if text is None:
        return default
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise invalid(f"{name} is not a number")
    return int(text)


def _subject(resource: Resource) -> str:
    reference = resource.get("subject") if resource["resourceType"] != "AllergyIntolerance" else resource.get("patient")
    text = reference.get("reference") if isinstance(reference, dict) else None
    if not isinstance(text, str) or not text.startswith("Patient/"):
        raise invalid("subject must be a reference to a Patient", falcon.HTTP_422)
    return text.removeprefix("Patient/")


def _require_code(code: Any) -> None:
    codings = code.get("coding") if isinstance(code, dict) else None
    if isinstance(code, dict) and isinstance(code.get("text"), str):
        return
    if isinstance(codings, list) and codings and all(isinstance(item, dict) and "code" in item for item in codings):
        return
    raise invalid("Observation.code needs a coding or a text", falcon.HTTP_422)


def _has_code(concepts: Any, wanted: str | None) -> bool:
    """FHIR token search: `code` or `system|code`, alternatives separated by commas."""
    if wanted is None:
        return True
    listed = concepts if isinstance(concepts, list) else [concepts]
    codings = [coding for concept in listed if isinstance(concept, dict) for coding in concept.get("coding", [])]
    spellings = {f"{coding.get('system')}|{coding.get('code')}" for coding in codings}
    spellings |= {str(coding.get("code")) for coding in codings}
    return not spellings.isdisjoint(wanted.split(","))


def _interactions(kind: str) -> list[str]:
    return ["read", "search-type", "create"] if kind == "Observation" else ["read", "search-type"]


def _zeros(left: int) -> Iterator[bytes]:
    piece = bytes(65_536)
    while left > 0:
        yield piece[:left]
        left -= len(piece)


# --- answers


def _answer(resp: falcon.Response, resource: Resource, status: str = falcon.HTTP_200) -> None:
    resp.status = status
    resp.content_type = FHIR_JSON
    resp.data = orjson.dumps(resource)


def _outcome(resp: falcon.Response, status: str, code: str, diagnostics: str) -> None:
    issue = {"severity": "error", "code": code, "diagnostics": diagnostics}
    _answer(resp, {"resourceType": "OperationOutcome", "issue": [issue]}, status)


def _on_fhir_error(req: falcon.Request, resp: falcon.Response, error: FhirError, params: dict[str, Any]) -> None:
    _outcome(resp, error.status, error.code, error.diagnostics)


def _on_http_error(req: falcon.Request, resp: falcon.Response, error: falcon.HTTPError, params: Any) -> None:
    headers: Any = error.headers or {}
    for name, value in dict(headers).items():
        resp.set_header(name, value)
    _outcome(resp, str(error.status), "processing", error.title or "The request cannot be served")


if __name__ == "__main__":
    sys.exit(main())

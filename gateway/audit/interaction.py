"""What a request to a FHIR server is about, as path, query, body and answer say: type, id, patient. Pure.

Denied attempts are read too, so nothing here refuses: what is no FHIR names nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, NamedTuple
from urllib.parse import unquote, unquote_plus

from gateway.rbac.fhir import RESOURCE_ID, RESOURCE_TYPES
from gateway.rbac.reference import id_of
from gateway.rbac.search import OF_PATIENT

PATIENT = "Patient"
BUNDLE = "Bundle"
_NAMES = {name: name == "patient" for name in OF_PATIENT} | {f"{name}:{PATIENT}": True for name in OF_PATIENT}
"""Parameters of a search that name a patient: does an id alone do?"""
_OF_PATIENTS = {**_NAMES, "_id": True}
_READS = frozenset({"GET", "HEAD"})
SEARCH = "_search"
_SUBJECTS = ("patient", "subject")
_LOCATION = re.compile(r"(?:^|/)([A-Za-z]+)/([A-Za-z0-9.\-]{1,64})(?:/_history/[A-Za-z0-9.\-]{1,64})?\Z")
"""Source: FHIR, RESTful API, create: `[base]/[type]/[id]/_history/[vid]`."""


class About(NamedTuple):
    """Shapes: empty texts for what is not named; `action` is C, R, U, D or E, empty where the method says it."""

    resource: str = ""
    id: str = ""
    patient: str = ""
    action: str = ""


def about(method: str, path: str, query: str, bases: Iterable[str] = ()) -> About:
    """Of a path below a FHIR base, percent-decoded, with the raw query.

    `Patient/1/Observation` is about observations of that patient, `Patient/1/$everything` about the patient.
    Source: FHIR, RESTful API: interactions, compartments, operations.
    """
    first, *below = path.split("/")
    patient = next(iter(patients_named(method, path, query, bases)), "")
    if first not in RESOURCE_TYPES:
        return About(patient=patient, action=_action(method, [path]))
    key = below[0] if below and RESOURCE_ID.match(below[0]) else ""
    action = _action(method, below)
    if key and len(below) > 1 and below[1] in RESOURCE_TYPES:
        return About(below[1], "", patient, action)
    return About(first, key, patient, action)


def patients_named(method: str, path: str, query: str, bases: Iterable[str] = ()) -> list[str]:
    """All patients of whom such a request says that it is about them, the one that counts first.

    SEC: a query beside the id of a record is no search: servers pass it over, so it could name anybody.
    """
    first, *below = path.split("/")
    key = below[0] if first in RESOURCE_TYPES and below and RESOURCE_ID.match(below[0]) else ""
    if key and method in _READS and (len(below) == 1 or below[1] == "_history"):
        return [key] if first == PATIENT else []
    searched = patients_searched(first if first in RESOURCE_TYPES else "", query, bases)
    return list(dict.fromkeys([key, *searched])) if key and first == PATIENT else searched


def _action(method: str, below: list[str]) -> str:
    if method != "POST" or not below:
        return ""
    return "R" if below[-1] == SEARCH else "E" if below[-1].startswith("$") else ""


def patients_searched(resource: str, query: str, bases: Iterable[str] = ()) -> list[str]:
    """The patients whom a search names, each once, as they come."""
    names = _OF_PATIENTS if resource == PATIENT else _NAMES
    found: dict[str, None] = {}
    for part in query.split("&") if query else ():
        name, _, value = part.partition("=")
        bare = names.get(unquote_plus(name))
        if bare is None:
            continue
        for one in unquote_plus(value).split(","):
            record = id_of(one, PATIENT, bases, bare=bare)
            if record is not None:
                found[record] = None
    return list(found)


def patient_written(document: Any, bases: Iterable[str] = ()) -> str:
    """The patient of whom a resource in JSON says that it is about; empty if it names none."""
    for name in _SUBJECTS if isinstance(document, dict) else ():
        member = document.get(name)
        reference = member.get("reference") if isinstance(member, dict) else None
        found = id_of(reference, PATIENT, bases) if isinstance(reference, str) else None
        if found is not None:
            return found
    return ""


def patients_bundled(document: Any, bases: Iterable[str] = ()) -> list[str]:
    """The patients whom the requests of a batch or transaction in JSON name, in their URLs or their resources.

    Source: FHIR, RESTful API: batch/transaction.
    """
    entries = document.get("entry") if isinstance(document, dict) else None
    found: dict[str, None] = {}
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, dict):
            found |= dict.fromkeys(_of_entry(entry, bases))
    return [patient for patient in found if patient]


def _of_entry(entry: dict[str, Any], bases: Iterable[str]) -> list[str]:
    """Empty texts may be among them."""
    request = entry.get("request")
    told = request if isinstance(request, dict) else {}
    method, url = (told.get(name) for name in ("method", "url"))
    found: list[str] = []
    if isinstance(url, str):
        base = next((base for base in bases if url.startswith(base)), "")
        path, _, query = url.removeprefix(base).removeprefix("/").partition("?")
        found = patients_named(str(method), unquote(path, errors="replace"), query, bases)
    return [*found, patient_written(entry.get("resource"), bases)]


def created(resource: str, location: str, document: Any, bases: Iterable[str] = ()) -> tuple[str, str]:
    """Id and patient of what a create has made, by its answer's Location and JSON (None: it has none)."""
    found = _LOCATION.search(location)
    key, patient = found[2] if found is not None and found[1] == resource else "", ""
    if isinstance(document, dict) and document.get("resourceType", resource) == resource:
        said = document.get("id")
        if not key and isinstance(said, str) and RESOURCE_ID.match(said):
            key = said
        patient = patient_written(document, bases)
    return key, key if resource == PATIENT else patient

"""An event of the trail as FHIR's AuditEvent, in the shape of IHE's Basic Audit Log Patterns. Pure.

A profile is claimed where its rules hold: successful reads, creates, updates and deletes by an identified caller.
Source: FHIR R4, AuditEvent; IHE BALP 1.1, IHE.BasicAudit.Read, Create, Update, Delete and their Patient variants.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

from gateway.audit.event import AuditEvent
from gateway.audit.kinds import ACCESS, kind_of
from gateway.audit.timestamp import instant

_PROFILE = "https://profiles.ihe.net/ITI/BALP/StructureDefinition/IHE.BasicAudit."
_DCM = "http://dicom.nema.org/resources/ontology/DCM"
_TERMINOLOGY = "http://terminology.hl7.org/CodeSystem/"
_REST = {"system": _TERMINOLOGY + "audit-event-type", "code": "rest", "display": "RESTful Operation"}
_SERVER = {"system": _TERMINOLOGY + "security-source-type", "code": "3", "display": "Web Server"}
_INTERACTION = "http://hl7.org/fhir/restful-interaction"
_PARTICIPATION = _TERMINOLOGY + "v3-ParticipationType"
_REASON = _TERMINOLOGY + "v3-ActReason"
_ENTITY_TYPE = _TERMINOLOGY + "audit-entity-type"
_OBJECT_ROLE = _TERMINOLOGY + "object-role"
_BALP_ENTITY = "https://profiles.ihe.net/ITI/BALP/CodeSystem/BasicAuditEntityType"
_OURS = "urn:caregate:"

_SOURCE_ROLE = ("110153", "Source Role ID")
_DESTINATION_ROLE = ("110152", "Destination Role ID")
_PROFILES = {"C": "Create", "R": "Read", "U": "Update", "D": "Delete"}
_SUBTYPES = {"C": "create", "R": "read", "U": "update", "D": "delete", "E": "operation"}
_OUTCOMES = {"allowed": "0", "complete": "0", "refused": "4", "failed": "8", "cut": "8"}
_ID = re.compile(r"[A-Za-z0-9.-]{1,64}\Z")
_TYPE = re.compile(r"[A-Z][A-Za-z]{0,63}\Z")
_NO_STRING = re.compile(r"[^\S \r\n\t]|[\0-\x08\x0e-\x1f]")
"""What a FHIR string cannot hold: control characters, and white space but blank, tab and line ends."""
_PSEUDONYM = re.compile(r"p\.[0-9a-f]{32}\Z")
"""How gateway.audit.pseudonyms writes one."""

NameOf = Callable[[str], str]
"""A patient's pseudonym -> the id, or the pseudonym where it has none any more."""


def audit_event(event: AuditEvent, chain: str, sequence: int, name_of: NameOf = lambda name: name) -> dict[str, Any]:
    """One event as a resource, ready for JSON."""
    access = event.kind == ACCESS
    resource: dict[str, Any] = {
        "resourceType": "AuditEvent",
        "id": f"{chain}-{sequence}",
        "type": _REST if access else _coding(_DCM, *kind_of(event.kind).code),
        "subtype": [_subtype(event)],
        "action": event.action or "E",
        "recorded": instant(event.at_ms),
    }
    if event.outcome in _OUTCOMES:
        resource["outcome"] = _OUTCOMES[event.outcome]
    resource["outcomeDesc"] = f"{event.outcome}: {event.rule}" if event.rule else event.outcome or "unknown"
    if event.purpose:
        resource["purposeOfEvent"] = [_concept(_REASON, event.purpose)]
    resource["agent"] = list(_agents(event))
    resource["source"] = {
        "site": event.node or "unknown",
        "observer": _identified("node", event.node or "unknown"),
        "type": [_SERVER],
    }
    patient = name_of(event.patient) if event.patient else ""
    resource["entity"] = list(_entities(event, patient))
    profile = _profile(event)
    if profile:
        resource = {"resourceType": "AuditEvent", "id": resource.pop("id"), "meta": {"profile": [profile]}, **resource}
    return {name: _as_string(value) for name, value in resource.items()}


def bundle(
    resources: Iterable[dict[str, Any]], links: dict[str, str], updated_ms: int, base: str = ""
) -> dict[str, Any]:
    """A search set. Shapes: `links` relation -> address; `base` is put before addresses."""
    entries = [
        {"fullUrl": f"{base}/audit/v1/AuditEvent/{one['id']}", "resource": one, "search": {"mode": "match"}}
        for one in resources
    ]
    document: dict[str, Any] = {
        "resourceType": "Bundle",
        "type": "searchset",
        "meta": {"lastUpdated": instant(updated_ms)},
        "link": [{"relation": name, "url": base + url} for name, url in links.items()],
    }
    # NOTE: FHIR knows no empty array.
    return {**document, "entry": entries} if entries else document


def _profile(event: AuditEvent) -> str:
    name = _PROFILES.get(event.action, "")
    known = bool(event.client_address and (event.client or event.subject) and event.route)
    if event.kind != ACCESS or event.outcome != "allowed" or not name or not known:
        return ""
    return _PROFILE + ("Patient" if event.patient else "") + name


def _subtype(event: AuditEvent) -> dict[str, str]:
    if event.kind != ACCESS:
        return {"system": _OURS + "audit-kind", "code": event.kind}
    code = "patch" if event.method == "PATCH" else _SUBTYPES.get(event.action, "operation")
    return {"system": _INTERACTION, "code": code, "display": code}


def _agents(event: AuditEvent) -> Iterable[dict[str, Any]]:
    """Who asked, through what, and who answered. The person is the requestor; where there is none, the client is."""
    reads, deletes = event.action == "R", event.action == "D"
    yield _client(event, reads, deletes)
    server = ("custodian", "Custodian") if deletes else _SOURCE_ROLE if reads else _DESTINATION_ROLE
    system = _TERMINOLOGY + "provenance-participant-type" if deletes else _DCM
    node = event.node or "unknown"
    yield {
        "type": {"coding": [_coding(system, *server)]}, "who": _identified("node", node), "requestor": False,
        "network": {"address": node, "type": "1"},
    }  # fmt: skip
    if event.subject:
        yield _user(event, reads, deletes)
    if event.organisation:
        yield {
            "type": _concept(_TERMINOLOGY + "v3-RoleClass", "PROV", "healthcare provider"),
            "who": _identified("organisation", event.organisation), "requestor": False,
        }  # fmt: skip
    if event.unit:
        unit: dict[str, Any] = {
            "type": _concept(_OURS + "agent-type", "unit"), "who": _identified("unit", event.unit), "requestor": False,
        }  # fmt: skip
        yield {**unit, "altId": event.agent} if event.agent else unit


def _client(event: AuditEvent, reads: bool, deletes: bool) -> dict[str, Any]:
    kind = ("110150", "Application") if deletes else _DESTINATION_ROLE if reads else _SOURCE_ROLE
    who = (
        {"system": _uri(event.issuer), "value": event.client}
        if event.client and event.issuer
        else {"value": event.client}
    )
    client: dict[str, Any] = {
        "type": {"coding": [_coding(_DCM, *kind)]},
        "who": {"identifier": who} if event.client else {"display": "a caller that names no client"},
        "requestor": not event.subject,
    }
    if event.client_address:
        client["network"] = {"address": event.client_address, "type": "2"}
    return client


def _user(event: AuditEvent, reads: bool, deletes: bool) -> dict[str, Any]:
    kind = ("IRCP", "information recipient") if reads else ("AUT", "author (originator)")
    user: dict[str, Any] = {
        "type": {"coding": [_coding(_PARTICIPATION, *kind)]},
        "who": {"identifier": {"value": event.subject, **({"system": _uri(event.issuer)} if event.issuer else {})}},
        "requestor": True,
    }
    if event.role:
        user["role"] = [_concept(_OURS + "role", event.role)]
    if event.token_id and not deletes:
        # Source: BALP, OAUTHaccessTokenUse: policy is the token's jti.
        user["policy"] = [_uri(_OURS + "jti:" + event.token_id)]
    if event.purpose:
        user["purposeOfUse"] = [_concept(_REASON, event.purpose)]
    return user


def _entities(event: AuditEvent, patient: str) -> Iterable[dict[str, Any]]:
    if patient:
        yield {
            "what": _patient(patient),
            "type": _coding(_ENTITY_TYPE, "1", "Person"), "role": _coding(_OBJECT_ROLE, "1", "Patient"),
        }  # fmt: skip
    yield {
        "what": _what(event, patient), "type": _coding(_ENTITY_TYPE, "2", "System Object"),
        "role": _coding(_OBJECT_ROLE, *(("4", "Domain Resource") if event.kind == ACCESS else ("20", "Job"))),
    }  # fmt: skip
    if event.request_id:
        yield {"what": {"identifier": {"value": event.request_id}}, "type": _coding(_BALP_ENTITY, "XrequestId")}
    facts = {
        "rule": event.rule, "status": event.status, "phase": event.phase, "method": event.method, "route": event.route,
        "delivery": event.delivery, "duration_us": event.duration_us, "audience": event.audience,
        "config_version": event.config_version, "trace": event.trace,
        "phi": "true" if event.phi else "", **event.detail,
    }  # fmt: skip
    yield {
        "what": {"identifier": {"system": _OURS + "event", "value": event.kind}},
        "type": {"system": _OURS + "entity-type", "code": "decision"},
        "detail": [{"type": name, "valueString": str(value)} for name, value in facts.items() if value],
    }


def _patient(patient: str) -> dict[str, Any]:
    if _PSEUDONYM.match(patient):
        return {"type": "Patient", "identifier": {"system": _OURS + "patient-pseudonym", "value": patient}}
    if _ID.match(patient):
        return {"reference": f"Patient/{patient}"}
    return {"type": "Patient", "identifier": {"system": _OURS + "patient", "value": patient}}


def _what(event: AuditEvent, patient: str) -> dict[str, Any]:
    kind, key = event.resource_type, event.resource_id
    if key and key == event.patient:
        key = patient  # as it is shown
    if _TYPE.match(kind) and _ID.match(key):
        return {"reference": f"{kind}/{key}"}
    name = key or event.route or event.unit or event.kind
    system = kind.lower() if key and kind else "route" if event.route and not key else "object"
    what: dict[str, Any] = _identified(system, name)
    return {"type": kind, **what} if _TYPE.match(kind) else what


def _identified(system: str, value: str) -> dict[str, Any]:
    return {"identifier": {"system": _uri(_OURS + system), "value": value}}


def _as_string(value: Any) -> Any:
    """A value with only such texts in it as FHIR can hold."""
    if isinstance(value, str):
        return _NO_STRING.sub("\N{REPLACEMENT CHARACTER}", value)
    if isinstance(value, list):
        return [_as_string(one) for one in value]
    return {name: _as_string(one) for name, one in value.items()} if isinstance(value, dict) else value


def _uri(text: str) -> str:
    """NOTE: a FHIR uri has no white space."""
    return "_".join(text.split()) or "urn:unknown"


def _coding(system: str, code: str, display: str = "") -> dict[str, str]:
    # NOTE: a FHIR code has no space at its ends and no two of them.
    return {"system": system, "code": " ".join(code.split()) or "unknown", **({"display": display} if display else {})}


def _concept(system: str, code: str, display: str = "") -> dict[str, Any]:
    return {"coding": [_coding(system, code, display)]}

"""The rules of IHE's Basic Audit Log Patterns, read from their profiles, as a plain check of a resource.

Source: IHE ITI BALP, profiles IHE.BasicAudit.{,Patient}{Create,Read,Update,Delete}.
"""

from __future__ import annotations

from typing import Any

PROFILE = "https://profiles.ihe.net/ITI/BALP/StructureDefinition/IHE.BasicAudit."
TERMINOLOGY = "http://terminology.hl7.org/CodeSystem/"
DCM = "http://dicom.nema.org/resources/ontology/DCM"
INTERACTIONS = {"Create": {"create"}, "Read": {"read", "vread"}, "Update": {"update", "patch"}, "Delete": {"delete"}}
CLIENT = {"Create": "110153", "Read": "110152", "Update": "110153", "Delete": "110150"}
SERVER = {
    "Create": (DCM, "110152"),
    "Read": (DCM, "110153"),
    "Update": (DCM, "110152"),
    "Delete": (TERMINOLOGY + "provenance-participant-type", "custodian"),
}
USERS = {"Read": {"IRCP"}}
AUTHORS = {"AUT", "INF", "CST"}
BARE = ("role", "altId", "name", "location", "policy", "media", "purposeOfUse")
"""What client and server of a Delete must not have."""


def faults(resource: dict[str, Any]) -> list[str]:
    """What of the profile that a resource claims does not hold; nothing if it claims none."""
    (claimed,) = resource.get("meta", {}).get("profile", [""])
    if not claimed:
        return []
    assert claimed.startswith(PROFILE)
    name = claimed.removeprefix(PROFILE)
    kind = name.removeprefix("Patient")
    found = [*_event(resource, kind), *_agents(resource, kind), *_entities(resource, kind)]
    if name.startswith("Patient"):
        found += _patient(resource, kind)
    return found


def _event(resource: dict[str, Any], kind: str) -> list[str]:
    codes = [s["code"] for s in resource.get("subtype", []) if s["system"] == "http://hl7.org/fhir/restful-interaction"]
    rules = {
        "type": resource["type"]["system"] == TERMINOLOGY + "audit-event-type" and resource["type"]["code"] == "rest",
        "subtype": len(set(codes) & INTERACTIONS[kind]) >= 1,
        "one subtype": kind != "Delete" or len(resource["subtype"]) == 1,
        "action": resource.get("action") == kind[0],
        "recorded": bool(resource.get("recorded")),
        "outcome": resource.get("outcome") == "0",
        "source": bool(resource.get("source", {}).get("observer")),
    }
    return [rule for rule, holds in rules.items() if not holds]


def _slice(resource: dict[str, Any], system: str, codes: set[str]) -> list[dict[str, Any]]:
    return [
        agent
        for agent in resource["agent"]
        if any(c["system"] == system and c["code"] in codes for c in agent.get("type", {}).get("coding", []))
    ]


def _agents(resource: dict[str, Any], kind: str) -> list[str]:
    found = []
    for name, agents in (
        ("client", _slice(resource, DCM, {CLIENT[kind]})),
        ("server", _slice(resource, SERVER[kind][0], {SERVER[kind][1]})),
    ):
        if len(agents) != 1:
            found.append(f"{len(agents)} of {name}")
            continue
        found += [f"{name}.{member}" for member in ("who", "network") if not agents[0].get(member)]
        if kind == "Delete":
            found += [f"{name}.{member} 0..0" for member in BARE if member in agents[0]]
    users = _slice(resource, TERMINOLOGY + "v3-ParticipationType", USERS.get(kind, AUTHORS))
    if len(users) > 1:
        found.append("more than one user")
    for user in users:
        found += [rule for rule, holds in {
            "user.who": bool(user.get("who")), "user.requestor": user.get("requestor") is True,
            "user.network": "network" not in user, "user.media": "media" not in user,
            "user.policy": kind != "Delete" or not {"policy", "altId", "location"} & user.keys(),
        }.items() if not holds]  # fmt: skip
    return found


def _of_type(resource: dict[str, Any], system: str, code: str) -> list[dict[str, Any]]:
    return [e for e in resource["entity"] if (e["type"]["system"], e["type"]["code"]) == (system, code)]


def _entities(resource: dict[str, Any], kind: str) -> list[str]:
    data = _of_type(resource, TERMINOLOGY + "audit-entity-type", "2")
    transactions = _of_type(resource, "https://profiles.ihe.net/ITI/BALP/CodeSystem/BasicAuditEntityType", "XrequestId")
    found = []
    if len(data) != 1 or data[0]["role"]["code"] not in ("4", "3", "20") or not data[0].get("what"):
        found.append("data")
    if len(transactions) > 1 or any(not t["what"]["identifier"].get("value") for t in transactions):
        found.append("transaction")
    if kind == "Delete" and any({"lifecycle", "name", "query", "detail"} & e.keys() for e in data + transactions):
        found.append("data 0..0")
    return found


def _patient(resource: dict[str, Any], kind: str) -> list[str]:
    patients = _of_type(resource, TERMINOLOGY + "audit-entity-type", "1")
    if len(patients) != 1:
        return ["patient"]
    (one,) = patients
    what = one.get("what", {})
    good = one["role"]["code"] == "1" and one["role"]["system"] == TERMINOLOGY + "object-role"
    named = what.get("reference", "").startswith("Patient/") or what.get("type") == "Patient"
    bare = kind != "Delete" or not {"lifecycle", "securityLabel", "name", "query", "detail"} & one.keys()
    return [] if good and named and bare else ["patient"]

"""What a document says of a request, read from its text in the plainest way, without gateway.rbac. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

STATES: Final = ("fresh", "none", "expired", "revoked", "foreign key", "foreign issuer")
"""What a token can be like."""
_PARAM: Final = re.compile(r"\{(\w+)(:path)?\}")
_LETTERS: Final = {"POST": "c", "PUT": "u", "PATCH": "u", "DELETE": "d"}
_SCOPE: Final = re.compile(r"(patient|user|system)/([A-Za-z]+|\*)\.([a-z*]+)\Z")
_VERSION_1: Final = {"read": "rs", "write": "cud", "*": "cruds"}

Document = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Cell:
    """One request of the matrix. `own_patient`, `own_unit`: is what the path names the caller's?"""

    route: str
    method: str
    role: str
    own_patient: bool
    own_unit: bool
    state: str

    def __str__(self) -> str:
        whose = f"{'own' if self.own_patient else 'other'} patient, {'own' if self.own_unit else 'other'} unit"
        return f"{self.method} {self.route} as {self.role}, {whose}, token: {self.state}"


@dataclass(frozen=True, slots=True)
class World:
    """Whom and what the requests name. Shapes: own, then another."""

    patients: tuple[str, str]
    units: tuple[str, str]

    def value(self, param: str, cell: Cell) -> str:
        """What a parameter of the path is in a request."""
        if param == "patient":
            return self.patients[0 if cell.own_patient else 1]
        if param == "unit":
            return self.units[0 if cell.own_unit else 1]
        return f"Patient/{self.value('patient', cell)}" if param == "path" else "selftest"

    def claims(self, document: Document, route: str) -> dict[str, object]:
        """What a token says of its holder, so that what is his own on the route is."""
        found: dict[str, object] = {"patient": self.patients[0], "units": [self.units[0]]}
        for bind in document["controllers"][route].get("bind", ()):
            own = {"patient": self.patients[0], "unit": [self.units[0]]}.get(bind["param"], "selftest")
            found.setdefault(bind["claim"], own)
        return found


def cells(document: Document) -> Iterator[Cell]:
    """The whole matrix; where a path names no patient or unit, there is none of another."""
    for route, controller in document["controllers"].items():
        params = {found[0] for found in _PARAM.findall(controller["path"])}
        patients = (True, False) if params & {"patient", "path"} else (True,)
        units = (True, False) if "unit" in params else (True,)
        for method in controller["methods"]:
            for role in document["roles"]:
                for own_patient in patients:
                    for own_unit in units:
                        for state in STATES:
                            yield Cell(route, method, role, own_patient, own_unit, state)


def target(document: Document, cell: Cell, world: World) -> str:
    """The path of a cell's request."""
    return _PARAM.sub(lambda found: world.value(found[1], cell), document["controllers"][cell.route]["path"])


def verdict(document: Document, cell: Cell) -> str:
    """What must become of a request: passes, 401, 403, 404; "" where this model does not say.

    Source: ANSWERS of the policy: token, audience, role, permission, scope, bindings, in this order.
    """
    controller, role = document["controllers"][cell.route], document["roles"][cell.role]
    hidden = controller.get("hidden", False)
    if cell.state != "fresh":
        return "401"
    if role["audience"] not in controller["audiences"]:
        return "404" if hidden else "401"
    if cell.role not in controller["roles"]:
        return "403"
    permission, watched = _rule(controller.get("permission"), "name")
    if permission is not None and not watched and permission not in role.get("permissions", ()):
        return "403"
    watched = _rule(controller.get("scope"), "need")[1]
    if role.get("scopes") is not None and not watched and not _covered(controller, cell, role["scopes"]):
        return "403"
    return _bound(controller, cell)


def _rule(rule: object, name: str) -> tuple[Any, bool]:
    """What a rule that is text or a mapping says, and whether it only watches."""
    return (rule.get(name), bool(rule.get("shadow"))) if isinstance(rule, Mapping) else (rule, False)


def _bound(controller: Mapping[str, Any], cell: Cell) -> str:
    """What the bindings say: the first that refuses decides."""
    covered = _takes_own(controller) or cell.role in controller.get("unbound_roles", ())
    judged = True
    for bind in controller.get("bind", ()):
        if bind.get("shadow") or (bind.get("roles") and cell.role not in bind["roles"]):
            continue
        covered = True
        if ":" in bind["param"]:
            judged = False
        elif (bind["param"] == "patient" and not cell.own_patient) or (bind["param"] == "unit" and not cell.own_unit):
            return "404" if bind.get("refuse") == "hidden" else "403"
    if not covered and (controller.get("bind") or "{unit}" in controller["path"]):
        return "403"
    special = any(controller.get(name) for name in ("consent", "purpose"))
    return "passes" if judged and not special else ""


def _takes_own(controller: Mapping[str, Any]) -> bool:
    """Below /me the patient is the token's, whatever the caller writes."""
    target = (controller.get("unit") or controller.get("upstream") or {}).get("target") or ""
    return "/me/" in f"{controller['path']}/" and "{patient}" in target and "{patient}" not in controller["path"]


def _is_tied(controller: Mapping[str, Any], role: str) -> bool:
    """Is the role tied to the patient of its token, so that scopes `patient/…` count?"""
    if _takes_own(controller) or "claim:patient" in controller.get("function", {}).get("arguments", {}).values():
        return True
    rules = (bind for bind in controller.get("bind", ()) if bind["claim"] == "patient" and not bind.get("shadow"))
    return any(not bind.get("roles") or role in bind["roles"] for bind in rules)


def _covered(controller: Mapping[str, Any], cell: Cell, scopes: list[str]) -> bool:
    """Does one of the role's scopes allow what the route needs?"""
    need = _rule(controller.get("scope"), "need")[0]
    about = controller.get("audit", {})
    if need == "none":
        return True
    if need is None or need.startswith("path:"):
        if need is None and "resource" not in about:
            return False
        resource = "Patient" if need else about["resource"]
        letters = _LETTERS.get(cell.method, "r" if need or about.get("id") else "s")
        if need is None:
            letters = "".join({_LETTERS.get(method, letters) for method in controller["methods"]})
    else:
        resource, _, letters = need.partition(".")
    own = _is_tied(controller, cell.role)
    for scope in scopes:
        found = _SCOPE.match(scope)
        if found is None or found[2] not in ("*", resource) or (found[1] == "patient" and not own):
            continue
        if set(letters) <= set(_VERSION_1.get(found[3], found[3])):
            return True
    return False


def reads_records(document: Document, cell: Cell) -> bool:
    """Would a request that passes read or write something of a person, although its patient is made up?"""
    controller = document["controllers"][cell.route]
    named = bool({found[0] for found in _PARAM.findall(controller["path"])} & {"patient", "path"})
    return cell.method not in ("GET", "HEAD") or (bool(controller.get("phi")) and not named)


def as_expected(wanted: str, status: int) -> bool:
    """Is the answer's status what the model says?"""
    return status not in (401, 403) if wanted == "passes" else status == int(wanted)

"""Controllers of the configuration, made of a unit's own OpenAPI document: a beginning for who writes them. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastpath.routes import canonical_path
from gateway.openapi.reading import Description, Operation, component_of

_PARAM = re.compile(r"\{([^{}/]+)\}")
_BODY_METHODS = frozenset({"POST", "PUT", "PATCH", "DELETE"})


@dataclass(frozen=True, slots=True)
class Terms:
    """Under which terms the unit's operations are offered.

    Shapes: `prefix` comes before each path; `bind` parameter -> claim, where a path has the parameter.
    """

    unit: str
    prefix: str
    audiences: Sequence[str]
    roles: Sequence[str]
    permission: str = ""
    bind: Mapping[str, str] = field(default_factory=dict)
    phi: bool = True


@dataclass(slots=True)
class Imported:
    """Shapes: `controllers` by name, as they stand in a document; `left_out` path -> why."""

    controllers: dict[str, dict[str, Any]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


def import_controllers(description: Description, terms: Terms) -> Imported:
    """One controller for all methods of a path."""
    found = Imported()
    by_path: dict[str, list[Operation]] = {}
    for operation in description.operations:
        by_path.setdefault(operation.path, []).append(operation)
    shapes: dict[str, str] = {}
    for path, operations in by_path.items():
        reason = _unusable(path) or _twice(operations[0], shapes)
        if reason:
            found.left_out[path] = reason
            continue
        found.controllers[_name(path, operations, terms, found.controllers)] = _controller(
            path, operations, description, terms
        )
    return found


def _unusable(path: str) -> str:
    """Why no route can stand for a path; "" if one can."""
    for segment in path.split("/"):
        if ("{" in segment or "}" in segment) and not _PARAM.fullmatch(segment):
            return f"{segment} is neither a literal nor one whole parameter"
    names = [_param(found) for found in _PARAM.findall(path)]
    if len(set(names)) < len(names):
        return "a parameter stands in it twice"
    plain = _PARAM.sub("x", path)
    try:
        canonical, query = canonical_path(plain)
    except ValueError as error:
        return f"is not a canonical path: {error}"
    return "" if canonical == plain and not query else f"is not in canonical spelling, which is {canonical}"


def _twice(operation: Operation, shapes: dict[str, str]) -> str:
    first = shapes.setdefault(operation.shape, operation.path)
    return "" if first == operation.path else f"matches the same paths as {first}"


def _param(name: str) -> str:
    """The name of a parameter as the configuration writes it."""
    made = re.sub(r"[^A-Za-z0-9_]", "_", name)
    return made if made[:1].isalpha() or made[:1] == "_" else f"_{made}"


def _name(path: str, operations: list[Operation], terms: Terms, taken: Mapping[str, object]) -> str:
    """What the document calls it, or its path; with a number if that is taken."""
    ident = str(operations[0].raw.get("operationId", "")) if len(operations) == 1 else ""
    made = re.sub(r"[^a-z0-9]+", "-", f"{terms.unit}-{ident or path}".lower()).strip("-")[:60]
    if not made[:1].isalpha():
        made = f"u-{made}"[:60]
    number, name = 1, made
    while name in taken:
        number += 1
        name = f"{made}-{number}"
    return name


def _controller(path: str, operations: list[Operation], description: Description, terms: Terms) -> dict[str, Any]:
    own = _PARAM.sub(lambda found: f"{{{_param(found[1])}}}", path)
    params = [_param(name) for name in operations[0].params]
    controller: dict[str, Any] = {
        "path": terms.prefix + own,
        "methods": [operation.method for operation in operations],
        "audiences": list(terms.audiences),
        "roles": list(terms.roles),
    }
    if terms.permission:
        controller["permission"] = terms.permission
    binds = [{"param": param, "claim": claim} for param, claim in terms.bind.items() if param in params]
    if binds:
        controller["bind"] = binds
    queries = sorted(set(_queries(operations, description)))
    if queries:
        controller["query"] = queries
    if terms.phi:
        controller["phi"] = True
    if not any(operation.method in _BODY_METHODS for operation in operations):
        controller["body_max_bytes"] = 0
    controller["unit"] = {"unit": terms.unit, "target": own}
    return controller


def _queries(operations: list[Operation], description: Description) -> Iterator[str]:
    for operation in operations:
        for one in operation.raw["parameters"]:
            place = component_of(one.get("$ref", ""))
            parameter = description.components[place[0]][place[1]] if place is not None else one
            if parameter.get("in") == "query" and isinstance(parameter.get("name"), str):
                yield parameter["name"]

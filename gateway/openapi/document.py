"""The document of what an audience may call: a snapshot's controllers, with what the units say of their own. Pure.

Source: OpenAPI Specification 3.1.1.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from typing import Any

from gateway.openapi.reading import Description, Operation, component_of, references
from gateway.routing.model import FunctionAction, Route, RouteKind, UnitAction

VERSION = "3.1.1"
_PARAM = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)(:path)?\}")
_KEPT = ("summary", "description", "requestBody", "responses", "deprecated")
"""What is taken over of a unit's operation: not its servers, security or callbacks, which are the unit's own."""
_WITH_BODY = frozenset({"POST", "PUT", "PATCH"})
_TAGS = {
    RouteKind.FUNCTION: "portal",
    RouteKind.RESOURCE: "portal",
    RouteKind.UPSTREAM: "cloud services",
    RouteKind.UNIT: "units",
}
_PROBLEM = {
    "type": "object",
    "required": ["type", "title", "status", "detail", "instance", "request_id", "origin", "retryable"],
    "properties": {
        "type": {"type": "string", "format": "uri-reference"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "instance": {"type": "string", "format": "uri-reference"},
        "request_id": {"type": "string"},
        "origin": {"enum": ["client", "gateway", "unit", "upstream"]},
        "retryable": {"type": "boolean"},
        "delivery": {"enum": ["not_dispatched", "unknown", "dispatched", "response_started"]},
        "unit": {"type": "string"},
        "last_seen": {"type": ["string", "null"]},
    },
}
_REFUSALS = {
    400: "The request is malformed.",
    401: "No token, or none that is good.",
    403: "The token does not allow it.",
    404: "There is no such thing, or not for this caller.",
    413: "The body is larger than the route takes.",
    429: "Over a limit; Retry-After says when to come back.",
    502: "What answers did not answer properly.",
    503: "What answers is not there; Retry-After says when to come back.",
    504: "What answers took too long.",
}


def describe(
    routes: Mapping[str, Route],
    units: Mapping[str, Description],
    audience: str,
    *,
    issuer: str,
    version: int,
    url: str = "",
) -> dict[str, Any]:
    """The OpenAPI document of an audience.

    Shapes: `routes` by controller's name; `units` what units say of themselves, by unit; `version` the configuration's.
    """
    paths: dict[str, dict[str, Any]] = {}
    used: dict[str, set[tuple[str, str]]] = {}
    for name, route in routes.items():
        if audience not in route.audiences:
            continue
        for path, method, operation in _operations(name, route, units, used):
            paths.setdefault(path, {}).setdefault(method.lower(), operation)
    document: dict[str, Any] = {
        "openapi": VERSION,
        "info": {
            "title": f"What {audience} may call",
            "version": str(version),
            "description": f"Bearer tokens of {issuer} for the audience {audience}. Errors are problem documents.",
        },
        "paths": dict(sorted(paths.items())),
        "components": _components(units, used),
        "security": [{"bearer": []}],
    }
    if url:
        document["servers"] = [{"url": url}]
    return document


def _operations(
    name: str, route: Route, units: Mapping[str, Description], used: dict[str, set[tuple[str, str]]]
) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(path, method, operation) of a route: as the units describe it, and as the configuration has it."""
    path, rest = _plain(route.template)
    for method in route.methods:
        ident = name if len(route.methods) == 1 else f"{name}-{method.lower()}"
        described = _described(route, method, units)
        for number, (own_path, unit, operation) in enumerate(described):
            suffix = "" if len(described) == 1 and not rest else f"-{number + 1}"
            body = _own(route, method, f"{ident}{suffix}", own_path)
            _take_over(body, route, operation, unit, units[unit], used)
            yield own_path, method, body
        if rest or not described:
            yield path, method, _own(route, method, ident, path, rest)


def _plain(template: str) -> tuple[str, str]:
    """The template as OpenAPI writes it, and the name of the parameter that takes the rest of the path."""
    rest = next((found[1] for found in _PARAM.finditer(template) if found[2]), "")
    return _PARAM.sub(lambda found: f"{{{found[1]}}}", template), rest


def _own(route: Route, method: str, ident: str, path: str, rest: str = "") -> dict[str, Any]:
    """What the configuration alone says of an operation."""
    operation: dict[str, Any] = {"operationId": ident, "tags": [_TAGS[route.kind]]}
    parameters: list[dict[str, Any]] = []
    for found in _PARAM.finditer(path):
        one = {"name": found[1], "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        if found[1] == rest:
            one["description"] = "May have slashes: the rest of the path."
            one["x-caregate-rest-of-path"] = True
        parameters.append(one)
    parameters += [{"name": one, "in": "query", "schema": {"type": "string"}} for one in sorted(route.query or ())]
    if route.query is None:
        anything = {"type": "object", "additionalProperties": {"type": "string"}}
        parameters.append({"name": "parameters", "in": "query", "style": "form", "explode": True, "schema": anything})
    if parameters:
        operation["parameters"] = parameters
    if method in _WITH_BODY:
        operation["requestBody"] = {"content": {"application/json": {}}, "description": _most(route)}
    operation["responses"] = _responses(route)
    operation["x-caregate-roles"] = sorted(route.roles)
    operation["x-caregate-deadline-ms"] = route.deadline_ms
    return operation


def _most(route: Route) -> str:
    return f"At most {route.body_max_bytes} bytes."


def _responses(route: Route) -> dict[str, Any]:
    status = route.action.success_status if isinstance(route.action, FunctionAction) else 200
    found: dict[str, Any] = {str(status): {"description": "As asked for.", "content": {"application/json": {}}}}
    for refusal in _REFUSALS:
        if (refusal == 429 and not route.limits) or (refusal == 413 and not _WITH_BODY & set(route.methods)):
            continue
        found[str(refusal)] = {"$ref": f"#/components/responses/Problem{refusal}"}
    return found


# --- what the units say


def _described(route: Route, method: str, units: Mapping[str, Description]) -> list[tuple[str, str, Operation]]:
    """(the caller's path, unit, operation) of every operation of a unit that this route reaches; the first unit's."""
    action = route.action
    if not isinstance(action, UnitAction):
        return []
    target = (action.target or route.template).partition("?")[0]
    fixed = [action.unit] if action.unit is not None else list(units)
    found: dict[str, tuple[str, str, Operation]] = {}
    for unit in fixed:
        for operation in units[unit].operations if unit in units else ():
            path = _callers_path(route, target, operation) if operation.method == method else None
            if path is not None:
                found.setdefault(path, (path, unit, operation))
    return list(found.values())


def _callers_path(route: Route, target: str, operation: Operation) -> str | None:
    """Under which path of the gateway a caller reaches an operation of the unit; None if he does not."""
    outer, rest = _plain(route.template)
    plain, _ = _plain(target)
    before = plain.removesuffix(f"{{{rest}}}") if rest else plain
    if before == plain:
        return outer if _PARAM.sub("{}", plain) == operation.shape else None
    if "{" in before or not operation.path.startswith(before) or operation.path == before:
        return None
    return outer.removesuffix(f"{{{rest}}}") + _apart(operation.path[len(before) :], outer)


def _apart(path: str, outer: str) -> str:
    """The unit's path with parameters whose names are not those of the caller's path before it."""
    taken = {found[1] for found in _PARAM.finditer(outer)}

    def rename(found: re.Match[str]) -> str:
        name = re.sub(r"\W", "_", found[1])
        return f"{{{name if name not in taken else name + '_'}}}"

    return re.sub(r"\{([^{}/]+)\}", rename, path)


def _take_over(
    body: dict[str, Any],
    route: Route,
    operation: Operation,
    unit: str,
    description: Description,
    used: dict[str, set[tuple[str, str]]],
) -> None:
    """Add to an operation what the unit says of it, references renamed to the unit's own components."""
    theirs = {name: copy.deepcopy(operation.raw[name]) for name in _KEPT if name in operation.raw}
    queries = [one for one in _resolved(operation, description) if _may_pass(one, route)]
    if queries:
        named = {one["name"] for one in queries}
        own = [one for one in body.get("parameters", ()) if one["in"] != "query" or one["name"] not in named]
        body["parameters"] = [*own, *copy.deepcopy(queries)]
    responses = {str(status): answer for status, answer in theirs.pop("responses", {}).items()}
    refusals = {status: answer for status, answer in body["responses"].items() if "$ref" in answer}
    body.update(theirs)
    body["responses"] = {**refusals, **responses} if responses else body["responses"]
    body["x-caregate-unit"] = unit
    _rename(body, unit, used.setdefault(unit, set()), description)


def _resolved(operation: Operation, description: Description) -> Iterator[dict[str, Any]]:
    for one in operation.raw["parameters"]:
        place = component_of(one.get("$ref", ""))
        yield description.components[place[0]][place[1]] if place is not None else one


def _may_pass(parameter: dict[str, Any], route: Route) -> bool:
    return parameter.get("in") == "query" and (route.query is None or parameter.get("name") in route.query)


def _rename(value: object, unit: str, used: set[tuple[str, str]], description: Description) -> None:
    """Point the references of a value at the unit's own components, and note those and what they refer to."""
    for member in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _rename(member, unit, used, description)
    if not isinstance(value, dict):
        return
    place = component_of(str(value.get("$ref", "")))
    # NOTE: the refusals are components of ours.
    if place is None or place[1] not in description.components.get(place[0], ()):
        return
    value["$ref"] = f"#/components/{place[0]}/{unit}.{place[1]}"
    pending = [place]
    while pending:
        one = pending.pop()
        if one not in used:
            used.add(one)
            below = references(description.components[one[0]][one[1]])
            pending += [found for found in map(component_of, below) if found is not None]


def _components(units: Mapping[str, Description], used: dict[str, set[tuple[str, str]]]) -> dict[str, Any]:
    problem = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    components: dict[str, Any] = {
        "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}},
        "schemas": {"Problem": _PROBLEM},
        "responses": {
            f"Problem{status}": {"description": text, "content": problem} for status, text in _REFUSALS.items()
        },
    }
    for unit, places in sorted(used.items()):
        for section, name in sorted(places):
            made = copy.deepcopy(units[unit].components[section][name])
            _rename(made, unit, set(places), units[unit])
            components.setdefault(section, {})[f"{unit}.{name}"] = made
    return components

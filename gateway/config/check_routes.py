"""Cross-checks of the controllers: who may call, what answers, and that no route shadows another."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import NamedTuple

from fastpath.routes import RouteTable
from gateway.config.check_bindings import BODILESS, check_bindings, takes_own_patient
from gateway.config.check_consent import check_consent, check_purpose
from gateway.config.check_scopes import check_scope
from gateway.config.checking import Checking
from gateway.config.fault import WHOLE, step
from gateway.config.model import Controller, Function, Role, ToUnit, ToUpstream
from gateway.config.template import Template, read_path, read_target, target_query_names
from gateway.routing.model import RESERVED_PREFIXES

ACTIONS = ("function", "upstream", "unit", "resource")

_PARAMETER = re.compile(r"[a-z_][a-z0-9_]*\Z")
_SOURCE = re.compile(r"(path|query|claim):([^?]+)(\??)\Z|body(:(/[^?]*))?(\??)\Z")
_POINTER = re.compile(r"(/([^~/]|~[01])*)*\Z")
_UNIT_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,62}\Z")


class Source(NamedTuple):
    """Where a function's argument comes from; `kind` is path, query, claim or body."""

    kind: str
    name: str
    required: bool


def read_source(text: str) -> Source | None:
    """`path:NAME`, `query:NAME`, `claim:NAME`, `body`, `body:/pointer`, with `?` if optional; None if it is none."""
    found = _SOURCE.match(text)
    if found is None:
        return None
    if found[1] is not None:
        return Source(found[1], found[2], not found[3])
    pointer = found[5] or ""
    return Source("body", pointer, not found[6]) if _POINTER.match(pointer) else None


def check_controllers(checking: Checking, resources: Collection[str]) -> None:
    """Note every fault of the controllers, and of all of them together."""
    templates: dict[str, Template] = {}
    for path, name, controller in checking.entries("controllers"):
        templates[name] = template = read_path(controller.path)
        _check_template(checking, path, template)
        _check_access(checking, path, controller)
        check_bindings(checking, path, controller, template)
        check_purpose(checking, path, controller)
        check_consent(checking, path, controller, template)
        check_scope(checking, path, controller, template)
        _check_limits(checking, path, controller)
        _check_audit(checking, path, controller, template)
        _check_query(checking, path, controller)
        _check_action(checking, path, controller, template, resources)
    _check_conflicts(checking, templates)


def _check_template(checking: Checking, path: str, template: Template) -> None:
    below = step(path, "path")
    for reason in template.faults:
        checking.add(below, reason)
    for prefix in RESERVED_PREFIXES:
        if template.text.startswith(prefix) or template.text == prefix.rstrip("/"):
            checking.add(below, f"{prefix} is reserved for the gateway itself")
    if not template.faults:
        _check_compiles(checking, below, template.text)


def _check_compiles(checking: Checking, path: str, text: str) -> None:
    try:
        RouteTable([("GET", text, None)])
    except ValueError as error:
        checking.add(path, str(error))


def _check_access(checking: Checking, path: str, controller: Controller) -> None:
    for below, audience in checking.each(controller.audiences, step(path, "audiences")):
        checking.find("audiences", audience, below)
    for _ in checking.each(controller.methods, step(path, "methods")):
        pass
    roles: list[Role | None] = []
    for below, name in checking.each(controller.roles, step(path, "roles")):
        role: Role | None = checking.find("roles", name, below)
        roles.append(role)
        known = role is not None and role.audience in checking.document.audiences
        if role is not None and known and role.audience not in controller.audiences:
            checking.add(below, f"{name} lives in the audience {role.audience}, which the route does not serve")
    rule = controller.permission_rule
    if rule is None or rule.shadow:
        return
    if not any(role is None or rule.name in role.permissions for role in roles):
        checking.add(step(path, "permission"), "none of the route's roles has it: nobody could call the route")


def _check_audit(checking: Checking, path: str, controller: Controller, template: Template) -> None:
    param = controller.audit.id
    if param is not None and param not in template.params:
        checking.add(step(step(path, "audit"), "id"), f"{param} is not a parameter of the path")
    fhir = controller.audit.fhir
    if fhir is None:
        return
    if not template.params.get(fhir):
        checking.add(step(step(path, "audit"), "fhir"), f"{fhir} is no parameter that takes the rest of the path")
    if controller.audit.resource is not None or param is not None:
        checking.add(step(step(path, "audit"), "fhir"), "the path says type and id: not with resource or id")


def _check_limits(checking: Checking, path: str, controller: Controller) -> None:
    for below, name in checking.each(controller.limits, step(path, "limits")):
        limit = checking.find("limits", name, below)
        if limit is not None and limit.per == "unit" and controller.unit is None:
            checking.add(below, f"{name} counts per unit and the route has none")


def _check_query(checking: Checking, path: str, controller: Controller) -> None:
    if controller.query == "any":
        return
    for below, name in checking.each(controller.query, step(path, "query")):
        if not name.isprintable() or not name:
            checking.add(below, "is not the name of a query parameter")
        elif name == "access_token":
            checking.add(below, "a token in the query is always refused")


def _check_action(
    checking: Checking, path: str, controller: Controller, template: Template, resources: Collection[str]
) -> None:
    given = [name for name in ACTIONS if getattr(controller, name) is not None]
    if not given:
        checking.add(path, f"has nothing that answers: give one of {', '.join(ACTIONS)}")
    for name in given[1:]:
        checking.add(step(path, name), f"the route is answered by {given[0]} already")
    if controller.function is not None:
        _check_function(checking, step(path, "function"), controller, controller.function, template)
    if controller.upstream is not None:
        below = step(path, "upstream")
        checking.find("upstreams", controller.upstream.name, step(below, "name"))
        _check_target(checking, below, controller, controller.upstream, template)
    if controller.unit is not None:
        below = step(path, "unit")
        _check_unit(checking, step(below, "unit"), controller.unit.unit, template)
        _check_target(checking, below, controller, controller.unit, template)
    if controller.resource is not None and controller.resource not in resources:
        checking.add(step(path, "resource"), "no entry point of that name in the group caregate.resources")


def _check_unit(checking: Checking, path: str, unit: str, template: Template) -> None:
    kind, colon, param = unit.partition(":")
    if colon:
        if kind != "path":
            checking.add(path, "must be path:PARAM or a unit's id")
        elif param not in template.params:
            checking.add(path, f"{param} is not a parameter of the path")
        elif template.params[param]:
            checking.add(path, f"{param} takes the rest of the path and cannot name a unit")
    elif not _UNIT_ID.match(unit):
        checking.add(path, "must be path:PARAM or a unit's id")
    else:
        checking.find("units", unit, path)


def _check_target(
    checking: Checking, path: str, controller: Controller, action: ToUpstream | ToUnit, template: Template
) -> None:
    if action.target is None:
        return
    below = step(path, "target")
    params = {**template.params, "patient": False} if takes_own_patient(controller) else template.params
    for reason in read_target(action.target, params):
        checking.add(below, reason)
    own = target_query_names(action.target)
    if own and controller.query == "any":
        checking.add(below, "sets query parameters, so the route must list the callers' by name and not take any")
    # SEC: of two parameters of one name the receiver may take the caller's.
    for name in sorted(own.intersection(controller.query if controller.query != "any" else ())):
        checking.add(below, f"sets the query parameter {name}, which callers may send as well")


def _check_function(
    checking: Checking, path: str, controller: Controller, function: Function, template: Template
) -> None:
    below = step(path, "arguments")
    for parameter, text in function.arguments.items():
        place = step(below, parameter)
        if not _PARAMETER.match(parameter):
            checking.add(place, "is not the name of a parameter")
        source = read_source(text)
        if source is None:
            checking.add(place, "must be path:NAME, query:NAME, claim:NAME, body or body:/pointer, with ? if optional")
        else:
            reason = _source_fault(source, controller, template)
            if reason is not None:
                checking.add(place, reason)


def _source_fault(source: Source, controller: Controller, template: Template) -> str | None:
    if source.kind == "path":
        if source.name not in template.params:
            return f"{source.name} is not a parameter of the path"
        return None if source.required else "a parameter of the path is always there, so it cannot be optional"
    if source.kind == "query" and controller.query != "any" and source.name not in controller.query:
        return f"the route does not take the query parameter {source.name}"
    if source.kind == "body":
        bodiless = sorted(BODILESS.intersection(controller.methods))
        if bodiless:
            return f"{bodiless[0]} has no body"
        if controller.body_max_bytes == 0:
            return "the route takes no body: body_max_bytes is 0"
    return None


def _check_conflicts(checking: Checking, templates: dict[str, Template]) -> None:
    """One method and one shape of path belong to one controller."""
    first: dict[tuple[str, str], str] = {}
    controller: Controller
    for path, name, controller in checking.entries("controllers"):
        rivals = {
            rival: method
            for method in reversed(controller.methods)
            if (rival := first.setdefault((method, templates[name].shape), name)) != name
        }
        for rival, method in rivals.items():
            other = step(step(WHOLE, "controllers"), rival)
            checking.add(
                step(path, "path"),
                f"{method} {controller.path} is the same route as {templates[rival].text} of {other}",
            )

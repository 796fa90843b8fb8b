"""Scopes in the document: what a role's tokens may have, what a route needs."""

from __future__ import annotations

from typing import Final

from gateway.config.check_bindings import own_roles
from gateway.config.checking import Checking
from gateway.config.fault import step
from gateway.config.model import Controller, Role
from gateway.config.template import Template
from gateway.rbac.fhir import RESOURCE_TYPES
from gateway.rbac.scopes import INTERACTIONS, UNRESTRICTED, Scopes, covers, read_ceiling, read_need, read_scope
from gateway.routing.model import Need

NONE: Final = "none"
_LETTER_OF_METHOD: Final = {"POST": "c", "PUT": "u", "PATCH": "u", "DELETE": "d", "OPTIONS": ""}


def check_ceiling(checking: Checking, path: str, role: Role) -> None:
    """Note every fault of a role's `scopes`."""
    for below, text in checking.each(role.scopes or (), step(path, "scopes")):
        if "?" in text:
            checking.add(below, "has a restriction (?), which the gateway does not keep: it grants nothing")
        elif read_scope(text) is None:
            checking.add(below, "must be patient|user|system/TYPE.LETTERS, with letters of cruds in this order")


def check_scope(checking: Checking, path: str, controller: Controller, template: Template) -> None:
    """Note what is wrong with the scope a route needs, or that it is not known."""
    below = step(path, "scope")
    rule = controller.scope_rule
    text = rule.need
    if text is not None and (fault := _fault(text, template)) is not None:
        checking.add(below, fault)
        return
    need = need_of(controller)
    for index, name in enumerate(controller.roles):
        role: Role | None = checking.document.roles.get(name)
        if role is None or role.scopes is None or any(read_scope(scope) is None for scope in role.scopes):
            continue
        if need is None:
            checking.add(below, f"is required, because the role {name} has scopes: TYPE.LETTERS, path:PARAM or none")
            return
        ceiling = read_ceiling(role.scopes)
        most = Scopes(ceiling.patient, ceiling.user | ceiling.system, ceiling.contexts)
        if need.param is None and not rule.shadow and not covers(most, need.mask, own=name in own_roles(controller)):
            checking.add(step(step(path, "roles"), index), f"{name} can never have the scope {need.text} here")


def _fault(text: str, template: Template) -> str | None:
    if text == NONE:
        return None
    kind, colon, param = text.partition(":")
    if colon:
        if kind != "path" or param not in template.params:
            return "must name a parameter of the path: path:PARAM"
        return None if template.params[param] else f"{param} does not take the rest of the path"
    return None if read_need(text) else "must be TYPE.LETTERS of FHIR, with letters of cruds in this order"


def need_of(controller: Controller) -> Need | None:
    """What scope a route needs: as declared, else of the audited type and all its methods; None if that is unknown."""
    rule = controller.scope_rule
    text = rule.need
    if text == NONE:
        return Need(NONE, UNRESTRICTED, shadow=rule.shadow)
    if text is not None:
        param = text.removeprefix("path:")
        mask = 0 if param != text else read_need(text)
        return Need(text, mask, param if param != text else None, rule.shadow)
    resource = controller.audit.resource
    if resource not in RESOURCE_TYPES:
        return None
    read = "r" if controller.audit.id is not None else "s"
    letters = {_LETTER_OF_METHOD.get(method, read) for method in controller.methods}
    text = f"{resource}." + "".join(letter for letter in INTERACTIONS if letter in letters)
    return Need(text, mask, shadow=rule.shadow) if (mask := read_need(text)) else None

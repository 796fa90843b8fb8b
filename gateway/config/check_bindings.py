"""Bindings in the document: what of a request must be the caller's own, and where the patient comes from."""

from __future__ import annotations

import re
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from gateway.config.checking import Checking
from gateway.config.fault import WHOLE, step
from gateway.config.model import Bind, Controller
from gateway.config.template import Template, target_params, target_query_names
from gateway.rbac.fhir import RESOURCE_TYPES
from gateway.rbac.search import OF_PATIENT, is_wide

PATIENT: Final = "patient"
MAX_READ_BYTES: Final = 1_048_576
"""Of a body that is decided upon, and so held in memory and parsed."""
BODILESS: Final = frozenset({"GET", "HEAD"})
_SEARCHES: Final = frozenset({"GET", "HEAD", "DELETE"})
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*\Z")
_POINTER = re.compile(r"(/([^~/]|~[01])+)+\Z")
_INDEX = re.compile(r"0[0-9]+\Z")
_BASE = re.compile(r"https?://[a-z0-9.-]+(:[1-9][0-9]{0,4})?(/([A-Za-z0-9._~-]+|\{unit\}))*\Z")


class Bound(NamedTuple):
    """What a `bind[].param` says: see routing.model.Binding."""

    source: str
    param: str
    names: tuple[str, ...] = ()
    steps: tuple[str, ...] = ()


def read_param(text: str) -> Bound | None:
    """NAME, path:NAME, query:NAME|NAME, body:/pointer; None if it is none of them."""
    kind, colon, rest = text.partition(":")
    if not colon or kind == "path":
        return Bound("path", rest if colon else text)
    if kind == "query":
        names = tuple(rest.split("|"))
        return Bound("query", text, names=names) if all(map(_NAME.match, names)) else None
    if kind != "body" or _POINTER.match(rest) is None:
        return None
    steps = tuple(token.replace("~1", "/").replace("~0", "~") for token in rest.split("/")[1:])
    return None if any(map(_INDEX.match, steps)) else Bound("body", rest, steps=steps)


def check_bindings(checking: Checking, path: str, controller: Controller, template: Template) -> None:
    """Note every fault of `bind`, `unbound_roles` and of what a route under `/me` takes from its caller."""
    covered: set[str] = set(controller.roles) if takes_own_patient(controller) else set()
    for index, bind in enumerate(controller.bind):
        below = step(step(path, "bind"), index)
        _check_param(checking, below, bind, controller, template)
        for place, role in checking.each(bind.roles, step(below, "roles")):
            _check_own_role(checking, place, role, controller)
        # SEC: a rule that only watches protects nobody, so it covers nobody.
        if not bind.shadow:
            covered.update(bind.roles or controller.roles)
    for place, role in checking.each(controller.unbound_roles, step(path, "unbound_roles")):
        _check_own_role(checking, place, role, controller)
        if role in covered:
            checking.add(place, f"{role} is bound by an entry of bind")
    if controller.bind or (controller.unit is not None and controller.unit.unit.startswith("path:")):
        for index, role in enumerate(controller.roles):
            place = step(step(path, "roles"), index)
            if role not in covered and role not in controller.unbound_roles and checking.exists("roles", role):
                checking.add(place, f"{role} is in no entry of bind that is in force and not in unbound_roles")
    _check_queries(checking, path, controller)
    if is_me(controller):
        _check_me(checking, path, controller, template)


def _check_own_role(checking: Checking, path: str, role: str, controller: Controller) -> None:
    if role not in controller.roles:
        checking.add(path, f"{role} is not a role of the route")


def _check_param(checking: Checking, path: str, bind: Bind, controller: Controller, template: Template) -> None:
    place = step(path, "param")
    bound = read_param(bind.param)
    if bound is None:
        checking.add(place, "must be a parameter of the path, query:NAME or body:/json/pointer")
        return
    if bind.reference is not None and bound.source == "path":
        checking.add(step(path, "reference"), "is for the query and the body: a parameter of the path is an id")
    elif bind.reference is not None and bind.reference not in RESOURCE_TYPES:
        checking.add(step(path, "reference"), f"{bind.reference} is not a type of resource of FHIR")
    fault = {"path": _path_fault, "query": _query_fault, "body": _body_fault}[bound.source](bound, controller, template)
    if fault is not None:
        checking.add(place, fault)


def _path_fault(bound: Bound, controller: Controller, template: Template) -> str | None:
    if bound.param not in template.params:
        return f"{bound.param} is not a parameter of the path"
    return (
        f"{bound.param} takes the rest of the path and cannot equal a claim" if template.params[bound.param] else None
    )


def _query_fault(bound: Bound, controller: Controller, template: Template) -> str | None:
    if controller.query == "any":
        return "the route takes any query: list the parameters, or one of another name could say another thing"
    for name in bound.names:
        if name not in controller.query:
            return f"the route does not take the query parameter {name}"
    writing = [method for method in controller.methods if method not in _SEARCHES]
    return f"{writing[0]} has parameters in its body as well, which nothing binds" if writing else None


def _body_fault(bound: Bound, controller: Controller, template: Template) -> str | None:
    bodiless = sorted(BODILESS.intersection(controller.methods))
    if bodiless:
        return f"{bodiless[0]} has no body"
    if controller.body_max_bytes == 0:
        return "the route takes no body: body_max_bytes is 0"
    if controller.body_max_bytes > MAX_READ_BYTES:
        return f"a body that is bound is read whole: body_max_bytes must be at most {MAX_READ_BYTES}"
    return None


def _check_queries(checking: Checking, path: str, controller: Controller) -> None:
    """SEC: what a caller who is bound to a patient may ask of a server behind is listed, and nothing of it is wide."""
    own = own_roles(controller)
    if not own or not is_forwarded(controller):
        return
    below = step(path, "query")
    action = controller.unit or controller.upstream
    of_target = target_query_names(action.target or "") if action is not None else frozenset()
    if controller.query == "any":
        if not of_target:  # where there are, they are the reason
            checking.add(below, f"any is not for {min(own)}, who is bound to a patient: list the parameters")
        return
    params = [read_param(bind.param) for bind in controller.bind if not bind.shadow]
    known = of_target.union(*(bound.names for bound in params if bound is not None))
    for index, name in enumerate(controller.query):
        place = step(below, index)
        if name in OF_PATIENT and name not in known and None not in params and not is_me(controller):
            checking.add(place, f"{name} names a patient, and {min(own)} is bound to one: bind it (query:{name})")
        elif is_wide(name) and own.issuperset(controller.roles):
            checking.add(place, "reaches beyond the caller's own records, so every role of the route is refused it")


def _check_me(checking: Checking, path: str, controller: Controller, template: Template) -> None:
    """Under /me the patient is the token's, never the caller's word."""
    why = "under /me the patient is the token's"
    for name in sorted(OF_PATIENT.intersection(template.params)):
        checking.add(step(path, "path"), f"has the parameter {name}: {why}")
    if controller.query == "any":
        if is_forwarded(controller) and not own_roles(controller):
            checking.add(step(path, "query"), f"any would let callers name one: {why}")
        return
    for index, name in enumerate(controller.query):
        if name.partition(":")[0] in OF_PATIENT:
            checking.add(step(step(path, "query"), index), f"{name} is the caller's word: {why}")
    if controller.function is not None:
        for argument, source in controller.function.arguments.items():
            named = re.split(r"[:/]", source.removesuffix("?"))
            if named[0] != "claim" and named[-1] in OF_PATIENT:
                checking.add(step(step(step(path, "function"), "arguments"), argument), f"{why}: write claim:patient")


def check_bases(checking: Checking) -> None:
    """Note every fault of `gateway.fhir_bases`."""
    for below, base in checking.each(checking.document.gateway.fhir_bases, step(step(WHOLE, "gateway"), "fhir_bases")):
        if _BASE.match(base) is None or not urlsplit(base).hostname:
            checking.add(
                below, "must be https://host/path in lower case, without a slash at its end; {unit} is a whole segment"
            )


# --- what follows from a controller


def is_me(controller: Controller) -> bool:
    """Is it a route of the caller's own, under `/me`?"""
    return "me" in controller.path.split("/")


def is_forwarded(controller: Controller) -> bool:
    """Is it another's server that reads the request?"""
    return controller.unit is not None or controller.upstream is not None


def takes_own_patient(controller: Controller) -> bool:
    """Does what is sent on name the patient of the token?"""
    action = controller.unit or controller.upstream
    return is_me(controller) and action is not None and PATIENT in target_params(action.target or "")


def own_roles(controller: Controller) -> frozenset[str]:
    """Roles that are tied to the patient of their token."""
    function = controller.function
    if takes_own_patient(controller) or (function is not None and "claim:patient" in function.arguments.values()):
        return frozenset(controller.roles)
    bound = (bind.roles or controller.roles for bind in controller.bind if bind.claim == PATIENT and not bind.shadow)
    return frozenset(role for roles in bound for role in roles)


def searched_roles(controller: Controller) -> frozenset[str]:
    """Roles whose query may not reach beyond the records it searches."""
    roles = set(own_roles(controller)) if is_forwarded(controller) else set()
    if controller.consent is not None and not controller.consent.shadow and is_forwarded(controller):
        roles.update(controller.consent.roles or controller.roles)  # asked for one patient, and so for no other
    for bind in controller.bind:
        if not bind.shadow and bind.param.startswith("query:"):
            roles.update(bind.roles or controller.roles)
    return frozenset(roles)

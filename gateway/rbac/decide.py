"""May this principal use this route on these parameters? Pure: no I/O, no clock, nothing remembered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gateway.context import Principal
from gateway.errors import BindingRefused, ClientError, NotFound, PermissionRefused, RoleRefused, TokenInvalid
from gateway.routing.model import Binding, Route


@dataclass(frozen=True, slots=True)
class Decision:
    """`rule` names the rule that decided; `error` is the class to raise, None exactly if allowed.

    `hidden`: the refusal must look as if nothing were there.
    """

    allowed: bool
    rule: str
    hidden: bool = False
    error: type[ClientError] | None = None


ALLOWED = Decision(True, "allowed")
WRONG_AUDIENCE = Decision(False, "audience", error=TokenInvalid)
WRONG_AUDIENCE_HIDDEN = Decision(False, "audience", hidden=True, error=NotFound)
WRONG_ROLE = Decision(False, "role", error=RoleRefused)
NO_PERMISSION = Decision(False, "permission", error=PermissionRefused)
NOT_BOUND = Decision(False, "binding", error=BindingRefused)
NOT_BOUND_HIDDEN = Decision(False, "binding", hidden=True, error=NotFound)
NOT_COVERED = Decision(False, "binding-uncovered", error=BindingRefused)


def decide(principal: Principal, route: Route, params: Mapping[str, str]) -> Decision:
    """Audience, role, permission, bindings, in this order; the first that refuses decides.

    Shapes: `params` are the path parameters, percent-decoded.
    """
    if is_hidden_from(principal, route):
        return WRONG_AUDIENCE_HIDDEN
    if principal.audience not in route.audiences:
        return WRONG_AUDIENCE
    if principal.role not in route.roles:
        return WRONG_ROLE
    if route.permission is not None and route.permission not in principal.permissions:
        return NO_PERMISSION
    if route.bindings:
        return _bound(principal, route, params)
    return ALLOWED


def is_hidden_from(principal: Principal | None, route: Route) -> bool:
    """Is this a principal to whom the route must look as if it did not exist?"""
    return route.hidden and principal is not None and principal.audience not in route.audiences


def _bound(principal: Principal, route: Route, params: Mapping[str, str]) -> Decision:
    role = principal.role
    covered = role in route.unbound_roles
    for binding in route.bindings:
        if binding.roles and role not in binding.roles:
            continue
        if not _satisfied(binding, principal, params):
            return NOT_BOUND_HIDDEN if binding.hidden else NOT_BOUND
        covered = True
    # SEC: a role nobody thought of when the bindings were written sees nothing, rather than everything.
    return ALLOWED if covered else NOT_COVERED


def _satisfied(binding: Binding, principal: Principal, params: Mapping[str, str]) -> bool:
    """The parameter equals the claim, or is one of its members; strings only, byte for byte."""
    value = params.get(binding.param)
    if not value:
        return False
    claim = principal.claims.get(binding.claim)
    if isinstance(claim, str):
        return claim == value
    if isinstance(claim, list):
        # SEC: only strings count: 1 is not "1", and a nested list or an object never matches by its spelling.
        return any(isinstance(member, str) and member == value for member in claim)
    return False

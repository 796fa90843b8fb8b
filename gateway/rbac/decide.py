"""May this principal use this route on these parameters? Pure: no I/O, no clock, nothing remembered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gateway.context import Principal
from gateway.errors import (
    BindingRefused,
    ClientError,
    Forbidden,
    NotFound,
    PermissionRefused,
    RoleRefused,
    ScopeRefused,
    TokenInvalid,
)
from gateway.rbac.fhir import interaction_of
from gateway.rbac.scopes import Scopes, covers, mask_of, named
from gateway.routing.model import Binding, Need, Route


@dataclass(frozen=True, slots=True)
class Decision:
    """`rule` names the rule that decided; `error` is the class to raise, None exactly if allowed.

    `hidden`: the refusal must look as if nothing were there. `scope` is the one that would have done.
    """

    allowed: bool
    rule: str
    hidden: bool = False
    error: type[ClientError] | None = None
    scope: str = ""

    def refusal(self) -> ClientError:
        """What to raise."""
        if self.error is ScopeRefused:
            return ScopeRefused(self.scope)
        return (self.error or Forbidden)()


ALLOWED = Decision(True, "allowed")
WRONG_AUDIENCE = Decision(False, "audience", error=TokenInvalid)
WRONG_AUDIENCE_HIDDEN = Decision(False, "audience", hidden=True, error=NotFound)
WRONG_ROLE = Decision(False, "role", error=RoleRefused)
NO_PERMISSION = Decision(False, "permission", error=PermissionRefused)
NOT_BOUND = Decision(False, "binding", error=BindingRefused)
NOT_BOUND_HIDDEN = Decision(False, "binding", hidden=True, error=NotFound)
NOT_COVERED = Decision(False, "binding-uncovered", error=BindingRefused)


def decide(principal: Principal, route: Route, params: Mapping[str, str], method: str = "") -> Decision:
    """Audience, role, permission, scope, bindings, in this order; the first that refuses decides.

    Shapes: `params` are the path parameters, percent-decoded; without them a route that `varies` is not decided.
    """
    if is_hidden_from(principal, route):
        return WRONG_AUDIENCE_HIDDEN
    if principal.audience not in route.audiences:
        return WRONG_AUDIENCE
    if principal.role not in route.roles:
        return WRONG_ROLE
    if route.permission is not None and route.permission not in principal.permissions:
        return NO_PERMISSION
    scopes = principal.scopes
    if scopes is not None:
        need = _need(route.need, params, method)
        if need is None or not covers(scopes, need.mask, own=principal.role in route.own_roles):
            return _out_of_scope(scopes, need, route, principal.role)
    if route.bindings:
        return _bound(principal, route, params)
    return ALLOWED


def varies(route: Route) -> bool:
    """Do the parameters or the method of a request have a say in the decision?"""
    return bool(route.bindings) or (route.need is not None and route.need.param is not None)


def is_hidden_from(principal: Principal | None, route: Route) -> bool:
    """Is this a principal to whom the route must look as if it did not exist?"""
    return route.hidden and principal is not None and principal.audience not in route.audiences


def _need(need: Need | None, params: Mapping[str, str], method: str) -> Need | None:
    """What this request needs; None for what no scope allows."""
    if need is None or need.param is None:
        return need
    interaction = interaction_of(method, params.get(need.param, ""))
    if interaction is None:
        return None
    resource, letters = interaction
    return Need(f"{resource}.{letters}", mask_of(resource, letters))


def _out_of_scope(scopes: Scopes, need: Need | None, route: Route, role: str) -> Decision:
    text = "" if need is None or not need.mask else named(scopes, need.text, own=role in route.own_roles)
    return Decision(False, "scope", error=ScopeRefused, scope=text)


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

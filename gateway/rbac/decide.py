"""May this principal use this route on these parameters? Pure: no I/O, no clock, nothing remembered."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from gateway.context import Principal
from gateway.errors import (
    BindingRefused,
    ClientError,
    Forbidden,
    NotFound,
    PermissionRefused,
    QueryRefused,
    RoleRefused,
    ScopeRefused,
    SearchRefused,
    TokenInvalid,
)
from gateway.rbac.fhir import interaction_of
from gateway.rbac.reference import applies, is_claimed
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
    detail: str = ""

    def refusal(self) -> ClientError:
        """What to raise."""
        if self.error is ScopeRefused:
            return ScopeRefused(self.scope)
        return (self.error or Forbidden)(self.detail)


SCOPE = "scope"
ALLOWED = Decision(True, "allowed")
WRONG_AUDIENCE = Decision(False, "audience", error=TokenInvalid)
WRONG_AUDIENCE_HIDDEN = Decision(False, "audience", hidden=True, error=NotFound)
WRONG_ROLE = Decision(False, "role", error=RoleRefused)
NO_PERMISSION = Decision(False, "permission", error=PermissionRefused)
NOT_BOUND = Decision(False, "binding", error=BindingRefused)
NOT_BOUND_HIDDEN = Decision(False, "binding", hidden=True, error=NotFound)
SEARCH_REFUSED = Decision(False, "search", error=SearchRefused)
SEARCH_ABSENT = Decision(
    False, "search", error=QueryRefused, detail="The query lacks the parameter that binds it to the caller"
)
NOT_COVERED = Decision(False, "binding-uncovered", error=BindingRefused)


def decide(principal: Principal, route: Route, params: Mapping[str, str], method: str = "") -> Decision:
    """Audience, role, permission, scope, bindings, in this order; the first that refuses decides.

    Shapes: `params` are the path parameters, percent-decoded; without them a route that `varies` is not decided.
    Bindings of the query and the body are decided in rbac.search and rbac.document.
    """
    if is_hidden_from(principal, route):
        return WRONG_AUDIENCE_HIDDEN
    if principal.audience not in route.audiences:
        return WRONG_AUDIENCE
    if principal.role not in route.roles:
        return WRONG_ROLE
    if not route.permission_shadow and _lacks_permission(principal, route):
        return NO_PERMISSION
    if not is_scope_watched(route) and (refused := _scope_refusal(principal, route, params, method)) is not None:
        return refused
    if route.own_patient and not isinstance(principal.claims.get("patient"), str):
        return NOT_BOUND
    if route.bindings:
        return _bound(principal, route, params)
    return ALLOWED


def watched_refusals(principal: Principal, route: Route, params: Mapping[str, str], method: str) -> Iterator[str]:
    """The rules that only watch and would have refused a request that `decide` allows: permission, scope, path."""
    if route.permission_shadow and _lacks_permission(principal, route):
        yield NO_PERMISSION.rule
    if is_scope_watched(route) and _scope_refusal(principal, route, params, method) is not None:
        yield SCOPE
    for binding in route.bindings:
        watches = binding.shadow and binding.source == "path" and applies(binding, principal.role)
        if watches and not is_satisfied(binding, principal, params):
            yield binding.rule


def is_scope_watched(route: Route) -> bool:
    """Do scopes refuse nothing on this route?"""
    return route.need is not None and route.need.shadow


def is_read(route: Route, params: Mapping[str, str], method: str) -> bool:
    """Does a request only read: by its method, or a POST by what the route says its scope is, `r` and `s` alone?"""
    if method in ("GET", "HEAD"):
        return True
    need = _need(route.need, params, method)
    return method == "POST" and only_reads(need)


def only_reads(need: Need | None) -> bool:
    """Is what the route needs reading and searching, and nothing else?"""
    return need is not None and need.mask != 0 and set(need.text.rpartition(".")[2]) <= {"r", "s"}


def varies(route: Route) -> bool:
    """Do the parameters or the method of a request have a say in the decision?"""
    return any(binding.source == "path" for binding in route.bindings) or (
        route.need is not None and route.need.param is not None
    )


def is_hidden_from(principal: Principal | None, route: Route) -> bool:
    """Is this a principal to whom the route must look as if it did not exist?"""
    return route.hidden and principal is not None and principal.audience not in route.audiences


def _lacks_permission(principal: Principal, route: Route) -> bool:
    return route.permission is not None and route.permission not in principal.permissions


def _scope_refusal(principal: Principal, route: Route, params: Mapping[str, str], method: str) -> Decision | None:
    scopes = principal.scopes
    if scopes is None:
        return None
    need = _need(route.need, params, method)
    if need is not None and covers(scopes, need.mask, own=principal.role in route.own_roles):
        return None
    return _out_of_scope(scopes, need, route, principal.role)


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
    return Decision(False, SCOPE, error=ScopeRefused, scope=text)


def _bound(principal: Principal, route: Route, params: Mapping[str, str]) -> Decision:
    role = principal.role
    covered = role in route.unbound_roles or route.own_patient
    for binding in route.bindings:
        # SEC: a rule that only watches protects nobody.
        if binding.shadow or not applies(binding, role):
            continue
        if binding.source == "path" and not is_satisfied(binding, principal, params):
            return NOT_BOUND_HIDDEN if binding.hidden else NOT_BOUND
        covered = True
    # SEC: a role nobody thought of when the bindings were written sees nothing, rather than everything.
    return ALLOWED if covered else NOT_COVERED


def is_satisfied(binding: Binding, principal: Principal, params: Mapping[str, str]) -> bool:
    """Is the parameter of the path what the claim says?"""
    value = params.get(binding.param)
    return bool(value) and is_claimed(value or "", principal.claims.get(binding.claim))

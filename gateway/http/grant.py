"""What follows from a principal and a route alone: worked out at the first request, kept with the principal."""

from __future__ import annotations

from fastpath.lane import Grant
from gateway.context import Principal
from gateway.rbac.decide import decide, varies
from gateway.routing.model import Route


def grant_of(principal: Principal, route: Route) -> Grant:
    """The principal's grant on a route.

    PERF: `policy_rs256` of `make bench`. A principal is made for one snapshot, in which a route's name is unique.
    """
    grant: Grant | None = principal.grants.get(route.name)
    # SEC: the route itself is compared, so that a principal that met another snapshot brings nothing along from it.
    if grant is None or grant.route is not route:
        grant = Grant(route, None if varies(route) else decide(principal, route, {}))
        principal.grants[route.name] = grant
    return grant

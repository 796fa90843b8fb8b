"""Falcon's router seam over the snapshot's route table, matching the canonical raw path and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastpath.routes import RouteConflict, RouteTable
from fastpath.target import decode_segment
from gateway.errors import InternalError, MethodNotMapped, NotFound
from gateway.rbac.decide import WRONG_AUDIENCE_HIDDEN, is_hidden_from
from gateway.routing.kinds import Endpoint, ResourceTable, Responder, endpoint
from gateway.routing.model import RESERVED_PREFIXES, Route

if TYPE_CHECKING:
    import falcon

    from gateway.config.snapshot import Snapshot, SnapshotHolder
    from gateway.context import RequestContext

Found = tuple[object, dict[str, Responder], dict[str, Any], str]


class Router:
    """Finds what answers a request: a route of the configuration, or one of the gateway's own resources.

    A path under a reserved prefix is the gateway's own: a route of the configuration that matches any path gets none.
    """

    def __init__(self, holder: SnapshotHolder, resources: ResourceTable) -> None:
        self._holder = holder
        self._resources = resources
        self._targets: dict[str, Endpoint] = {}
        self._targets_of: Snapshot | None = None
        self._own: dict[str, Endpoint] = {}
        self._own_table: RouteTable[str] = RouteTable(())

    def add_route(self, uri_template: str, resource: object, **kwargs: Any) -> None:
        """Mount one of the gateway's own resources; `suffix` as in Falcon.

        Raises: RouteConflict, ValueError for a bad template, TypeError for a resource without responders.
        """
        if uri_template in self._own:
            raise RouteConflict(f"{uri_template!r} is mounted twice")
        own = {**self._own, uri_template: endpoint(resource, kwargs.get("suffix"))}
        rows = [(method, template, template) for template, target in own.items() for method in target.responders]
        self._own_table = RouteTable(rows)
        self._own = own

    def own_methods(self, path: str) -> list[str]:
        """The methods of the gateway's own resource at a path; none where there is none."""
        return list(self._own_table.allowed(path))

    def find(self, uri: str, req: falcon.Request | None = None) -> Found:
        """What answers the request; fills `route` and `params` of its context. `uri` is not looked at.

        Raises: NotFound, MethodNotMapped.
        """
        # SEC: `uri` is WSGI's PATH_INFO, decoded once: an escaped slash or NUL has become a real one in it.
        assert req is not None  # noqa: S101
        ctx: RequestContext = req.context.gateway
        if ctx.snapshot is None:
            ctx.snapshot = self._holder.current
        snapshot: Snapshot = ctx.snapshot
        found = None if ctx.path.startswith(RESERVED_PREFIXES) else snapshot.routes.match(req.method, ctx.path)
        if found is None:
            return self._find_own(req.method, ctx, snapshot)
        route, raw = found
        params = {name: decode_segment(value) for name, value in raw.items()} if raw else {}
        if route.hidden and is_hidden_from(ctx.principal, route):
            # SEC: refused here, so that no limit of the route or the role shows in the answer's fields.
            ctx.route, ctx.params, ctx.rule = route, params, WRONG_AUDIENCE_HIDDEN.rule
            raise NotFound()
        target = self.endpoint(route, snapshot)
        if req.method not in target.responders:
            raise _not_mapped([method for method in route.methods if method in target.responders])
        ctx.route, ctx.params = route, params
        return target.resource, target.responders, params if target.takes_fields else {}, route.template

    def endpoint(self, route: Route, snapshot: Snapshot) -> Endpoint:
        """A route's endpoint, remembered as long as its snapshot is the one in use.

        Raises: InternalError if nothing answers it.
        """
        target = self._targets.get(route.name) if snapshot is self._targets_of else None
        if target is not None:
            return target
        if snapshot is not self._targets_of:
            self._targets, self._targets_of = {}, snapshot
        try:
            target = self._targets[route.name] = self._resources.of(route)
        except LookupError:
            raise InternalError("Nothing answers this route here") from None
        return target

    def _find_own(self, method: str, ctx: RequestContext, snapshot: Snapshot) -> Found:
        found = self._own_table.match(method, ctx.path)
        if found is None:
            raise self._refusal(ctx, snapshot)
        template, raw = found
        target = self._own[template]
        ctx.params = params = {name: decode_segment(value) for name, value in raw.items()}
        return target.resource, target.responders, params if target.takes_fields else {}, template

    def _refusal(self, ctx: RequestContext, snapshot: Snapshot) -> NotFound | MethodNotMapped:
        methods = list(self._own_table.allowed(ctx.path))
        if not ctx.path.startswith(RESERVED_PREFIXES):
            # SEC: a hidden route must not show itself by its methods either.
            methods += [method for method in snapshot.routes.allowed(ctx.path) if _visible(method, ctx, snapshot)]
        return _not_mapped(methods) if methods else NotFound()


def _visible(method: str, ctx: RequestContext, snapshot: Snapshot) -> bool:
    found = snapshot.routes.match(method, ctx.path)
    if found is None or not found[0].hidden:
        return found is not None
    return ctx.principal is not None and ctx.principal.audience in found[0].audiences


def _not_mapped(methods: list[str]) -> MethodNotMapped:
    return MethodNotMapped(headers=(("Allow", ", ".join(sorted(set(methods)))),))

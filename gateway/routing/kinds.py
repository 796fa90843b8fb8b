"""What answers a route: from its kind to the resource and the responder of each method."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from gateway.routing.model import ResourceAction, Route, RouteKind

METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")
ENTRY_POINT_GROUP = "caregate.resources"

Responder = Callable[..., None]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A Falcon resource as the router hands it out.

    `takes_fields`: its responders want the path parameters as keyword arguments, as Falcon's own router passes them.
    """

    resource: object
    responders: dict[str, Responder]
    takes_fields: bool


def endpoint(resource: object, suffix: str | None = None) -> Endpoint:
    """Map a resource's responders: `on_request(req, resp)` for every method, or `on_get(req, resp, **fields)`.

    Raises: TypeError if it has none.
    """
    tail = f"_{suffix}" if suffix else ""
    every = getattr(resource, f"on_request{tail}", None)
    if every is not None:
        return Endpoint(resource, dict.fromkeys(METHODS, every), takes_fields=False)
    found = {method: getattr(resource, f"on_{method.lower()}{tail}", None) for method in METHODS}
    responders = {method: responder for method, responder in found.items() if responder is not None}
    if not responders:
        raise TypeError(f"{type(resource).__name__} has no responders{' for suffix ' + suffix if suffix else ''}")
    return Endpoint(resource, responders, takes_fields=True)


class ResourceTable:
    """Which resource answers each kind of route; a kind without one is not served."""

    def __init__(
        self,
        *,
        function: object | None = None,
        upstream: object | None = None,
        unit: object | None = None,
        entry_points: Mapping[str, object] | None = None,
    ) -> None:
        """Shapes: `entry_points` maps the name of an entry point to its resource.

        Raises: TypeError for a resource without responders.
        """
        kinds = {RouteKind.FUNCTION: function, RouteKind.UPSTREAM: upstream, RouteKind.UNIT: unit}
        self._kinds = {kind: endpoint(resource) for kind, resource in kinds.items() if resource is not None}
        self._entry_points = {name: endpoint(resource) for name, resource in (entry_points or {}).items()}

    def of(self, route: Route) -> Endpoint:
        """The endpoint of a route.

        Raises: LookupError if this gateway has none for it.
        """
        if isinstance(route.action, ResourceAction):
            return self._entry_points[route.action.entry_point]
        return self._kinds[route.kind]


def entry_points() -> dict[str, Any]:
    """The resources that installed distributions offer to `resource:` controllers; of a class, an instance.

    Raises: whatever an entry point raises when it is loaded.
    """
    loaded = {point.name: point.load() for point in metadata.entry_points(group=ENTRY_POINT_GROUP)}
    return {name: found() if isinstance(found, type) else found for name, found in loaded.items()}

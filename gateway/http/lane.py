"""What the compiled lane through the policy asks of the middleware: what is new to it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from fastpath.bucket import BucketTable
from fastpath.lane import Charge, Grant, Lane, Rule
from fastpath.target import decode_segment
from gateway.config.snapshot import Snapshot, SnapshotHolder
from gateway.context import RequestContext
from gateway.http.address import client_address
from gateway.http.admission import Admission
from gateway.http.identity import Identity, scopes_of
from gateway.http.named import may_name
from gateway.http.trace import note_trace
from gateway.metrics import Metrics
from gateway.rbac.decide import Decision, decide, is_hidden_from
from gateway.routing.model import RESERVED_PREFIXES
from gateway.routing.router import Router


class Lanes:
    """The lane of the snapshot in force, made anew with each.

    Implements the `policy` of fastpath.lane.Lane.
    """

    def __init__(
        self,
        holder: SnapshotHolder,
        buckets: BucketTable,
        metrics: Metrics,
        admission: Admission,
        identity: Identity,
        router: Router,
        intent: Callable[[RequestContext], None],
        clock_s: Callable[[], float] = time.time,
    ) -> None:
        self._buckets = buckets
        self._metrics = metrics
        self._admission = admission
        self._router = router
        self._clock_s = clock_s
        self.intent = intent
        """What is done between authorization and the resource of a `phi` route: see Authorization."""
        self.identify, self.refused, self.scopes = identity.identify, identity.refused, scopes_of
        self.bucket: Callable[[Rule, RequestContext], int] = admission.bucket
        self.decode = decode_segment
        self.trace = note_trace
        self._renew(holder.current)
        holder.subscribe(self._renew)

    def _renew(self, snapshot: Snapshot) -> None:
        self._admission.forget_rules()
        lane = Lane(
            self, snapshot, self._buckets, self._metrics.cells, self._metrics.cell("caregate_requests_in_flight"),
            RESERVED_PREFIXES, self._clock_s, time.monotonic_ns,
        )  # fmt: skip
        self.enter: Callable[[dict[str, Any], object], int] = lane.enter

    def address_charges(self, snapshot: Snapshot) -> tuple[Charge, ...]:
        """What every request is charged by its address."""
        return self._admission.charges(snapshot.address_limits)

    def client_address(self, env: dict[str, Any], snapshot: Snapshot) -> str:
        """Whose address counts, behind proxies."""
        peer: str = env["caregate.peer"]
        return client_address(
            peer, env.get("HTTP_X_FORWARDED_FOR"), snapshot.trusted_proxies, env.get("HTTP_FORWARDED")
        )

    def grant(self, ctx: RequestContext) -> Grant:
        """The standing of the caller's role on the route, with one caller's buckets: the lane gives each its own.

        Raises: InternalError if nothing answers the route.
        """
        principal, route = ctx.principal, ctx.route
        assert principal is not None  # noqa: S101
        assert route is not None  # noqa: S101
        grant = self._admission.grant(ctx, principal, route)
        target = self._router.endpoint(route, ctx.snapshot)
        grant.resource, grant.responders, grant.takes_fields = target.resource, target.responders, target.takes_fields
        grant.hidden = is_hidden_from(principal, route)
        grant.plain = not route.careful
        grant.told = may_name(route)
        return grant

    def decide(self, ctx: RequestContext) -> Decision:
        """The decision where path parameters have a say."""
        assert ctx.principal is not None  # noqa: S101
        assert ctx.route is not None  # noqa: S101
        return decide(ctx.principal, ctx.route, ctx.params, ctx.method)

"""What the gateway knows of one request, filled in as it passes the policy steps."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fastpath.responses import RequestIds

if TYPE_CHECKING:
    from fastpath.lane import Grant
    from gateway.errors import GatewayError
    from gateway.rbac.scopes import Scopes
    from gateway.routing.model import Route
    from gateway.tracing.tracer import OpenSpan


if TYPE_CHECKING:

    @dataclass(frozen=True, slots=True)
    class Principal:
        """Who calls, as a verified token says.

        Shapes: `claims` is the token's payload; `unit_ids` and the like stay in claims and are read by bindings.
        Units: `expires_at_s` seconds since 1970.
        """

        subject: str
        issuer: str
        audience: str
        role: str
        permissions: frozenset[str]
        token_id: str
        key_id: str
        expires_at_s: float
        claims: dict[str, Any]
        grants: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)
        """What the policy steps worked out for this principal, by route; it holds as long as the snapshot does."""
        scopes: Scopes | None = None
        """What its scopes grant; None for a role without scopes."""

    @dataclass(slots=True)
    class RequestContext:
        """One request from its first byte to its audit row; lives on `req.context`.

        Units: `started_ns` and `deadline_ns` are monotonic nanoseconds; durations `*_ns` too.
        """

        id: str
        started_ns: int
        method: str = ""
        path: str = ""
        """The canonical raw path (percent-encoded ASCII): what was matched is what is forwarded."""
        query: str = ""
        client_address: str = ""
        snapshot: Any = None
        principal: Principal | None = None
        route: Route | None = None
        params: dict[str, str] = field(default_factory=dict)
        """Path parameters, percent-decoded."""
        deadline_ns: int = 0
        limit_headers: tuple[tuple[str, str], ...] = ()
        limits_taken: list[Any] = field(default_factory=list)
        """What `http.admission` charged for this request, to be given back if a later limit refuses."""
        error: GatewayError | None = None
        unit: str | None = None
        agent: str = ""
        """The software that answers for the unit, as it named itself."""
        trace: str = ""
        """Its W3C trace id: the caller's, if it sent a good one, or ours."""
        span: OpenSpan | None = None
        """Where the request is traced: see gateway.tracing.tracer."""
        delivery: str | None = None
        relay_source: str | None = None
        upstream_ns: int = 0
        """From the moment the request went to what answers it, waiting for a place and relaying included."""
        queue_ns: int = 0
        """Of that, how long it waited for a connection."""
        unit_ns: int = 0
        """Of that, how long the unit's own service took, as its agent says."""
        grant: Grant | None = None
        """What principal and route alone decide, once both are known."""
        keyed: bool = False
        """It carries an idempotency key, and all agents of its unit keep a ledger."""
        rule: str = ""
        """Which rule decided, for log and audit: `token:expired`, `role`, `binding:patient`, `limit:partner`."""
        purpose: str = ""
        """Purpose of use, where the route asks for one."""
        shadow: str = ""
        """Rules that only watch and would have refused the request, with commas between them."""
        told: tuple[str, str] | None = None
        """Id and patient of a FHIR resource, as a body that was read, or the answer to a create, names them."""
        also: tuple[str, ...] = ()
        """Patients beside that one whom a body names: a search by form, a batch."""
        intent_recorded: bool = False
        """The audit intent is durable: whatever happens now, it happened to a recorded request."""

else:
    from fastpath.context import Principal as Principal
    from fastpath.context import RequestContext as RequestContext


def deadline_of(ctx: RequestContext, route: Route) -> int:
    """When everything the route does must be over. Units: monotonic nanoseconds."""
    return ctx.deadline_ns or ctx.started_ns + route.deadline_ms * 1_000_000


def note_shadow(ctx: RequestContext, rule: str) -> None:
    """A rule that only watches would have refused the request."""
    if rule not in ctx.shadow.split(","):
        ctx.shadow = f"{ctx.shadow},{rule}" if ctx.shadow else rule


_ids = RequestIds(os.urandom)


def _forget_entropy() -> None:
    """In a forked child: what the parent drew is the parent's."""
    global _ids
    _ids = RequestIds(os.urandom)


os.register_at_fork(after_in_child=_forget_entropy)


def new_request_id() -> str:
    """A random UUID (RFC 9562 version 4), lower case.

    Source: os.urandom; the id names a request in answers, logs and audit and must not be guessable.
    """
    text: str = _ids.next()
    return text

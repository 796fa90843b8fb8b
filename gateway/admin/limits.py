"""Rate limits as they are now: the table of buckets, each limit's refusals, the bucket of one key."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from gateway.admin import permissions
from gateway.admin.desk import Desk
from gateway.admin.operation import Body, Call, Operation, Reply
from gateway.admin.types import Name
from gateway.config.compile import compile_limit
from gateway.errors import NotFound, QueryRefused
from gateway.http.admission import address_block
from gateway.routing.model import LimitKey

Text = Annotated[str, Meta(min_length=1, max_length=256)]
OWNER: dict[LimitKey, tuple[str, ...]] = {
    LimitKey.ADDRESS: ("address",),
    LimitKey.PRINCIPAL: ("issuer", "subject"),
    LimitKey.ROLE: ("role",),
    LimitKey.ROUTE: ("route",),
    LimitKey.UNIT: ("unit",),
}
"""What names a bucket of each kind of limit."""


class Buckets(msgspec.Struct, frozen=True, kw_only=True):
    """Of all limits together, since the gateway started.

    Shapes: `used` slots hold a key, full buckets included; `overflow_takes` were charged to a bucket that all keys of a
    limit share, because there was no room; `contended` were refused because another worker held the lock.
    """

    capacity: int
    slots: int
    used: int
    evictions: int
    overflow_takes: int
    contended: int


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """`rate` in `period_s` seconds on average, `burst` at once; `refusals` in all workers since the gateway started."""

    name: str
    per: str
    rate: int
    period_s: int
    burst: int
    refusals: int


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    buckets: Buckets
    items: list[Rule]


class State(msgspec.Struct, frozen=True, kw_only=True):
    """A bucket. Units: milliseconds, until the next token (0: there is one) and until it is full."""

    name: str
    per: str
    burst: int
    left: int
    wait_ms: int
    full_in_ms: int


class OfLimit(Body, frozen=True):
    limit: Name


class Owner(Body, frozen=True):
    """Whose bucket: `address`; `issuer` and `subject`; `role`; `route`; or `unit`, as the limit is per."""

    address: Text | None = None
    issuer: Text | None = None
    subject: Text | None = None
    role: Text | None = None
    route: Text | None = None
    unit: Text | None = None


def list_limits(desk: Desk, call: Call) -> Reply:
    refusals = desk.metrics.totals("caregate_limit_refusals")
    rules = [
        Rule(
            name=name, per=rule.per, rate=rule.rate, period_s=rule.period_s, burst=rule.burst,
            refusals=int(refusals.get((name,), 0)),
        )
        for name, rule in sorted(call.snapshot.document.limits.items())
    ]  # fmt: skip
    return Reply(Limits(buckets=Buckets(**desk.admission.figures()), items=rules))


def show_limit(desk: Desk, call: Call) -> Reply:
    rule = call.snapshot.document.limits.get(call.path.limit)
    if rule is None:
        raise NotFound("No such limit")
    limit = compile_limit(call.path.limit, rule)
    wanted = OWNER[limit.per]
    given = {name: value for name, value in msgspec.structs.asdict(call.query).items() if value is not None}
    if given.keys() != set(wanted):
        raise QueryRefused(f"A limit per {limit.per} is asked for by {' and '.join(wanted)}")
    owner = tuple(address_block(given[name]) if name == "address" else given[name] for name in wanted)
    found = desk.admission.look(limit, *owner)
    return Reply(
        State(
            name=limit.name, per=limit.per.value, burst=limit.burst, left=found.left,
            wait_ms=-(-found.wait_ns // 1_000_000), full_in_ms=-(-found.full_ns // 1_000_000),
        )
    )  # fmt: skip


_READ = permissions.LIMITS_READ
OPERATIONS: tuple[Operation, ...] = (
    Operation(
        name="limits.list", method="GET", path="/limits", permission=_READ, answer=Limits, run=list_limits,
        summary="The rate limits, their refusals, and how full the table of buckets is",
    ),
    Operation(
        name="limits.show", method="GET", path="/limits/{limit}", permission=_READ, answer=State, params=OfLimit,
        query=Owner, run=show_limit, summary="The bucket of one address, caller, role, route or unit; nothing is taken",
    ),
)  # fmt: skip

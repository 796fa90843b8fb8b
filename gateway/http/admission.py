"""Rate limits: which buckets a request takes from, and what the answer tells the caller about them.

Limits per address come before routing, for every request. Limits of the caller's role and of the route come when both
are known. They are taken in that order; the first that refuses gives back what the others took.
"""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache

import falcon

from fastpath.bucket import BucketTable
from fastpath.lane import Charge, Grant, Rule
from gateway.config.snapshot import Snapshot
from gateway.context import Principal, RequestContext, note_shadow
from gateway.errors import RateLimited
from gateway.http.grant import grant_of
from gateway.routing.model import Limit, LimitKey, Route, UnitAction

_MAX_RULES = 4096
_OF_CALLER = frozenset({LimitKey.ADDRESS, LimitKey.PRINCIPAL, LimitKey.ROLE})
_OF_GRANT = frozenset({LimitKey.PRINCIPAL, LimitKey.ROLE, LimitKey.ROUTE})
"""Buckets that principal and route alone decide."""


_Take = tuple[Rule, int, int, int, int]
"""One token taken for a request, as the bucket answered: rule, key, when (ns), tokens left, ns until it is full."""
_Row = tuple[Rule, int, int]
"""A rule, the tokens left, and nanoseconds: until the bucket is full, or after a refusal until the next token."""


@dataclass(frozen=True, slots=True)
class LimitState:
    """A bucket as it is. Units: nanoseconds, until the next token (0: there is one) and until it is full."""

    limit: Limit
    admits: bool
    left: int
    wait_ns: int
    full_ns: int


class Admission:
    """Middleware: takes the tokens a request costs.

    Holds: the derived form of limits seen, at most 4096.
    """

    def __init__(self, table: BucketTable, clock_ns: Callable[[], int] = time.monotonic_ns) -> None:
        """Units: `clock_ns` nanoseconds of a clock that all workers of the machine share."""
        self._table = table
        self._clock_ns = clock_ns
        self._rules: dict[int, Rule] = {}
        self._address_limits: tuple[Limit, ...] = ()
        self._address_charges: tuple[Charge, ...] = ()

    def process_request(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Raises: RateLimited."""
        ctx: RequestContext = req.context.gateway
        limits = ctx.snapshot.address_limits
        if limits:
            if limits is not self._address_limits:
                self._address_limits, self._address_charges = limits, self.charges(limits)
            self._admit(ctx, self._address_charges)

    def process_resource(
        self, req: falcon.Request, resp: falcon.Response, resource: object, params: dict[str, object]
    ) -> None:
        """Raises: RateLimited."""
        ctx: RequestContext = req.context.gateway
        charges = self._charged(ctx)
        if charges:
            self._admit(ctx, charges)

    def _charged(self, ctx: RequestContext) -> tuple[Charge, ...]:
        """What the caller's role and the route charge, once both are known."""
        route, principal = ctx.route, ctx.principal
        if route is None:
            return ()
        if principal is None:
            return self.charges(_applying(route.limits, route, None))
        ctx.grant = grant = self.grant(ctx, principal, route)
        return grant.charges or ()

    # --- looking

    def look_at_address(self, ctx: RequestContext) -> list[LimitState]:
        """The limits of the request's address as they are, without taking."""
        return self._look(ctx, self.charges(ctx.snapshot.address_limits))

    def look_at_caller(self, ctx: RequestContext) -> list[LimitState]:
        """The limits of the caller's role and of the route as they are, without taking."""
        return self._look(ctx, self._charged(ctx))

    def _look(self, ctx: RequestContext, charges: tuple[Charge, ...]) -> list[LimitState]:
        found: dict[int, LimitState] = {}
        for charge in charges:
            key = charge.key if charge.key is not None else self.bucket(charge.rule, ctx)
            if key not in found:
                found[key] = self._peek(charge.rule, key)
        return list(found.values())

    def look(self, limit: Limit, *owner: str) -> LimitState:
        """A limit's bucket by whom it belongs to. Shapes: `owner` as the parts that `bucket` finds in a request."""
        rule = self._rule(limit)
        return self._peek(rule, self._table.key(rule.prefix, *owner))

    def _peek(self, rule: Rule, key: int) -> LimitState:
        now_ns = self._clock_ns()
        ok, left, wait_ns, full_ns = self._table.peek(key, rule.interval_ns, rule.burst, now_ns, rule.number)
        return LimitState(rule.limit, ok, left, wait_ns, full_ns)

    def figures(self) -> dict[str, int]:
        """Of all buckets: see BucketTable.stats."""
        return self._table.stats()

    def grant(self, ctx: RequestContext, principal: Principal, route: Route) -> Grant:
        """A principal's grant on the request's route, with what he is charged there, the same at every request."""
        grant = grant_of(principal, route)
        if grant.charges is None:
            snapshot: Snapshot = ctx.snapshot
            role = snapshot.roles.get(principal.role)
            limits = (role.limits if role is not None else ()) + route.limits
            grant.charges = self.charges(_applying(limits, route, principal), ctx)
        return grant

    def charges(self, limits: Iterable[Limit], ctx: RequestContext | None = None) -> tuple[Charge, ...]:
        """What limits charge; with a request's context, buckets that its caller and route decide are found now."""
        return tuple([self.charge(self._rule(limit), ctx) for limit in limits])

    def charge(self, rule: Rule, ctx: RequestContext | None) -> Charge:
        """What a rule charges."""
        return Charge(rule, self.bucket(rule, ctx) if ctx is not None and rule.limit.per in _OF_GRANT else None)

    def bucket(self, rule: Rule, ctx: RequestContext) -> int:
        """The key of the bucket that a request takes from under a rule."""
        return self._table.key(rule.prefix, *_subject(rule.limit.per, ctx))

    def _admit(self, ctx: RequestContext, charges: tuple[Charge, ...]) -> None:
        now_ns = self._clock_ns()
        take = self._table.take
        taken: list[_Take] = ctx.limits_taken
        if len(charges) == 1 and not taken and not charges[0].rule.shadow:
            # PERF: `policy_rs256` of `make bench`: the common case by itself is twice as fast as the general one.
            rule, kept = charges[0].rule, charges[0].key
            key = kept if kept is not None else self.bucket(rule, ctx)
            ok, left, wait_ns, reset_ns = take(key, rule.interval_ns, rule.burst, now_ns, rule.number)
            if not ok:
                raise self._refusal(ctx, rule, wait_ns)
            taken.append((rule, key, now_ns, left, reset_ns))
            ctx.limit_headers = (
                ("RateLimit", f"{rule.opening}{left};t={-(-reset_ns // 1_000_000_000)}"),
                rule.policy_field,
            )
            return
        for charge in charges:
            rule, kept = charge.rule, charge.key
            key = kept if kept is not None else self.bucket(rule, ctx)
            if taken and any(earlier[1] == key for earlier in taken):
                continue
            ok, left, wait_ns, reset_ns = take(key, rule.interval_ns, rule.burst, now_ns, rule.number)
            if not ok and rule.shadow:
                note_shadow(ctx, f"limit:{rule.limit.name}")
                continue
            if not ok:
                raise self._refusal(ctx, rule, wait_ns)
            taken.append((rule, key, now_ns, left, reset_ns))
        ctx.limit_headers = _fields([(rule, left, reset_ns) for rule, _, _, left, reset_ns in taken])

    def _refusal(self, ctx: RequestContext, rule: Rule, wait_ns: int) -> RateLimited:
        """Give back what the request took, the last take first, and say which limit refused it."""
        taken: list[_Take] = ctx.limits_taken
        rows = [self._given_back(take) for take in reversed(taken)]
        taken.clear()
        ctx.limit_headers = _fields([*reversed(rows), (rule, 0, wait_ns)])
        ctx.rule = f"limit:{rule.limit.name}"
        return RateLimited(retry_after_s=_seconds(wait_ns), headers=ctx.limit_headers)

    def _given_back(self, take: _Take) -> _Row:
        rule, key, taken_ns, left, reset_ns = take
        if self._table.give_back(key, rule.interval_ns, taken_ns, reset_ns, rule.number):
            return rule, left + 1, reset_ns - rule.interval_ns
        return rule, left, reset_ns

    def _rule(self, limit: Limit) -> Rule:
        # PERF: by identity, hashing a Limit costs as much as the take. Its rule keeps a limit alive: no id comes twice.
        rule = self._rules.get(id(limit))
        if rule is None:
            if len(self._rules) >= _MAX_RULES:
                self._rules.clear()
            rule = self._rules[id(limit)] = self._derive(limit)
        return rule

    def forget_rules(self) -> None:
        """Another configuration is in force: what was derived of the limits before it is not asked for again."""
        self._rules.clear()

    def _derive(self, limit: Limit) -> Rule:
        prefix = f"{limit.name} {limit.per} {limit.interval_ns} {limit.burst}"
        policy = f'"{limit.name}";q={limit.burst};w={limit.window_s}'
        opening = f'"{limit.name}";r='
        return Rule(limit, prefix, self._table.key(prefix), limit.interval_ns, limit.burst, opening, policy)


def _applying(limits: Iterable[Limit], route: Route, principal: Principal | None) -> list[Limit]:
    return [limit for limit in limits if _applies(limit, route, principal)]


def _applies(limit: Limit, route: Route, principal: Principal | None) -> bool:
    """Whether a request takes from a limit's bucket."""
    # SEC: whom the route will refuse anyway takes nothing from buckets that its callers share, or he could empty them.
    if limit.per is LimitKey.ADDRESS:
        return True
    if principal is None:
        return False
    return limit.per in _OF_CALLER or (principal.audience in route.audiences and principal.role in route.roles)


def _subject(per: LimitKey, ctx: RequestContext) -> tuple[str, ...]:
    """What the bucket belongs to, as parts of its key."""
    if per is LimitKey.ADDRESS:
        return (address_block(ctx.client_address),)
    assert ctx.principal is not None  # noqa: S101
    assert ctx.route is not None  # noqa: S101
    if per is LimitKey.PRINCIPAL:
        return ctx.principal.issuer, ctx.principal.subject
    if per is LimitKey.ROLE:
        return (ctx.principal.role,)
    if per is LimitKey.ROUTE:
        return (ctx.route.name,)
    return (_unit(ctx.route, ctx.params),)


def _unit(route: Route, params: dict[str, str]) -> str:
    """The unit of a request; "" for a route without one, so that such requests share a bucket."""
    action = route.action
    if not isinstance(action, UnitAction):
        return ""
    return params.get(action.unit_param, "") if action.unit_param is not None else action.unit or ""


@lru_cache(maxsize=65_536)
def address_block(address: str) -> str:
    """What counts as one caller's address: an IPv4 address, or the /64 network of an IPv6 address.

    An IPv4 address written as IPv6 (::ffff:a.b.c.d) is the IPv4 address. Text that is no address stands for itself.
    """
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return f"{parsed.packed[:8].hex()}/64"


def _fields(rows: list[_Row]) -> tuple[tuple[str, str], ...]:
    """The two response fields: every policy that was looked at, in the order they were taken.

    Source: draft-ietf-httpapi-ratelimit-headers-10.
    """
    # A limit that only watches is nobody's to keep.
    rows = [row for row in rows if not row[0].shadow]
    if not rows:
        return ()
    states = [f"{rule.opening}{left};t={_seconds(wait_ns)}" for rule, left, wait_ns in rows]
    return ("RateLimit", ", ".join(states)), ("RateLimit-Policy", ", ".join([rule.policy for rule, _, _ in rows]))


def _seconds(ns: int) -> int:
    """Whole seconds, rounded up: what is asked for has come when they have passed."""
    return -(-ns // 1_000_000_000)

"""The connections to one upstream: kept alive, bounded, spread over its endpoints by load and health."""

from __future__ import annotations

import time
from urllib.parse import urlsplit

from gateway.config.model import Upstream
from gateway.errors import UpstreamUnavailable, UpstreamUnreachable
from gateway.routing.location import host_of
from gateway.turns import Turns
from gateway.upstream.breaker import Breaker, RetryBudget
from gateway.upstream.connection import UpstreamConnection

_MS_NS = 1_000_000
_SECOND_NS = 1_000_000_000
WAITERS_A_CONNECTION = 4
"""Callers that may queue for a connection, as a multiple of the connections."""
_FIRST_REST_NS = 500 * _MS_NS
_LONGEST_REST_NS = 15 * _SECOND_NS


class Endpoint:
    """One address of an upstream, its idle connections and its health from traffic."""

    __slots__ = ("_rest_ns", "address", "host", "idle", "in_use", "resting_until_ns")

    def __init__(self, url: str) -> None:
        """Shapes: `url` is http://host:port, checked when the configuration loads."""
        parts = urlsplit(url)
        self.address = (parts.hostname or "", parts.port or 80)
        self.host = parts.netloc
        self.idle: list[UpstreamConnection] = []
        self.in_use = 0
        self.resting_until_ns = 0
        self._rest_ns = _FIRST_REST_NS

    def answered(self) -> None:
        self.resting_until_ns = 0
        self._rest_ns = _FIRST_REST_NS

    def failed(self, now_ns: int) -> None:
        """Leave it alone for a while; each failure in a row doubles the while."""
        self.resting_until_ns = now_ns + self._rest_ns
        self._rest_ns = min(self._rest_ns * 2, _LONGEST_REST_NS)


class Pool:
    """Lends connections of one upstream.

    Holds: one of `max_connections` places while a connection is lent.
    """

    def __init__(self, upstream: Upstream) -> None:
        self.upstream = upstream
        self.endpoints = [Endpoint(url) for url in upstream.endpoints]
        self.hosts = frozenset(host_of(endpoint.host) for endpoint in self.endpoints)
        self.breaker = Breaker()
        self.budget = RetryBudget()
        self._idle_ns = upstream.idle_timeout_ms * _MS_NS
        self.response_ns = upstream.response_timeout_ms * _MS_NS
        self._places = Turns(upstream.max_connections)
        self._turn = 0

    def admit(self, now_ns: int) -> None:
        """Raises: UpstreamUnavailable while the breaker is open."""
        wait_ns = self.breaker.admit(now_ns)
        if wait_ns:
            raise UpstreamUnavailable("The upstream is not answering", retry_after_s=-(-wait_ns // _SECOND_NS))

    @property
    def has_place(self) -> bool:
        """Can a connection be lent without waiting for somebody else's?"""
        return self._places.free > 0

    def borrow(
        self, now_ns: int, deadline_ns: int, avoid: Endpoint | None = None
    ) -> tuple[Endpoint, UpstreamConnection]:
        """A connection, kept alive or fresh, to the least busy healthy endpoint; to `avoid` only for want of others.

        Raises: UpstreamUnavailable if no place comes free in time, UpstreamUnreachable.
        Yields to the hub: unless a place and a kept connection are at hand.
        """
        places = self._places
        if places.free:
            places.free -= 1
        else:
            self._wait_for_place(deadline_ns)
            now_ns = time.monotonic_ns()
        try:
            endpoint = self._choose(now_ns, avoid)
            return endpoint, self._kept(endpoint, now_ns) or self._open(endpoint, deadline_ns)
        except BaseException:
            places.give_back()
            raise

    def give_back(self, endpoint: Endpoint, connection: UpstreamConnection, keep: bool, now_ns: int) -> None:
        """End of an exchange; `now_ns` is needed only if the connection is kept."""
        endpoint.in_use -= 1
        if keep:
            connection.idle_since_ns = now_ns
            connection.served += 1
            endpoint.idle.append(connection)
        else:
            connection.close()
        self._places.give_back()

    def close(self) -> None:
        """Close idle connections; those lent are closed by whoever gives them back to a pool no longer in use."""
        for endpoint in self.endpoints:
            while endpoint.idle:
                endpoint.idle.pop().close()

    def _wait_for_place(self, deadline_ns: int) -> None:
        """Raises: UpstreamUnavailable."""
        if self._places.line >= self.upstream.max_connections * WAITERS_A_CONNECTION:
            raise UpstreamUnavailable("Too many requests wait for the upstream", retry_after_s=1)
        patient_ns = time.monotonic_ns() + self.upstream.connect_timeout_ms * _MS_NS
        if not self._places.wait(min(deadline_ns, patient_ns)):
            raise UpstreamUnavailable("All connections to the upstream are busy", retry_after_s=1)

    def _choose(self, now_ns: int, avoid: Endpoint | None) -> Endpoint:
        """The least busy endpoint that is not resting, in turn among equals; if all rest, the one rested longest."""
        endpoints = self.endpoints
        count = len(endpoints)
        if count == 1:
            return endpoints[0]
        self._turn = (self._turn + 1) % count
        turned = endpoints[self._turn :] + endpoints[: self._turn]
        well = [one for one in turned if one.resting_until_ns <= now_ns and one is not avoid]
        if well:
            return min(well, key=lambda one: one.in_use)
        others = [one for one in turned if one is not avoid]
        return min(others, key=lambda one: one.resting_until_ns)

    def _kept(self, endpoint: Endpoint, now_ns: int) -> UpstreamConnection | None:
        """The connection used last that is still alive; dead and stale ones are closed on the way."""
        oldest_ns = now_ns - self._idle_ns
        idle = endpoint.idle
        while idle:
            connection = idle.pop()
            if connection.idle_since_ns >= oldest_ns and connection.alive():
                endpoint.in_use += 1
                connection.written = False
                return connection
            connection.close()
        return None

    def _open(self, endpoint: Endpoint, deadline_ns: int) -> UpstreamConnection:
        left_ns = min(deadline_ns - time.monotonic_ns(), self.upstream.connect_timeout_ms * _MS_NS)
        endpoint.in_use += 1
        try:
            return UpstreamConnection.open(endpoint.address, left_ns / _SECOND_NS)
        except BaseException as error:
            endpoint.in_use -= 1
            if isinstance(error, UpstreamUnreachable):
                endpoint.failed(time.monotonic_ns())
            raise


class Pools:
    """The pools of a worker by upstream name, remade where the configuration changed."""

    def __init__(self) -> None:
        self._pools: dict[str, Pool] = {}

    def pool(self, name: str, upstream: Upstream) -> Pool:
        """The pool of an upstream as configured."""
        held = self._pools.get(name)
        if held is not None and (held.upstream is upstream or held.upstream == upstream):
            return held
        if held is not None:
            held.close()
        made = self._pools[name] = Pool(upstream)
        return made

    def breakers(self) -> list[tuple[str, bool]]:
        """Of each upstream that was called: is its breaker open?"""
        return [(name, pool.breaker.is_open) for name, pool in self._pools.items()]

    def close(self) -> None:
        for pool in self._pools.values():
            pool.close()

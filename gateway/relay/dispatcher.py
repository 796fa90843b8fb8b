"""From a unit's id to a stream on one of its connections: here first, else through a sibling worker; one deadline."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final
from weakref import WeakSet

from gateway.errors import (
    ClientError,
    Delivery,
    HeadersTooLarge,
    Overloaded,
    RelayError,
    RelayPathUnavailable,
    RequestTimeout,
    UnitNotConnected,
    UnitOverloaded,
    UnitQueueTimeout,
)
from gateway.relay.core import NotSendable, Stream
from gateway.relay.exchange import Bell, Body, Exchange, Watch
from gateway.relay.failures import NOT_CONNECTED, error_of, may_go_elsewhere
from gateway.relay.frames import MAX_DEADLINE_MS, Oversize, Request, ResetCode
from gateway.relay.link import Failure, Link
from gateway.relay.mesh_link import AskingLink
from gateway.relay.registry import Registry
from gateway.relay.states import State

HELD_BYTES: Final = 196_608
"""A request whose shorter body is still arriving is held at the unit (HOLD) and released with its last byte (GO): a
caller that breaks off its upload has certainly not been executed. Less than a stream's window, so it always fits."""

RETRY_AFTER_S: Final = 5
"""What a caller of an absent unit is told; agents dial again within 30 s, most within a few."""


@dataclass(slots=True)
class Call:
    """What a caller wants of a unit.

    Units: `deadline_s` a point of time.monotonic. Shapes: `watch` tells when the caller goes away; `stream` is the last
    one that was started for it.
    """

    unit: str
    request: Request
    body: Body
    deadline_s: float
    watch: Watch | None = None
    stream: Stream | None = None

    def queued_ns(self, begun_ns: int, now_ns: int) -> int:
        """How long it waited for its head to leave this worker; until now if it did not. Units: monotonic ns."""
        sent_s = 0.0 if self.stream is None else self.stream.sent_s
        return (int(sent_s * 1e9) if sent_s else now_ns) - begun_ns


class Dispatcher:
    """Picks the connection, sends the request, waits for the answer's head; repeats once what certainly did not run."""

    def __init__(
        self,
        registry: Registry,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._registry = registry
        self._clock = clock
        self._bell = Bell()
        self._bodies: set[Body] = set()
        self._long: WeakSet[Exchange] = WeakSet()
        self._buffers = registry.buffers
        self._buffers.meters.append(self.kept_bytes)
        self._buffers.spares.append(self._forget_bodies)
        self._buffers.holders.append(lambda: self._long)

    def dispatch(self, call: Call) -> Exchange:
        """An exchange whose head has arrived. Yields to the hub: yes.

        Raises: RelayError, Overloaded, HeadersTooLarge, ClientDisconnected, and what reading the body raises, with its
        delivery.
        """
        if not self._buffers.takes(call.request.length):
            raise Overloaded("Too much is being relayed", retry_after_s=1)
        exchange, failure, link = self._attempt(call, None)
        if failure is not None and self._may_repeat(call, failure):
            exchange, failure, link = self._repeat(call, failure, link)
        if failure is not None:
            raise self._error(call.unit, failure, link)
        if not exchange.complete:
            self._watch_over(exchange)
        return exchange

    def _repeat(self, call: Call, failure: Failure, link: Link) -> tuple[Exchange, Failure | None, Link]:
        try:
            return self._attempt(call, link)
        except UnitNotConnected:
            # That the way was lost says more than that there is no other.
            raise self._error(call.unit, failure, link) from None

    def _watch_over(self, exchange: Exchange) -> None:
        """It has a body in more than one piece, of which some may have to wait."""
        exchange.moved_s = time.monotonic()
        self._long.add(exchange)

    def _may_repeat(self, call: Call, failure: Failure) -> bool:
        return may_go_elsewhere(failure) and call.body.replayable and self._clock() < call.deadline_s

    def _attempt(self, call: Call, avoid: Link | None) -> tuple[Exchange, Failure | None, Link]:
        piece, end = self._first(call)
        call.request.hold = not end and (call.request.length or HELD_BYTES) < HELD_BYTES
        exchange = Exchange(call.watch, held=call.request.hold, bell=self._bell)
        # PERF: `relay_small`: nearly always; the others are only looked at where the nearest does not take it.
        link = self._start_nearest(call, exchange, piece, end, avoid) or self._start(call, exchange, piece, end, avoid)
        try:
            if end:
                exchange.wait_for_head()
            else:
                self._send_rest(call.body, exchange)
        except ClientError as error:
            delivery = exchange.cancel() if exchange.failure is None else exchange.failure.delivery
            exchange.unwatch()
            error.members["delivery"] = (delivery or Delivery.RESPONSE_STARTED).value
            raise
        except BaseException:
            exchange.cancel()
            exchange.unwatch()
            raise
        failure = exchange.failure if exchange.response is None else None
        if failure is not None:
            exchange.unwatch()
        return exchange, failure, link

    def _send_rest(self, body: Body, exchange: Exchange) -> None:
        """Until the answer's head is here; what is kept of both directions meanwhile counts."""
        self._watch_over(exchange)
        self._bodies.add(body)
        try:
            exchange.send_from(body)
            exchange.wait_for_head()
            if exchange.response is not None:
                body.forget()
        finally:
            self._bodies.discard(body)

    def kept_bytes(self) -> int:
        """Of bodies in more than one piece: what waits for a repetition, and of answers what no session counts."""
        kept = sum(body.kept_bytes for body in self._bodies)
        return kept + sum(exchange.kept_bytes for exchange in self._long)

    def _forget_bodies(self) -> None:
        """What is on its way then is not repeated."""
        for body in self._bodies:
            body.forget()

    def _first(self, call: Call) -> tuple[bytes, bool]:
        """The body's first piece, which a stream starts with: from there on the deadline is the stream's.

        Raises: UnitQueueTimeout, and what reading the body raises.
        """
        try:
            return call.body.first()
        except RequestTimeout:
            self._left_ms(call)
            raise

    def _start_nearest(
        self, call: Call, exchange: Exchange, piece: bytes, end: bool, avoid: Link | None
    ) -> Link | None:
        """The unit's connection in this worker that has the fewest streams; None if there is none or it is full."""
        link = self._registry.nearest(call.unit)
        if link is None or link is avoid:
            return None
        request = call.request
        request.deadline_ms = self._left_ms(call)
        request.unit = None
        try:
            return self._start_on(link, call, exchange, piece, end)
        except NotSendable:
            return None

    def _left_ms(self, call: Call) -> int:
        """Raises: UnitQueueTimeout."""
        left_ms = int((call.deadline_s - self._clock()) * 1000)
        if left_ms <= 0:
            raise UnitQueueTimeout(call.unit)
        return left_ms if left_ms < MAX_DEADLINE_MS else MAX_DEADLINE_MS

    def _start(self, call: Call, exchange: Exchange, piece: bytes, end: bool, avoid: Link | None) -> Link:
        """Yields to the hub: only while a unit moves from a worker that leaves to another."""
        while True:
            link, full = self._try_start(call, exchange, piece, end, avoid)
            if link is not None:
                return link
            if full or not self._registry.await_return(call.unit, call.deadline_s - self._clock()):
                raise self._absent(call.unit, full)

    def _try_start(
        self, call: Call, exchange: Exchange, piece: bytes, end: bool, avoid: Link | None
    ) -> tuple[Link | None, bool]:
        """The link that took the request; else None, and whether one was merely full."""
        call.request.deadline_ms = self._left_ms(call)
        full = False
        for link, through_sibling in self._candidates(call.unit, avoid):
            call.request.unit = call.unit if through_sibling else None
            try:
                return self._start_on(link, call, exchange, piece, end), False
            except NotSendable as refusal:
                full = full or refusal.full
        return None, full

    def _start_on(self, link: Link, call: Call, exchange: Exchange, piece: bytes, end: bool) -> Link:
        """Raises: NotSendable, HeadersTooLarge."""
        try:
            exchange.stream = stream = link.start(call.request, call.deadline_s, exchange, piece, end)
        except Oversize:
            raise HeadersTooLarge from None
        exchange.link = link
        call.stream = link.session.streams[stream]
        return link

    def _candidates(self, unit: str, avoid: Link | None) -> list[tuple[Link, bool]]:
        """Local ones with the fewest streams first, then siblings; suspects and what just failed last."""
        found = [(link, False) for link in sorted(self._registry.local(unit), key=lambda c: len(c.session.streams))]
        remote = [(link, True) for link in self._registry.remote(unit)]
        everything: list[tuple[Link, bool]] = [*found, *remote]
        everything.sort(key=lambda entry: (entry[0] is avoid, entry[0].session.state is not State.ACTIVE))
        return everything

    def _absent(self, unit: str, full: bool) -> RelayError:
        if full:
            return UnitOverloaded(unit, retry_after_s=1)
        return self.not_connected(unit)

    def keeps_keys(self, unit: str) -> bool:
        """Do all agents of the unit keep a ledger of idempotency keys?"""
        return self._registry.keeps_keys(unit)

    def not_connected(self, unit: str, why: str | None = None) -> UnitNotConnected:
        """Says since when and why, as far as this machine knows."""
        return UnitNotConnected(
            unit,
            retry_after_s=RETRY_AFTER_S,
            last_seen=self._registry.last_seen(unit),
            why=why or self._registry.why(unit),
        )

    def _error(self, unit: str, failure: Failure, link: Link) -> RelayError:
        certain = failure.delivery is Delivery.NOT_DISPATCHED
        if certain and failure.code == ResetCode.REFUSED and failure.reason == NOT_CONNECTED:
            return self.not_connected(unit)
        if certain and failure.lost and link.ended and isinstance(link, AskingLink):
            return RelayPathUnavailable(unit, retry_after_s=1)
        return error_of(unit, failure)

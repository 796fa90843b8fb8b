"""What holds in a simulated world whenever the agent rests."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.agent import link
from tests.agent.simulated_service import RECEIVE_BYTES

if TYPE_CHECKING:
    from gateway.agent.exchange import Exchange
    from gateway.agent.ledger import Ledger
    from gateway.agent.services import Service, Services
    from tests.agent.simulated_lane import Lane
    from tests.agent.simulated_service import Backend
    from tests.agent.virtual import Clock

HONEST_ENDS = {"left", "leaving", "silent", "no-hello", "closed by the gateway", "closed by the gateway with 1000"}


class Checked:
    """`check` asserts it. Shapes: `faults` is what agent or world raised where nobody sees it."""

    faults: list[object]
    clock: Clock
    services: Services
    ledger: Ledger
    backend: Backend
    _open: list[Lane]

    def _every_service(self) -> list[Service]:
        return self.services._services

    def check(self) -> None:
        assert not self.faults, self.faults
        for lane in self._open:
            self._check_gateway(lane)
            self._check_exchanges(lane)
        self._open = [lane for lane in self._open if lane.started or not (lane.over and lane.greenlet.ready())]
        self._check_places()
        self._check_connections()

    def _check_gateway(self, lane: Lane) -> None:
        for stream, call in lane.calls.items():
            assert (not call.outcomes) == (stream in lane.gateway.streams)
            assert call.outcomes or call.deadline_s > self.clock.now_s, "a deadline that was not told"
        assert all(size <= lane.gateway.stream_window for size in lane.held.values())
        assert lane.over or lane.gateway.unread_bytes == sum(lane.held.values())

    def _check_exchanges(self, lane: Lane) -> None:
        """No exchange outlives its stream but for the ledger, and what both hold stays within the windows."""
        unit, own = lane.unit, lane.link
        for stream, (exchange, greenlet) in list(lane.started.items()):
            record = unit.streams.get(stream)
            if greenlet.ready():
                del lane.started[stream]
                assert record is None or not record.unconsumed, "credit that outlives its exchange"
            elif greenlet not in self.services.detached:
                assert record is not None, "an exchange outlives its stream"
                assert stream in own._exchanges
                assert self._held(exchange) <= record.unconsumed <= unit.stream_window
        assert unit.unread_bytes == sum(record.unconsumed for record in unit.streams.values())
        assert set(own._room) <= set(own._exchanges) <= set(lane.started), "room for nobody"
        if lane.greenlet.ready():
            assert own._end in HONEST_ENDS or own._end.endswith("Error"), own._end
            assert not unit.streams
            assert all(greenlet in self.services.detached for _, greenlet in own._exchanges.values())
        self._check_unsent(lane)

    def _held(self, exchange: Exchange) -> int:
        """Body bytes of its request in the exchange's hands."""
        mine = [one for one in self.backend.attempts if one.call == int(exchange._request.fields[0][1])]
        return exchange._body_bytes - len(mine[-1].body) if mine else sum(map(len, exchange._body))

    def _check_unsent(self, lane: Lane) -> None:
        """Of an answer no more is put in hand than there is room for."""
        most = max(link.ROOM_BYTES + RECEIVE_BYTES, self.ledger.answer_max_bytes + RECEIVE_BYTES)
        assert all(lane.unit.queued_bytes(stream) <= most for stream in lane.unit.streams)

    def _exchanges(self) -> list[Exchange]:
        return [exchange for lane in self._open for exchange, _ in lane.started.values()]

    def _check_places(self) -> None:
        for service in self._every_service():
            holders = [one for one in self._exchanges() if one._service is service and not one._finished]
            assert service.running == len(holders), "a place that nobody holds"
        keyed = [one for one in self._exchanges() if one._request.idempotency is not None]
        assert len(self.ledger._running) <= len(keyed), "a key that nobody runs"

    def _check_connections(self) -> None:
        idle = [connection for service in self._every_service() for connection in service.pool._idle]
        used = [exchange._connection for exchange in self._exchanges() if exchange._connection is not None]
        known = {id(connection) for connection in (*idle, *used)}
        assert all(one.closed or id(one) in known for one in self.backend.connections), "a connection of nobody"

"""One connection of a simulated world and the requests that were accepted on it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gevent

from fastpath.frames import Decoder
from gateway.agent.exchange import Exchange
from gateway.agent.link import Link
from gateway.errors import Delivery
from gateway.relay import events as ev
from gateway.relay import frames as fr
from gateway.relay.core import Limits
from gateway.relay.session import GatewaySession
from tests.agent.virtual import Wire

if TYPE_CHECKING:
    from tests.agent.simulated_service import Attempt
    from tests.agent.simulation import World

MAX_FRAME = 2_048


class Call:
    """One accepted request. `sent` is what its caller has handed over, `outcomes` what he was told."""

    def __init__(self, number: int, request: fr.Request, body: bytes, deadline_s: float) -> None:
        self.number = number
        self.request = request
        self.body = body
        self.sent = 0
        self.deadline_s = deadline_s
        self.released = not request.hold
        self.received = bytearray()
        self.head: fr.Response | None = None
        self.outcomes: list[tuple[str, Delivery | None]] = []
        self.attempts: list[Attempt] = []
        self.not_dispatched = False
        """The gateway was told that the service saw nothing of it."""

    @property
    def replayed(self) -> bool:
        return self.head is not None and ("idempotent-replayed", "true") in self.head.fields


class SimLink(Link):
    """A link on the world's wire; the world remembers every exchange that it starts."""

    def __init__(self, world: World, lane: Lane, hello: fr.Hello) -> None:
        super().__init__(world.settings, world.services, world, hello, lambda: None)  # type: ignore[arg-type]
        self._session._jitter = world.random.random
        self._send_now = lane.wire.send if world.random.random() < 0.7 else None
        self._lane = lane

    def _receive(self, sock: Any, due_s: float) -> bytes | None:
        return self._lane.wire.receive_until(due_s)

    def _start(self, event: ev.RequestReceived) -> None:
        super()._start(event)
        self._lane.started[event.stream] = self._exchanges[event.stream]


class Lane:
    """One connection: the gateway's session, the wire, the agent's link, and what the gateway knows of both."""

    def __init__(self, world: World, limits: Limits, room: int) -> None:
        self.wire = Wire(world.clock, room)
        self.limits = limits
        self.gateway: Any = GatewaySession(limits, world.clock.now_s, world.random.random)
        self.decoder = Decoder(masked=True, max_bytes=MAX_FRAME)
        self.calls: dict[int, Call] = {}
        self.held: dict[int, int] = {}
        self.started: dict[int, tuple[Exchange, gevent.Greenlet]] = {}
        self.over = False
        hello = fr.Hello("sim", "one", 0, [fr.LEDGER], world.settings.max_streams, max_frame=MAX_FRAME)
        self.link = SimLink(world, self, hello)
        self.greenlet = gevent.spawn(self.link.run, self.wire, b"")

    @property
    def unit(self) -> Any:
        return self.link._session

"""The unit connections of a worker that leaves: to a sibling as they are, else the unit is asked to dial again."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from typing import Any, Final

import gevent

from gateway.relay.connection import UnitConnection
from gateway.relay.fabric import Fabric
from gateway.relay.frames import GoAwayCode
from gateway.relay.handover import Handover
from gateway.relay.mesh_link import AskingLink
from gateway.relay.moving import Moves
from gateway.relay.registry import MOVING, Registry

STEP_S: Final = 0.05
STEP_CONNECTIONS: Final = 128
"""How many are handed over in one step at most: what comes in between is served here."""
SETTLE_S: Final = 0.2
"""When all workers leave, each sees within this time that its siblings take nothing any more."""
PATIENCE_S: Final = 5.0
"""So long a connection that is never at rest is waited for."""
MOVE_JITTER_MS: Final = 100


@dataclass(slots=True)
class Place:
    """A sibling that takes connections. Units: `load` connections that it has."""

    link: AskingLink
    load: int
    is_full: bool = False


class Leaving:
    """`run` until no connection is left or the time is over."""

    def __init__(
        self, connections: set[UnitConnection], handover: Handover, fabric: Fabric, registry: Registry
    ) -> None:
        """Shapes: `connections` is the worker's own set, which others change."""
        self._connections = connections
        self._handover = handover
        self._fabric = fabric
        self._registry = registry

    def run(self, limit_s: float, moves_per_s: float, young_s: float) -> None:
        """Units: `limit_s` seconds from now; a sibling that began after `young_s`, a monotonic moment, is a new one.

        Yields to the hub: until no connection is left, or `limit_s` is over.
        """
        moves = Moves(moves_per_s, len(self._connections), limit_s)
        began_s = time.monotonic()
        through_s = limit_s
        if self._fabric.takers:
            gevent.sleep(min(SETTLE_S, limit_s / 10))
        while self._connections and (elapsed_s := time.monotonic() - began_s) < limit_s:
            places = self._places(young_s)
            if self._pass_on(places):
                through_s = min(through_s, elapsed_s)
            busy = elapsed_s - through_s > min(PATIENCE_S, limit_s / 4)
            asks_all = not places or elapsed_s > limit_s / 2
            self._send_away(moves, elapsed_s, self._to_ask(busy, asks_all))
            gevent.sleep(STEP_S)

    # --- handed over

    def _places(self, young_s: float) -> list[Place]:
        """New workers if there are some: the others may be next to leave. Yields to the hub: yes."""
        found = [link for link in self._fabric.takers if self._handover.reach(link.name)]
        loads = self._registry.loads() if found else Counter[Any]()
        new = [link for link in found if link.began_s > young_s]
        return [Place(link, loads[link]) for link in new or found]

    def _pass_on(self, places: list[Place]) -> bool:
        """Was each looked at, so that what is left was not at rest?

        NOTE: nothing may run between the look at a connection and its end here.
        """
        left = STEP_CONNECTIONS
        for connection in list(self._connections):
            if left == 0 or all(place.is_full for place in places):
                return False
            live = connection.to_pass()
            place = None if live is None else self._place_for(connection, places)
            if live is None or place is None:
                continue
            if self._handover.pass_live(place.link.name, connection.unit, connection.token, connection.carrier, live):
                connection.let_go()
                place.load += 1
                left -= 1
            else:
                place.is_full = True
        return not any(place.is_full for place in places)

    def _place_for(self, connection: UnitConnection, places: list[Place]) -> Place | None:
        """The emptiest, of those that hold none of the unit if there are some; None if they have to catch up first."""
        holders = self._registry.remote(connection.unit)
        apart = [place for place in places if place.link not in holders]
        return min((p for p in apart or places if not p.is_full), key=lambda place: place.load, default=None)

    # --- asked to dial again

    def _to_ask(self, busy: bool, everybody: bool) -> list[UnitConnection]:
        """Whom nobody takes as he is: under TLS, with `busy` who is not at rest; or `everybody` who is still here."""
        here = [connection for connection in self._connections if connection.stays]
        return here if everybody else [c for c in here if not c.carrier.is_plain or (busy and c.to_pass() is None)]

    def _send_away(self, moves: Moves, elapsed_s: float, waiting: list[UnitConnection]) -> None:
        """Until its turn a unit is served here, and its siblings see no storm."""
        moving = sum(1 for c in self._connections if not c.stays and not c.passed_on and c.session.idle)
        turn = waiting[: moves.due(elapsed_s, moving)]
        moves.asked(len(turn))
        for connection in turn:
            connection.drain(GoAwayCode.DRAIN, MOVING, retry_ms=0, jitter_ms=MOVE_JITTER_MS)

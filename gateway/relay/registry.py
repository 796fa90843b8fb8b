"""Which units are connected, where, and since when: this worker's connections and what its siblings announced."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from gevent.event import Event as Wake

from gateway.relay.buffers import Buffers
from gateway.relay.states import State

if TYPE_CHECKING:
    from gateway.relay.connection import UnitConnection
    from gateway.relay.link import Link

Watcher = Callable[[str, str, dict[str, object]], None]
"""Told of (event, unit, details).

The events are unit.up, unit.down, connection.up and connection.down of this worker's connections, connection.passed
and connection.taken where one went to a sibling or came from it live, and connection.lost of a sibling that is gone.
"""

MAX_REMEMBERED: Final = 100_000

MOVING: Final = "draining"
"""Why a unit left that was asked to dial again, because its worker is being replaced."""

PASSED_ON: Final = "passed-on"
"""Why a worker that leaves holds a connection no more that a sibling has now: the unit is not away."""

UNIT_LEFT: Final = "unit-left"
UNIT_SAYS: Final = "unit: "
"""Begins what a unit said itself when it left: for its operators. Everybody else is told that it left."""

MOVE_S: Final = 3.0
"""How long such a unit may take to come back before it counts as not connected."""


def own_word(why: str) -> str:
    """A close reason as callers, logs and the audit trail have it. SEC: a unit's own text could hold anything."""
    return UNIT_LEFT if why.startswith(UNIT_SAYS) else why


@dataclass(frozen=True, slots=True)
class Membership:
    """A connection of a unit as the worker that holds it announces it. A higher `epoch` is newer."""

    unit: str
    conn: str
    epoch: int
    instance: str
    index: int
    keeps_keys: bool = False
    """Its agent keeps a ledger of idempotency keys."""


@dataclass(slots=True)
class Farewell:
    """Units: `at_s` seconds since 1970."""

    at_s: float
    why: str


@dataclass(slots=True)
class UnitRecord:
    """The connections of one unit: ours by their id, the siblings' by (link, connection id)."""

    local: dict[str, UnitConnection] = field(default_factory=dict)
    remote: dict[tuple[Link, str], Membership] = field(default_factory=dict)


class Registry:
    """Epochs decide between old and new: a late close of an old connection never removes a new one."""

    def __init__(
        self, watcher: Watcher | None = None, now: Callable[[], float] = time.time, buffers: Buffers | None = None
    ) -> None:
        self._units: dict[str, UnitRecord] = {}
        self._farewells: dict[str, Farewell] = {}
        self._watcher = watcher or (lambda event, unit, details: None)
        self._now = now
        self._last_epoch = 0
        self._began_s = now()
        self._arrivals: dict[str, Wake] = {}
        self.announce: Callable[[UnitConnection, bool, str], None] = lambda connection, up, why: None
        """Told when a connection of this worker comes or goes: the mesh passes it on."""
        self.sibling_left_s = float("-inf")
        """When a sibling that leaves last sent a unit away. Units: monotonic seconds."""
        self.buffers = buffers if buffers is not None else Buffers()
        self.buffers.meters.append(self._buffered_bytes)

    def next_epoch(self) -> int:
        """Ascending over all workers of the machine. Source: CLOCK_MONOTONIC, one for all its processes."""
        self._last_epoch = max(self._last_epoch + 1, time.monotonic_ns())
        return self._last_epoch

    # --- this worker's connections

    def register(self, connection: UnitConnection) -> None:
        """Take in a connection that said HELLO; an older one of the same instance and index is replaced."""
        record = self._units.setdefault(connection.unit, UnitRecord())
        first = not record.local and not record.remote
        for other in list(record.local.values()):
            if other.seat == connection.seat and other.epoch < connection.epoch:
                other.replace()
        record.local[connection.conn] = connection
        details: dict[str, object] = {"conn": connection.conn, "epoch": connection.epoch}
        self._watcher("connection.up", connection.unit, details)
        self._tell_arrival(connection.unit)
        if first:
            self._watcher("unit.up", connection.unit, details)
        self.announce(connection, True, "")

    def take(self, connection: UnitConnection) -> None:
        """Take in a connection that a sibling passed on; if its seat has a newer one, it is replaced."""
        record = self._units.setdefault(connection.unit, UnitRecord())
        record.local[connection.conn] = connection
        self._watcher("connection.taken", connection.unit, {"conn": connection.conn})
        self._tell_arrival(connection.unit)
        self.announce(connection, True, "")
        epochs = [c.epoch for c in record.local.values() if c.seat == connection.seat]
        epochs += [m.epoch for m in record.remote.values() if (m.instance, m.index) == connection.seat]
        if max(epochs) > connection.epoch:
            connection.replace()

    def pass_on(self, connection: UnitConnection) -> None:
        """A sibling has it now, and will say so: who asks for the unit until then waits, as for one that moves."""
        unit, record = connection.unit, self._units[connection.unit]
        del record.local[connection.conn]
        self._watcher("connection.passed", unit, {"conn": connection.conn})
        self._forget_moved(unit, record, self._now())
        self.announce(connection, False, PASSED_ON)

    def _forget_moved(self, unit: str, record: UnitRecord, at_s: float) -> None:
        self._remember(unit, at_s, MOVING)
        if not record.local and not record.remote:
            del self._units[unit]

    def retire(self, connection: UnitConnection) -> None:
        """The connection takes no new streams: siblings need not ask for it, and it counts no more."""
        if connection.session.close_reason == MOVING:
            self._remember(connection.unit, self._now(), MOVING)
        self.announce(connection, False, connection.session.close_reason)

    def unregister(self, connection: UnitConnection, why: str) -> None:
        """Forget exactly this connection."""
        record = self._units.get(connection.unit)
        if record is None or record.local.get(connection.conn) is not connection:
            return
        del record.local[connection.conn]
        self._watcher("connection.down", connection.unit, {"conn": connection.conn, "why": why})
        self._after_loss(connection.unit, record, self._now(), why)
        self.announce(connection, False, why)

    def _after_loss(self, unit: str, record: UnitRecord, at_s: float, why: str) -> None:
        self._remember(unit, at_s, why)
        if not record.local and not record.remote:
            del self._units[unit]
            self._watcher("unit.down", unit, {"why": why})

    def _remember(self, unit: str, at_s: float, why: str) -> None:
        if len(self._farewells) >= MAX_REMEMBERED:
            self._farewells.clear()
        self._farewells[unit] = Farewell(at_s, why)

    def _tell_arrival(self, unit: str) -> None:
        wake = self._arrivals.pop(unit, None)
        if wake is not None:
            wake.set()

    def await_return(self, unit: str, limit_s: float) -> bool:
        """Wait for a unit that was asked to move just now; True if a connection of it came. Yields to the hub: yes."""
        farewell = self._farewells.get(unit)
        if farewell is None or farewell.why != MOVING:
            return False
        # A worker that has just begun stands for one that left: nobody could dial it before.
        left_s = min(limit_s, max(farewell.at_s, self._began_s) + MOVE_S - self._now())
        if left_s <= 0:
            return False
        return bool(self._arrivals.setdefault(unit, Wake()).wait(left_s))

    def local(self, unit: str) -> list[UnitConnection]:
        record = self._units.get(unit)
        return list(record.local.values()) if record is not None else []

    def nearest(self, unit: str) -> UnitConnection | None:
        """The connection of this worker that is in full order and has the fewest streams."""
        record = self._units.get(unit)
        if record is None:
            return None
        found = None
        for connection in record.local.values():
            session = connection.session
            if session.state is State.ACTIVE and (found is None or len(session.streams) < len(found.session.streams)):
                found = connection
        return found

    def all_local(self) -> Iterator[UnitConnection]:
        for record in list(self._units.values()):
            yield from list(record.local.values())

    # --- siblings' connections

    def add_remote(self, link: Link, member: Membership) -> None:
        """A sibling announced a connection; ours of the same instance and index yields if it is older."""
        record = self._units.setdefault(member.unit, UnitRecord())
        first = not record.local and not record.remote
        record.remote[link, member.conn] = member
        self._tell_arrival(member.unit)
        for other in list(record.local.values()):
            if other.seat == (member.instance, member.index) and other.epoch < member.epoch:
                other.replace()
        if first:
            self._watcher("unit.up", member.unit, {"conn": member.conn, "epoch": member.epoch})

    def remove_remote(self, link: Link, unit: str, conn: str, why: str, at_s: float | None = None) -> None:
        record = self._units.get(unit)
        if record is None or record.remote.pop((link, conn), None) is None:
            return
        if why in (MOVING, PASSED_ON):
            self.sibling_left_s = time.monotonic()
        gone_s = self._now() if at_s is None else at_s
        if why == PASSED_ON:
            self._forget_moved(unit, record, gone_s)
        else:
            self._after_loss(unit, record, gone_s, why)

    def drop_link(self, link: Link, why: str) -> None:
        """A sibling is gone, and its units with it, at once."""
        for unit, record in list(self._units.items()):
            for key in [key for key in record.remote if key[0] is link]:
                self._watcher("connection.lost", unit, {"conn": key[1], "why": why})
                self.remove_remote(link, unit, key[1], why)

    def loads(self) -> Counter[Link]:
        """How many connections each sibling holds."""
        return Counter(link for record in self._units.values() for link, _ in record.remote)

    def remote(self, unit: str) -> list[Link]:
        """The siblings that hold the unit, each once."""
        record = self._units.get(unit)
        return list(dict.fromkeys(link for link, _ in record.remote)) if record is not None else []

    # --- questions

    def count(self, unit: str) -> int:
        """Connections that count against the unit's maximum: those that do not drain and have not fallen silent."""
        record = self._units.get(unit)
        if record is None:
            return 0
        live = sum(1 for c in record.local.values() if c.session.state in (State.ACTIVE, State.CONNECTING))
        return live + len(record.remote)

    def _buffered_bytes(self) -> int:
        """Body bytes in memory on this worker's connections of units."""
        return sum(connection.session.buffered_bytes for connection in self.all_local())

    def keeps_keys(self, unit: str) -> bool:
        """Do all agents of the unit keep a ledger of idempotency keys?"""
        record = self._units.get(unit)
        if record is None:
            return False
        return all(c.keeps_keys for c in record.local.values()) and all(m.keeps_keys for m in record.remote.values())

    def connected(self, unit: str) -> bool:
        return unit in self._units

    def is_connected(self, unit: str) -> bool:
        """Is there a connection of it, here or at a sibling?"""
        return unit in self._units

    def last_seen(self, unit: str) -> str | None:
        """RFC 3339 in UTC, None if no connection of it ended since this worker started."""
        farewell = self._farewells.get(unit)
        if farewell is None:
            return None
        return datetime.fromtimestamp(farewell.at_s, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")

    def why(self, unit: str) -> str:
        """The last close reason in our own words, `never-connected` if this worker knows of none."""
        farewell = self._farewells.get(unit)
        return "never-connected" if farewell is None else own_word(farewell.why)

    def farewells(self) -> dict[str, Farewell]:
        return self._farewells

    def recall(self, unit: str, at_s: float, why: str) -> None:
        """Take over what a sibling remembers, if it is newer."""
        known = self._farewells.get(unit)
        if known is None or known.at_s < at_s:
            self._farewells[unit] = Farewell(at_s, why)

    def units(self) -> list[dict[str, object]]:
        """The connected units with the state of their connections."""
        return [
            {
                "unit": unit,
                "connections": [connection.describe() for connection in record.local.values()],
                "siblings": len(record.remote),
            }
            for unit, record in sorted(self._units.items())
        ]


def by_use(connection: UnitConnection) -> tuple[bool, int]:
    """Sorts connections: those that have not fallen silent first, then those with the fewest streams."""
    return connection.session.state is not State.ACTIVE, len(connection.session.streams)

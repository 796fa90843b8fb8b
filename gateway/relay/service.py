"""The relay of one worker: its parts joined, started after the fork, drained and stopped."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

import gevent
from gevent import socket

from gateway.config.snapshot import CompiledUnit, Snapshot, SnapshotHolder
from gateway.errors import Forbidden, Overloaded, TokenInvalid
from gateway.relay.admission import DialGate
from gateway.relay.buffers import BUFFER_BYTES, Buffers
from gateway.relay.connection import UnitConnection
from gateway.relay.core import Limits
from gateway.relay.dispatcher import Dispatcher
from gateway.relay.endpoint import ConnectResource, Login, UnitTokens
from gateway.relay.fabric import Fabric
from gateway.relay.frames import GoAwayCode
from gateway.relay.handover import Handover
from gateway.relay.health import LOOK_S
from gateway.relay.leaving import Leaving
from gateway.relay.link_token import LinkToken
from gateway.relay.passed import PassedConnection
from gateway.relay.registry import MOVING, Registry, own_word
from gateway.relay.resource import UnitResource
from gateway.relay.used_tokens import UsedTokens

TOKEN_REVOKED: Final = "token-revoked"  # noqa: S105 - a reason
"""Why a link ends whose token was revoked."""
KEY_REVOKED: Final = "key-revoked"
"""Why the registry refuses a key, see Relay.refuses."""

MAX_NODE: Final = 64
"""Characters of the gateway's name that units are told."""

PROBE_S: Final = 1.0
"""How long a connection may take to prove that it lives when its unit dials once more than it may."""

RESET_BEFORE_END_S: Final = 3.0
STOP_S: Final = 0.5
ROLLING_S: Final = 5.0
"""So long after a sibling sent a unit away it counts as leaving."""
APART_S: Final = 10.0
"""Workers that began within so long of each other count as of one age."""
SENT_OFF: Final = 4
"""How often a unit's dial is sent off at most, so that it meets another worker."""


_HELD: Final = {"connection.up": 1.0, "connection.taken": 1.0, "connection.down": -1.0, "connection.passed": -1.0}
"""What an event of the registry does to the number of connections that this worker holds."""


def detached(sock: Any) -> Any:
    """The same connection as a socket of its own, or None under TLS, which lives in the object.

    PERF: `kb_per_connection` of `make fleet`: a greenlet of its own has nothing of the request's on its stack.
    """
    return socket.socket(sock.family, sock.type, fileno=sock.detach()) if type(sock) is socket.socket else None


class Relay:
    """Type B of one worker. `start` after the fork, under gevent; nothing runs before."""

    def __init__(self, settings: Any, holder: SnapshotHolder, metrics: Any, log: Any) -> None:
        """Shapes: `metrics` has inc and set, `log` is a structured logger; both may be None."""
        self._settings = settings
        self._holder = holder
        self._metrics = metrics
        self._log = log
        self._node = getattr(settings, "node_name", "")[:MAX_NODE]
        self._draining = False
        self._began_s = time.monotonic()
        self._turn = 0
        self._moves_per_s = getattr(settings, "relay_moves_per_s", 800)
        self._connections: set[UnitConnection] = set()
        self._limits = Limits(
            ping_s=getattr(settings, "relay_ping_ms", 15_000) / 1000,
            suspect_s=getattr(settings, "relay_dead_ms", 35_000) / 1000 * 4 / 7,
            dead_s=getattr(settings, "relay_dead_ms", 35_000) / 1000,
            hello_s=getattr(settings, "relay_hello_timeout_ms", 5_000) / 1000,
        )
        buffers = Buffers(getattr(settings, "relay_buffer_bytes", BUFFER_BYTES), self._on_dropped)
        self.registry = Registry(self._on_event, buffers=buffers)
        self._used = UsedTokens(settings.run_dir / "used-tokens.ring")
        self.fabric = Fabric(settings.run_dir, self.registry)
        self.handover = Handover(settings.run_dir, self.fabric.name, self._receive)
        self._held: Counter[str] = Counter()
        self._sent_off: Counter[str] = Counter()
        self._watch: Any = None
        self.tokens = UnitTokens(holder, self._used)
        self.refuses: Callable[[str, str], str] = lambda unit, kid: ""
        """Why the registry of units refuses a (unit, key id), "" if it does not; `enforce` after a change."""
        self.revoked: Callable[[str, str, float], bool] = lambda unit, jti, issued_s: False
        """Is the token of a link revoked? As `refuses`."""
        self.observe: Callable[[str, str, dict[str, object]], None] = lambda event, unit, details: None
        """Told of (event, unit, details), see registry.Watcher."""
        self._gate = DialGate(getattr(settings, "relay_dials_per_s", 500), getattr(settings, "relay_dials_open", 512))
        self.unit_resource = UnitResource(Dispatcher(self.registry))
        self.connect_resource = ConnectResource(
            self.tokens,
            self.take_over,
            has_room=self.has_room,
            spread=self.spread,
            draining=lambda: self._draining,
            gate=self._gate,
            refuse=self.refuse,
        )

    # --- life

    def start(self) -> None:
        """Join the mesh. Yields to the hub: yes."""
        self._holder.subscribe(self._on_snapshot)
        self._used.open()
        self.fabric.start()
        self.handover.start()
        self._watch = gevent.spawn(self._look_on)

    def drain(self) -> None:
        """Unit connections go to other workers, open streams finish, the rest is reset before the grace ends.

        Yields to the hub: until no connection is left, or to the end of the grace.
        """
        self._draining = True
        self.handover.stop()
        limit_s = getattr(self._settings, "drain_grace_s", 30) - RESET_BEFORE_END_S
        leaving = Leaving(self._connections, self.handover, self.fabric, self.registry)
        leaving.run(limit_s, self._moves_per_s, self._began_s + APART_S)
        for connection in list(self._connections):
            connection.shut(GoAwayCode.DRAIN, MOVING)

    def stop(self) -> None:
        """Say goodbye to what is left, leave the mesh. Yields to the hub: yes."""
        self.handover.stop()
        if self._watch is not None:
            self._watch.kill()
        for connection in list(self._connections):
            connection.shut(GoAwayCode.DRAIN, "stopping")
        end_s = time.monotonic() + STOP_S
        while self._connections and time.monotonic() < end_s:
            gevent.sleep(0.01)
        self.fabric.stop()
        self._used.close()

    def _look_on(self) -> None:
        """One timer for all connections."""
        while True:
            gevent.sleep(LOOK_S)
            for connection in list(self._connections):
                connection.check()

    def units(self) -> list[dict[str, object]]:
        """The connected units, as far as this worker knows."""
        return self.registry.units()

    def known(self) -> list[CompiledUnit]:
        """The units of the configuration in force."""
        return list(self._holder.current.units.values())

    # --- connections

    def has_room(self, unit: CompiledUnit) -> bool:
        """May the unit connect once more? Connections that no longer answer do not count. Yields to the hub: yes."""
        count = self.registry.count(unit.id)
        if count < unit.max_connections:
            return True
        local = self.registry.local(unit.id)
        probes = [gevent.spawn(connection.probe, PROBE_S) for connection in local]
        gevent.joinall(probes)
        dead = sum(1 for probe in probes if not probe.value)
        return self.registry.count(unit.id) - dead < unit.max_connections

    def refuse(self, login: Login) -> None:
        """Raises: Forbidden, TokenInvalid if this worker knows by now that the link must not be."""
        why = self._refusal(login.unit.id, login.token)
        if why in (TOKEN_REVOKED, KEY_REVOKED):
            raise TokenInvalid()
        if why:
            raise Forbidden("The unit is disabled")

    def spread(self, unit: CompiledUnit, sock: Any) -> None:
        """Under TLS a second connection cannot be passed to a sibling: its unit is told to dial again, a few times.

        Raises: Overloaded.
        """
        if sock is None or type(sock) is socket.socket or self._draining:
            return
        here = any(not connection.retired for connection in self.registry.local(unit.id))
        if here and self._free_siblings(unit.id) and self._sent_off[unit.id] < SENT_OFF:
            self._sent_off[unit.id] += 1
            raise Overloaded("Another worker is to hold it", retry_after_s=1)
        del self._sent_off[unit.id]

    def _free_siblings(self, unit_id: str) -> list[str]:
        """Workers that hold none of the unit."""
        holders = {getattr(link, "name", "") for link in self.registry.remote(unit_id)}
        return [name for name in self.fabric.siblings if name not in holders]

    def _better_places(self, unit_id: str) -> list[str]:
        """Siblings that should hold a connection rather than this worker, none if it is well placed here.

        A unit's second connection goes to a worker that holds none of it. While workers are replaced every one goes to
        a new worker: those that are to leave next would send it away again.
        PERF: `all_back_s` of `make fleet`: a third of the connections moved twice.
        """
        if self._draining:
            return []
        free = self._free_siblings(unit_id)
        if time.monotonic() - self.registry.sibling_left_s < ROLLING_S:
            younger = self.fabric.younger(self._began_s + APART_S)
            free = [name for name in free if name in younger] or (free if self._held[unit_id] else [])
        elif not self._held[unit_id]:
            return []
        # In turns, or one would get all of them.
        self._turn += 1
        first = self._turn % max(1, len(free))
        return free[first:] + free[:first]

    def take_over(self, login: Login, sock: Any, unread: bytes) -> None:
        """Have the relay protocol spoken on an upgraded connection, here or at a sibling. Yields to the hub: yes."""
        unit = login.unit
        for name in self._better_places(unit.id):
            if self.handover.pass_on(name, unit.id, login.token, sock, unread):
                return
        own = detached(sock)
        if own is None:
            self._hold(self._connection(unit, login.token, sock, unread))
        else:
            gevent.spawn(self._hold_detached, login, own, unread)

    def _hold_detached(self, login: Login, sock: Any, unread: bytes) -> None:
        try:
            self._hold(self._connection(login.unit, login.token, sock, unread))
        finally:
            sock.close()

    def _receive(self, unit_id: str, token: LinkToken, sock: Any, unread: bytes, live: PassedConnection | None) -> None:
        """A sibling authenticated and upgraded this connection, or has had it until now.

        While this worker drains one may still come that was on its way; it goes as the others do.
        """
        unit = self._holder.current.units.get(unit_id)
        if live is not None:
            # One that was removed is told so, as `_end_refused` does it.
            unit = unit or CompiledUnit(unit_id, unit_id, False, 0, None)
        if unit is not None:
            self._hold(self._connection(unit, token, sock, unread), live)

    def _connection(self, unit: CompiledUnit, token: LinkToken, sock: Any, unread: bytes) -> UnitConnection:
        return UnitConnection(
            unit.id,
            sock,
            unread,
            self.registry,
            self._limits,
            max_connections=unit.max_connections,
            token=token,
            node=self._node,
            check_token=self.tokens.renewed,
            on_settled=self._gate.settled,
        )

    def _hold(self, connection: UnitConnection, live: PassedConnection | None = None) -> None:
        unit_id = connection.unit
        self._connections.add(connection)
        self._held[unit_id] += 1
        try:
            if live is None:
                self._gate.opened()
            else:
                connection.resume(live)
            # SEC: it may have been revoked between its dial and now; from here on `enforce` finds it.
            self._end_refused(connection)
            connection.run()
        finally:
            self._connections.discard(connection)
            self._held[unit_id] -= 1
            if not self._held[unit_id]:
                del self._held[unit_id]

    def _on_snapshot(self, snapshot: Snapshot) -> None:
        """A unit that was removed or disabled loses its links; no other connection is touched."""
        self.enforce()

    def enforce(self) -> None:
        """End the links that configuration or registry do not allow any more."""
        for connection in list(self._connections):
            self._end_refused(connection)

    def _end_refused(self, connection: UnitConnection) -> None:
        why = self._refusal(connection.unit, connection.token)
        if not why or connection.ended:
            return
        if why == TOKEN_REVOKED:
            # NOTE: a token signed afterwards is welcome; one of the same second may be older.
            connection.shut(GoAwayCode.AUTH_EXPIRED, why, retry_ms=2_000, jitter_ms=5_000)
        else:
            connection.shut(GoAwayCode.UNIT_DISABLED, why, retry_ms=60_000, jitter_ms=10_000)

    def _refusal(self, unit_id: str, token: LinkToken) -> str:
        unit = self._holder.current.units.get(unit_id)
        known = unit is not None and unit.enabled
        if self.revoked(unit_id, token.jti, token.issued_s):
            return TOKEN_REVOKED
        return self.refuses(unit_id, token.kid) or ("" if known else "disabled")

    def _on_dropped(self) -> None:
        if self._metrics is not None:
            self._metrics.inc("caregate_relay_streams_dropped", ())

    def _on_event(self, event: str, unit: str, details: dict[str, object]) -> None:
        address = ""
        if event == "connection.up":
            for connection in self.registry.local(unit):
                if connection.conn == details["conn"]:
                    details = {**details, "agent": connection.agent, "kid": connection.kid}
                    address = connection.token.address
        self.observe(event, unit, {**details, "client_address": address} if address else details)
        if self._metrics is not None and event in _HELD:
            self._metrics.inc("caregate_relay_units_connected", (), _HELD[event])
            if event != "connection.taken":
                self._metrics.inc("caregate_relay_unit_events", (event.removeprefix("connection."),))
        if event in ("connection.lost", "connection.passed", "connection.taken"):
            return  # units that are lost with a sibling have lines of their own; who was passed on was never away
        if event == "unit.up" and not self.registry.local(unit):
            return  # the worker that holds it says so
        if self._log is not None:
            told = {name: own_word(text) if isinstance(text, str) else text for name, text in details.items()}
            self._log.info(event, unit=unit, **told)

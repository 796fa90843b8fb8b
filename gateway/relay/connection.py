"""One unit's connection at the worker that holds it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any, Final, Protocol

from gevent.event import Event as Wake

from gateway.errors import Delivery
from gateway.relay import events as ev
from gateway.relay.core import Limits
from gateway.relay.frames import LEDGER, GoAwayCode, Ping, ResetCode, Welcome, encode
from gateway.relay.health import Health
from gateway.relay.link import Link
from gateway.relay.link_token import LinkToken
from gateway.relay.passed import PassedConnection
from gateway.relay.registry import UNIT_LEFT, UNIT_SAYS, Registry
from gateway.relay.session import GatewaySession
from gateway.relay.states import State
from gateway.relay.websocket import UnitSocket

EJECT_JITTER_MS: Final = 1_000
MAX_WHY: Final = 64
"""Characters of a close reason that are kept."""


class TokenCheck(Protocol):
    """Verify a renewed token of `unit`; None if it is refused."""

    def __call__(self, token: str, unit: str) -> LinkToken | None: ...


class UnitConnection(Link):
    """A unit's WebSocket from HELLO to its end.

    Shapes: `seat` is (instance, index) of HELLO: a newer connection in the same seat replaces this one. `retired`: it
    takes no new streams, and the siblings were told.
    """

    session: GatewaySession
    carrier: UnitSocket

    def __init__(
        self,
        unit: str,
        sock: Any,
        unread: bytes,
        registry: Registry,
        limits: Limits,
        *,
        max_connections: int,
        token: LinkToken,
        check_token: TokenCheck,
        node: str = "",
        on_settled: Callable[[bool], None] = lambda said_hello: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`node` is what the unit is told; `on_settled` is called once: True when the unit has said HELLO, False at the
        end if it never did."""
        # A frame of the largest size and the header of its WebSocket message.
        carrier = UnitSocket(sock, unread, limits.max_frame)
        super().__init__(GatewaySession(limits, clock()), carrier, clock, registry.buffers)
        self.unit = unit
        self.registry = registry
        self.conn = os.urandom(8).hex()
        self.epoch = 0
        self.seat = ("", -1)
        self.agent = ""
        self.token = token
        self._node = node
        self._clock_ahead_ms: float | None = None
        self.keeps_keys = False
        self.connected_at_s = time.time()
        self._max_connections = max_connections
        self._check_token = check_token
        self._on_settled: Callable[[bool], None] | None = on_settled
        self._heard = Wake()
        self.retired = False
        self._health = Health()

    @property
    def kid(self) -> str:
        """The key it is connected under."""
        return self.token.kid

    # --- from worker to worker

    def to_pass(self) -> PassedConnection | None:
        """What a sibling needs to go on with it; None if it cannot leave this process now, or not at all."""
        if self.retired or not self.epoch or not self.at_rest or not self.carrier.between_messages:
            return None
        session = self.session.state_to_pass()
        if session is None:
            return None
        return PassedConnection(
            conn=self.conn,
            epoch=self.epoch,
            instance=self.seat[0],
            index=self.seat[1],
            agent=self.agent,
            keeps_keys=self.keeps_keys,
            clock_ahead_ms=self._clock_ahead_ms,
            connected_at_s=self.connected_at_s,
            session=session,
        )

    def let_go(self) -> None:
        """A sibling has it: this process only closes its descriptor."""
        self._let_go()
        self.carrier.let_go()
        self.registry.pass_on(self)

    def resume(self, passed: PassedConnection) -> None:
        """Go on, before `run`, where a sibling let go."""
        self._on_settled = None
        self.conn, self.epoch = passed.conn, passed.epoch
        self.seat = (passed.instance, passed.index)
        self.agent = passed.agent
        self.keeps_keys = passed.keeps_keys
        self._clock_ahead_ms = passed.clock_ahead_ms
        self.connected_at_s = passed.connected_at_s
        self.session = GatewaySession.resumed(self.session.limits, passed.session)
        self.registry.take(self)

    # --- HELLO and tokens

    def _on_hello(self, event: ev.HelloReceived) -> None:
        self._settle(True)
        hello, session = event.hello, self.session
        self.seat = (hello.instance, hello.index)
        self.agent = hello.agent
        if hello.clock_ms is not None:
            self._clock_ahead_ms = hello.clock_ms - time.time() * 1000
        self.keeps_keys = LEDGER in hello.caps
        if self._is_one_too_many():
            session.close(GoAwayCode.OVERLOAD, "connections", retry_ms=60_000, jitter_ms=10_000)
            self.close(1013, "connections")
            return
        self.epoch = self.registry.next_epoch()
        limits = session.limits
        welcome = Welcome(
            conn=self.conn,
            epoch=self.epoch,
            node=self._node,
            worker=os.getpid(),
            caps=[LEDGER],
            max_streams=limits.max_streams,
            stream_window=limits.stream_window,
            conn_window=limits.conn_window,
            max_frame=limits.max_frame,
            ping_ms=round(limits.ping_s * 1000),
            dead_ms=round(limits.dead_s * 1000),
            token_exp=int(self.token.expires_s),
        )
        session.welcome(welcome, self.clock(), hello)
        session.token_expires_s = self.clock() + self.token.expires_s - time.time()
        self.registry.register(self)
        self._schedule()

    def _settle(self, said_hello: bool) -> None:
        on_settled, self._on_settled = self._on_settled, None
        if on_settled is not None:
            on_settled(said_hello)

    def _is_one_too_many(self) -> bool:
        replaced = sum(1 for other in self.registry.local(self.unit) if other.seat == self.seat)
        return self.registry.count(self.unit) - replaced >= self._max_connections

    def _on_token(self, event: ev.TokenReceived) -> None:
        checked = self._check_token(event.token, self.unit)
        if self.ended:
            return  # the check may have waited
        if checked is None:
            self.session.go_away(GoAwayCode.AUTH_EXPIRED, "token-refused")
            return
        self.token, exp_s = checked, checked.expires_s
        self.session.accept_token(int(exp_s), self.clock() + exp_s - time.time())
        self._schedule()

    # --- life

    def _handle(self, events: list[ev.Event]) -> None:
        super()._handle(events)
        if self.session.state is State.DRAINING:
            self._retire()

    def on_read(self) -> None:
        if not self._heard.is_set():
            self._heard.set()

    def _retire(self) -> None:
        if not self.retired and self.epoch:
            self.retired = True
            self.registry.retire(self)

    def _on_goaway(self, event: ev.GoAwayReceived) -> None:
        # SEC: marked as the unit's, or it could say what the gateway acts upon (`moving`, `replaced`).
        self.session.close_reason = f"{UNIT_SAYS}{event.why}"[:MAX_WHY] if event.why else UNIT_LEFT

    def probe(self, timeout_s: float) -> bool:
        """Does the unit still answer? Yields to the hub: yes."""
        asked_s = self.clock()
        self._heard.clear()
        self.session.outbox.control.append(encode(Ping(os.urandom(8))))
        self._wake_writer()
        while (left_s := asked_s + timeout_s - self.clock()) > 0 and not self.ended:
            self._heard.wait(left_s)
            if self.session.last_received_s >= asked_s:
                return True
            self._heard.clear()
        return False

    def check(self) -> None:
        """Take the connection out if it is of no use: see gateway.relay.health."""
        if self.ended or not self.epoch:
            return
        why = self._health.look(self.session, self.clock())
        if why == "slow-ack":
            self.drain(GoAwayCode.DRAIN, why, jitter_ms=EJECT_JITTER_MS)
        elif why:
            self.shut(GoAwayCode.IDLE, why)

    def _on_aborted(self, event: ev.StreamAborted) -> None:
        if event.code == ResetCode.DEADLINE and event.delivery is Delivery.UNKNOWN and not event.remote:
            self._health.missed += 1
        super()._on_aborted(event)

    @property
    def stays(self) -> bool:
        """Was the unit not yet asked to leave?"""
        return not self.ended and self.session.state in (State.CONNECTING, State.ACTIVE, State.SUSPECT)

    def replace(self) -> None:
        """A newer connection has this one's seat: no new streams; the open ones finish."""
        self._leave(GoAwayCode.REPLACED, "replaced")

    def drain(self, code: GoAwayCode, why: str, retry_ms: int = 0, jitter_ms: int = 0) -> None:
        """Start no new streams, ask the unit to dial again; the link ends when the open streams have."""
        if self.session.state is State.CONNECTING:
            self.shut(code, why, retry_ms, jitter_ms)
            return
        self.session.go_away(code, why, retry_ms, jitter_ms)
        self._retire()
        self._wake_writer()

    def _leave(self, code: GoAwayCode, why: str) -> None:
        if self.session.state is State.CONNECTING:
            self.close(1001, why)
            return
        self.session.go_away(code, why)
        self._retire()
        self._wake_writer()
        self._close_if_drained()

    def shut(self, code: GoAwayCode, why: str, retry_ms: int = 0, jitter_ms: int = 0) -> None:
        """End the link now with GOAWAY; open streams fail."""
        self.session.close(code, why, retry_ms, jitter_ms)
        self._end(why)
        self.close(1001, why)

    def may_close_idle(self) -> bool:
        # While draining for a new one the unit closes: its new connection comes first, and no request finds a gap.
        return self.session.close_reason in ("replaced", "token-expired", "token-refused")

    def on_ended(self) -> None:
        self._settle(False)
        self.registry.unregister(self, self.lost_reason)

    def describe(self) -> dict[str, object]:
        """Units: `rtt_ms`, `clock_offset_ms` milliseconds (a unit's clock ahead is positive), `since` s since 1970."""
        rtt_s = self.session.rtt_s
        offset_ms = self._clock_ahead_ms
        if offset_ms is not None and rtt_s is not None:
            # HELLO was under way for half a round trip, as far as one can know.
            offset_ms += rtt_s * 500
        return {
            "conn": self.conn,
            "epoch": self.epoch,
            "instance": self.seat[0],
            "index": self.seat[1],
            "agent": self.agent,
            "kid": self.kid,
            "ledger": self.keeps_keys,
            "state": self.session.state.value,
            "streams": len(self.session.streams),
            "rtt_ms": None if rtt_s is None else round(rtt_s * 1000, 2),
            "clock_offset_ms": None if offset_ms is None else round(offset_ms, 1),
            "since": round(self.connected_at_s, 3),
        }

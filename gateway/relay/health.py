"""Whether a connection that is not silent is of use: looked at every few seconds, which costs no request anything."""

from __future__ import annotations

from typing import Final

from gateway.relay.session import GatewaySession
from gateway.relay.states import State, StreamState

LOOK_S: Final = 5.0
"""How often a connection is looked at; so long, too, may an ACK take."""
LOOKS: Final = 3
"""So many looks in a row at which more than one request in a hundred waited too long for its ACK."""
DEAF: Final = 2.0
"""A unit may leave a PING open for so many times the silence that ends a connection: it sends, but reads nothing."""
IDLE_LOOKS: Final = 12
"""A unit that was asked to leave and has nothing open may stay for so many looks."""


class Health:
    """Of one connection. `missed`: requests since the last look whose deadline passed without an ACK."""

    __slots__ = ("_idle_looks", "_last_stream", "_slow_looks", "missed")

    def __init__(self) -> None:
        self.missed = 0
        self._last_stream = 0
        self._slow_looks = 0
        self._idle_looks = 0

    def look(self, session: GatewaySession, now_s: float) -> str:
        """Why the connection is to be taken out: slow-ack (its requests finish), deaf or stays; "" if it is well."""
        asked_s = session.unanswered_ping_s
        if asked_s is not None and now_s - asked_s > DEAF * session.dead_s:
            return "deaf"
        if session.state is State.DRAINING:
            self._idle_looks = self._idle_looks + 1 if session.idle else 0
            return "stays" if self._idle_looks > IDLE_LOOKS else ""
        return "slow-ack" if self._is_slow(session) else ""

    def _is_slow(self, session: GatewaySession) -> bool:
        before, self._last_stream = self._last_stream, session.last_stream
        started = (self._last_stream - before) // 2
        late, self.missed = self.missed, 0
        for record in session.streams.values():
            if record.id <= before and record.state is StreamState.SENT and not record.held:
                late += 1
        if late * 100 > started:
            self._slow_looks += 1
        elif started:
            self._slow_looks = 0
        return self._slow_looks >= LOOKS

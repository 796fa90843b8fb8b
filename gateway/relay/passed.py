"""What a worker that leaves tells a sibling of a unit's connection that it hands over live.

Units: `*_s` seconds of CLOCK_MONOTONIC, one for all processes of the machine, unless they say otherwise; bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

from gateway.relay.frames import MAX_CREDIT, MAX_FRAME_BYTES, MAX_STREAM

MAX_COUNT = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class SessionState:
    """A session with no stream open and nothing to send or to take. Raises: ValueError out of its ranges.

    Shapes: `max_streams` is at most `agreed_streams` (LEASE); `credit` is what this side may still send, `owed` what it
    took and did not give back; `timed_ping` the number of the PING that waits for its PONG, and when it was sent.
    """

    agreed_streams: int
    max_streams: int
    stream_window: int
    conn_window: int
    max_frame: int
    credit: int
    owed: int
    last_stream: int
    ping_s: float
    suspect_s: float
    dead_s: float
    last_received_s: float
    next_ping_s: float
    next_sync_s: float
    token_expires_s: float
    ping_count: int
    timed_ping: tuple[int, float] | None
    rtt_s: float | None

    def __post_init__(self) -> None:
        pinged = 0 if self.timed_ping is None else self.timed_ping[0]
        in_range = (
            0 <= self.max_streams <= self.agreed_streams <= MAX_STREAM
            and 0 <= self.stream_window <= MAX_CREDIT
            and 0 <= self.owed <= self.conn_window <= MAX_CREDIT
            and 0 < self.max_frame <= MAX_FRAME_BYTES
            and 0 <= self.credit <= MAX_CREDIT
            and 0 <= self.last_stream <= MAX_STREAM
            and 0 <= pinged <= self.ping_count <= MAX_COUNT
            and min(self.ping_s, self.suspect_s, self.dead_s) > 0
        )
        if not in_range:
            raise ValueError("a session that cannot be")


@dataclass(frozen=True, slots=True)
class PassedConnection:
    """Shapes: `conn` and `epoch` as WELCOME told them; `instance`, `index` and `agent` as HELLO did.

    Units: `connected_at_s` seconds since 1970; `clock_ahead_ms` milliseconds.
    """

    conn: str
    epoch: int
    instance: str
    index: int
    agent: str
    keeps_keys: bool
    clock_ahead_ms: float | None
    connected_at_s: float
    session: SessionState

"""The states of a relay connection and its streams, and every legal arrival of a frame: one row each.

```
connection: CONNECTING → ACTIVE ⇄ SUSPECT → DRAINING → CLOSED
stream:     QUEUED → SENT → ACCEPTED (ACK) → STREAMING (RES) → DONE;   from anywhere → ABORTED, exactly once
```
A missing row is the peer's violation. On the unit's side SENT means that the request has arrived.
"""

from __future__ import annotations

import enum
from typing import Final

from gateway.errors import Delivery
from gateway.relay import frames as fr


class Role(enum.Enum):
    __hash__ = object.__hash__  # PERF: `relay_small`: looked up in the tables below; Enum's own is a Python function

    GATEWAY = "gateway"
    UNIT = "unit"


class State(enum.Enum):
    """Of the connection."""

    __hash__ = object.__hash__

    CONNECTING = "connecting"
    ACTIVE = "active"
    SUSPECT = "suspect"
    DRAINING = "draining"
    CLOSED = "closed"


class StreamState(enum.Enum):
    __hash__ = object.__hash__

    NEW = "new"
    QUEUED = "queued"
    SENT = "sent"
    ACCEPTED = "accepted"
    STREAMING = "streaming"
    DONE = "done"
    ABORTED = "aborted"


DELIVERY: Final = {
    StreamState.QUEUED: Delivery.NOT_DISPATCHED,
    StreamState.SENT: Delivery.UNKNOWN,
    StreamState.ACCEPTED: Delivery.DISPATCHED,
    StreamState.STREAMING: Delivery.RESPONSE_STARTED,
    StreamState.DONE: Delivery.RESPONSE_STARTED,
}
"""What a stream's state says about the unit having executed its request."""

_S = StreamState
_G, _U = Role.GATEWAY, Role.UNIT
_OPEN: Final = (_S.SENT, _S.ACCEPTED, _S.STREAMING)

ROWS: Final[dict[tuple[Role, type, StreamState], StreamState]] = {
    # which role receives, what, in which state of the stream: its next state
    (_G, fr.Ack, _S.SENT): _S.ACCEPTED,
    (_G, fr.ResponseFrame, _S.ACCEPTED): _S.STREAMING,
    (_G, fr.Data, _S.STREAMING): _S.STREAMING,
    (_U, fr.RequestFrame, _S.NEW): _S.SENT,
    (_U, fr.Go, _S.SENT): _S.SENT,
    **{(_U, fr.Data, state): state for state in _OPEN},
    **{(role, fr.Window, state): state for role in Role for state in _OPEN},
    **{(role, fr.Reset, state): _S.ABORTED for role in Role for state in _OPEN},
}

LIVE: Final = (State.ACTIVE, State.SUSPECT, State.DRAINING)
CONNECTION_ROWS: Final[frozenset[tuple[Role, type, State]]] = frozenset(
    # which role receives what in which state of the connection; streams' frames are legal in the live states
    [(_G, fr.Hello, State.CONNECTING), (_U, fr.Welcome, State.CONNECTING)]
    + [(role, kind, State.CONNECTING) for role in Role for kind in (fr.Ping, fr.Pong, fr.GoAway)]
    + [(role, kind, s) for role in Role for kind in (fr.Ping, fr.Pong, fr.GoAway, fr.Sync) for s in LIVE]
    + [(role, kind, s) for role in Role for kind in (fr.Window, fr.Data, fr.Reset) for s in LIVE]
    + [(_G, kind, s) for kind in (fr.Ack, fr.ResponseFrame, fr.ResetAck, fr.Token, fr.Lease) for s in LIVE]
    + [(_U, kind, s) for kind in (fr.RequestFrame, fr.Go, fr.TokenOk) for s in LIVE]
)

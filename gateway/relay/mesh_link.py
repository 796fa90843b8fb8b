"""Two workers of a machine, joined over a unix socket by a relay session: one asks, the other holds the units.

```
 u32 length of the rest | u8 kind (0 relay frame, 1 membership) | payload
```
Membership is a JSON object {name, up: [[unit, conn, epoch, instance, index]…], down: [[unit, conn, why, at_s]…],
past: [[unit, at_s, why]…], ledger: [conn of `up` whose agent keeps idempotency keys…]}. A worker that holds units
dials its siblings and says HELLO as a unit would: to them it is all of its units at once. What crosses are relay frames
with the same credits; only the stream id is another one, and REQ names the unit.
"""

from __future__ import annotations

import contextlib
import socket as plain
import struct
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Annotated, Any, Final

import msgspec

from gateway.errors import Delivery
from gateway.relay import events as ev
from gateway.relay.buffers import BUFFERS_FULL
from gateway.relay.core import Limits, NotSendable
from gateway.relay.failures import NOT_CONNECTED, STREAMS
from gateway.relay.frames import Hello, Oversize, Request, ResetCode, Response, Welcome
from gateway.relay.link import DROPPED, CarrierFault, Failure, Link, Sink, quietly_shut
from gateway.relay.readable import Readable
from gateway.relay.registry import Membership, Registry, by_use
from gateway.relay.session import GatewaySession, UnitSession

MESH_LIMITS: Final = Limits(
    max_streams=8_192,
    conn_window=16_777_216,
    queue_bytes=1 << 40,
    ping_s=5.0,
    suspect_s=10.0,
    dead_s=15.0,
)
"""Between workers the queue has no limit of its own: a stream's window bounds what the holding worker keeps of it for
the unit, and the asking one for a caller. The connection's window, which all units behind the sibling share, comes back
as soon as bytes are here: nobody's reading has a say in it."""

TAKES_LIVE: Final = "live-1"
"""A capability: the worker takes connections that are in use, as `passed` describes them."""

DEADLINE_GRACE_S: Final = 0.1
"""How much longer the asking side waits: the one that holds the unit knows better what became of a request."""

RECEIVE_BYTES: Final = 122_880
"""PERF: `worker_ms_per_dial` of `make fleet`: with its object's head it stays under the 128 KiB from which malloc maps
memory anew for each read: 22 us of CPU for one of 256 KiB, 4 us for this."""

MAX_RECORD_BYTES: Final = 16_777_216
_HEAD: Final = struct.Struct("!IB")
_FRAME, _MEMBERSHIP = 0, 1


_Moment = Annotated[float, msgspec.Meta(ge=0, le=1e11)]


class MembershipRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a sibling tells of itself and its units. Units: `*_s` seconds since 1970."""

    name: Annotated[str, msgspec.Meta(pattern=r"^(relay-[A-Za-z0-9_.-]+\.sock)?$", max_length=64)] = ""
    up: list[tuple[str, str, int, str, int]] = []
    down: list[tuple[str, str, str, _Moment]] = []
    past: list[tuple[str, _Moment, str]] = []
    ledger: list[str] = []


_decode_membership: Final = msgspec.json.Decoder(MembershipRecord).decode


class UnixCarrier:
    """Length-prefixed records over a stream socket of this machine. See link.Carrier."""

    def __init__(self, sock: Any, on_membership: Callable[[MembershipRecord], None]) -> None:
        self._sock = sock
        self._on_membership = on_membership
        self._readable = Readable(sock)
        self._pending = bytearray()
        self._replies: list[bytes] = []
        self._rest = b""

    def announce(self, payload: bytes) -> None:
        """Queue a membership record; it leaves before the next frames."""
        self._replies.append(_HEAD.pack(len(payload) + 1, _MEMBERSHIP) + payload)

    def read(self) -> list[bytes] | None:
        while True:
            data = self._readable.receive(RECEIVE_BYTES)
            if not data:
                return None
            if not self._pending and _is_one_frame(data):
                return [data[_HEAD.size :]]
            self._pending += data
            frames, membership = self._cut()
            for payload in membership:
                self._on_membership(_membership(payload))
            if frames:
                return frames

    def _cut(self) -> tuple[list[bytes], list[bytes]]:
        pending, at = self._pending, 0
        found: tuple[list[bytes], list[bytes]] = ([], [])
        while len(pending) - at >= _HEAD.size:
            length, kind = _HEAD.unpack_from(pending, at)
            if not 1 <= length <= MAX_RECORD_BYTES or kind > _MEMBERSHIP:
                raise CarrierFault(1002, "a record that is not ours")
            if len(pending) - at < length + 4:
                break
            found[kind].append(bytes(pending[at + 5 : at + 4 + length]))
            at += length + 4
        del pending[:at]
        return found

    def has_replies(self) -> bool:
        return bool(self._replies or self._rest)

    def write(self, messages: list[bytes]) -> None:
        data = self._encode(messages)
        self._rest = b""
        self._sock.sendall(data)

    def write_now(self, messages: list[bytes]) -> bool:
        data = self._encode(messages)
        sent = 0
        with contextlib.suppress(BlockingIOError):
            sent = self._sock._sock.send(data, plain.MSG_DONTWAIT)
        self._rest = data[sent:]
        return sent == len(data)

    def _encode(self, messages: list[bytes]) -> bytes:
        """What was kept, membership, then the messages."""
        parts = [self._rest, *self._replies]
        self._replies = []
        for message in messages:
            parts.append(_HEAD.pack(len(message) + 1, _FRAME))
            parts.append(message)
        return b"".join(parts)

    def say_goodbye(self, code: int, reason: str) -> None:
        self._sock.shutdown(1)

    def linger(self) -> None:
        return

    def abort(self) -> None:
        quietly_shut(self._sock)

    def close(self) -> None:
        self._readable.close()
        quietly_shut(self._sock)
        with contextlib.suppress(OSError):
            self._sock.close()


def _is_one_frame(data: bytes) -> bool:
    """PERF: `relay_open`: nearly always, where requests come one by one."""
    return len(data) > _HEAD.size and _HEAD.unpack_from(data) == (len(data) - 4, _FRAME)


def _membership(payload: bytes) -> MembershipRecord:
    """Raises: CarrierFault."""
    try:
        return _decode_membership(payload)
    except (msgspec.DecodeError, ValueError) as error:
        raise CarrierFault(1002, "a membership record that is not ours") from error


class AskingLink(Link):
    """The side that asks: a sibling dialled and announces its units. Requests go out here like to a unit."""

    def __init__(self, sock: Any, registry: Registry, on_name: Callable[[str], None]) -> None:
        carrier = UnixCarrier(sock, self._on_membership)
        session = GatewaySession(MESH_LIMITS, time.monotonic())
        super().__init__(session, carrier, buffers=registry.buffers)
        self._registry = registry
        self._on_name = on_name
        self.name = ""
        self.began_s = time.monotonic()
        self.takes_live = False

    def _on_hello(self, event: ev.HelloReceived) -> None:
        self.takes_live = TAKES_LIVE in event.hello.caps
        limits = MESH_LIMITS
        welcome = Welcome(
            conn="mesh",
            epoch=0,
            max_streams=limits.max_streams,
            stream_window=limits.stream_window,
            conn_window=limits.conn_window,
            max_frame=limits.max_frame,
            ping_ms=round(limits.ping_s * 1000),
            dead_ms=round(limits.dead_s * 1000),
        )
        session = self.session
        if isinstance(session, GatewaySession):
            session.welcome(welcome, self.clock(), event.hello)
        self._schedule()

    def start(self, request: Request, deadline_s: float, sink: Sink, body: bytes, end: bool) -> int:
        return super().start(request, deadline_s + DEADLINE_GRACE_S, sink, body, end)

    def _on_membership(self, record: MembershipRecord) -> None:
        if record.name and not self.name:
            self.name = record.name
            self._on_name(record.name)
        for unit, at_s, why in record.past:
            self._registry.recall(unit, at_s, why)
        for unit, conn, epoch, instance, index in record.up:
            self._registry.add_remote(self, Membership(unit, conn, epoch, instance, index, conn in record.ledger))
        for unit, conn, why, at_s in record.down:
            self._registry.remove_remote(self, unit, conn, why, at_s)

    def on_ended(self) -> None:
        self._registry.drop_link(self, "worker-lost")


class HoldingLink(Link):
    """The side that holds units: requests of a sibling come in and go on to the unit's own link."""

    session: UnitSession
    carrier: UnixCarrier

    def __init__(self, sock: Any, registry: Registry, name: str) -> None:
        hello = Hello(
            agent="caregate-worker",
            instance=name,
            caps=[TAKES_LIVE],
            max_streams=MESH_LIMITS.max_streams,
            conn_window=MESH_LIMITS.conn_window,
        )
        carrier = UnixCarrier(sock, lambda record: None)
        super().__init__(UnitSession(MESH_LIMITS, time.monotonic(), hello), carrier, buffers=registry.buffers)
        self._registry = registry
        self._forwards: dict[int, Forward] = {}

    def announce(self, payload: bytes) -> None:
        """Tell the sibling a membership record."""
        self.carrier.announce(payload)
        self._send_soon()

    def _on_request(self, event: ev.RequestReceived) -> None:
        request, now_s = event.request, self.clock()
        if not self.buffers.takes(request.length):
            self.session.reset(event.stream, ResetCode.REFUSED, STREAMS, dispatched=False)
            return
        forward = Forward(self, event.stream, now_s)
        unit, request.unit = request.unit or "", None
        deadline_s = now_s + request.deadline_ms / 1000
        reason = NOT_CONNECTED
        for link in sorted(self._registry.local(unit), key=by_use):
            try:
                forward.onward_stream = link.start(request, deadline_s, forward, event.body, event.end)
            except NotSendable as refusal:
                reason = STREAMS if refusal.full else reason
            except Oversize:
                break
            else:
                forward.onward = link
                self._forwards[event.stream] = forward
                return
        self.session.reset(event.stream, ResetCode.REFUSED, reason, dispatched=False)

    def _on_data(self, event: ev.DataReceived) -> None:
        forward = self._forwards.get(event.stream)
        if forward is None or not forward.send_onward(event.body, event.end):
            self.session.consumed(event.stream, len(event.body))
        self.buffers.arrived(len(event.body))

    def _on_go(self, event: ev.GoReceived) -> None:
        forward = self._forwards.get(event.stream)
        if forward is not None and forward.onward is not None:
            forward.onward.go(forward.onward_stream)

    def _on_aborted(self, event: ev.StreamAborted) -> None:
        forward = self._forwards.pop(event.stream, None)
        if forward is not None and forward.onward is not None:
            code = ResetCode(event.code) if event.code in ResetCode._value2member_map_ else ResetCode.CANCEL
            forward.onward.reset(forward.onward_stream, code, event.reason)

    def _tell_flushed(self) -> None:
        for stream, size in self.session.take_flushed():
            forward = self._forwards.get(stream)
            if forward is not None:
                forward.back_flushed(size)

    @property
    def kept_bytes(self) -> int:
        """What no session counts."""
        return sum(forward.kept_bytes for forward in self._forwards.values())

    @property
    def forwards(self) -> Iterable[Forward]:
        return self._forwards.values()

    def forget(self, stream: int) -> None:
        self._forwards.pop(stream, None)

    def on_ended(self) -> None:
        """The sibling is gone, and its callers with it: what they asked for is cancelled."""
        forwards, self._forwards = self._forwards, {}
        for forward in forwards.values():
            if forward.onward is not None:
                forward.onward.reset(forward.onward_stream, ResetCode.CANCEL, "worker-lost")


class Forward:
    """One stream of a sibling joined to one stream of a unit; a link.Sink of the unit's link, and a buffers.Holder.

    Credit is given back on one side when the bytes left on the other.
    """

    __slots__ = ("_back", "_ended", "_left", "_stream", "_waiting", "moved_s", "onward", "onward_stream")

    def __init__(self, back: HoldingLink, stream: int, now_s: float = 0.0) -> None:
        self._back = back
        self._stream = stream
        self._left = 0
        self._ended = False
        self._waiting: deque[tuple[bytes, bool]] | None = None
        self.moved_s = now_s
        self.onward: Link | None = None
        self.onward_stream = 0

    def send_onward(self, body: bytes, end: bool) -> bool:
        """False if the unit's stream is gone. What its connection has no room for waits, with its credit."""
        onward = self.onward
        if onward is None:
            return False
        self._begin_to_keep()
        if not self._waiting and onward.has_room(self.onward_stream, len(body)):
            return onward.send_data(self.onward_stream, body, end)
        if self._waiting is None:
            self._waiting = deque()
        self._waiting.append((body, end))
        return True

    def _begin_to_keep(self) -> None:
        """See buffers.Holder: of the moment at which bytes come."""
        onward = self.onward
        if not (self._left or self._waiting or (onward and onward.session.queued_bytes(self.onward_stream))):
            self.moved_s = self._back.clock()

    @property
    def kept_bytes(self) -> int:
        """What no session counts: the request's body before its connection, the answer's after it has ended."""
        left = self._left if self.onward is not None and self.onward.ended else 0
        return self.waiting_bytes + left

    @property
    def waiting_bytes(self) -> int:
        """Of a request's body, for room on the unit's connection."""
        return sum(len(body) for body, _ in self._waiting or ())

    def on_room(self) -> None:
        onward = self.onward
        while onward is not None and self._waiting:
            if not onward.has_room(self.onward_stream, len(self._waiting[0][0])):
                return
            body, end = self._waiting.popleft()
            if not onward.send_data(self.onward_stream, body, end):
                self._back.consumed(self._stream, len(body))

    def _drop_waiting(self) -> None:
        """The unit has answered: nobody reads the rest of the request."""
        size, self._waiting = self.waiting_bytes, None
        if size:
            self._back.consumed(self._stream, size)

    def on_ack(self) -> None:
        self._back.session.send_ack(self._stream)
        self._back.poke()

    def on_response(self, response: Response, body: bytes, end: bool) -> None:
        self._begin_to_keep()
        self._left += len(body)
        self._ended = end
        if end:
            self._drop_waiting()
        try:
            sent = self._back.session.send_response(self._stream, response, body, end)
        except Oversize:
            sent = False
            self._back.forget(self._stream)
            self._back.reset(self._stream, ResetCode.UPSTREAM_PROTOCOL, "header over the limit", dispatched=True)
        if not sent and self.onward is not None:
            self.onward.reset(self.onward_stream, ResetCode.CANCEL, "nobody waits")
        self._forget_if_told()
        self._back.poke()

    def on_data(self, body: bytes, end: bool) -> None:
        self._begin_to_keep()
        self._left += len(body)
        self._ended = end
        if end:
            self._drop_waiting()
        if not self._back.send_data(self._stream, body, end) and self.onward is not None:
            self.onward.consumed(self.onward_stream, len(body))
        self._forget_if_told()

    def _forget_if_told(self) -> None:
        """Once the unit has said all, and none of it waits for the sibling: that no byte waits is not told again."""
        if self._ended and self._left <= 0:
            self._back.forget(self._stream)

    def on_failed(self, failure: Failure) -> None:
        dispatched = {Delivery.NOT_DISPATCHED: False, Delivery.UNKNOWN: None}.get(failure.delivery, True)
        self._back.forget(self._stream)
        # NOTE: a code of this machine's own may travel here.
        self._back.session.reset(self._stream, failure.code, failure.reason, dispatched)  # type: ignore[arg-type]
        self._back.poke()

    def on_flushed(self, size: int) -> None:
        self.moved_s = self._back.clock()
        self._back.consumed(self._stream, size)

    @property
    def held_bytes(self) -> int:
        """See buffers.Holder."""
        onward = self.onward
        queued = 0 if onward is None else onward.session.queued_bytes(self.onward_stream)
        return self._left + self.waiting_bytes + queued

    def drop(self) -> None:
        """See buffers.Holder."""
        delivery, self._waiting = None, None
        if self.onward is not None:
            delivery = self.onward.reset(self.onward_stream, ResetCode.CANCEL, BUFFERS_FULL)
        self.on_failed(Failure(DROPPED, BUFFERS_FULL, delivery or Delivery.RESPONSE_STARTED))

    def back_flushed(self, size: int) -> None:
        """Bytes of the answer left for the sibling."""
        self._left -= size
        self.moved_s = self._back.clock()
        if self.onward is not None:
            self.onward.consumed(self.onward_stream, size)
        self._forget_if_told()

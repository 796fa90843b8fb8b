"""One HTTP/2 connection: frames in and out, and the life of its streams."""

from __future__ import annotations

import contextlib
import struct
import time
from collections.abc import Callable
from typing import Any

from gevent import get_hub, getcurrent, joinall, spawn
from gevent.event import Event as Signal
from h2 import events as ev
from h2.connection import ConnectionState
from h2.errors import ErrorCodes
from h2.exceptions import H2Error

from fastpath.loop import RECEIVE_BYTES
from gateway import errors as e
from gateway.http1.connection import BODY_RECEIVE_BYTES, NO_BODY, Service
from gateway.http1.deadlines import NEVER, DeadlinePassed
from gateway.http2.frames import FrameBudget, FrameScanner, Kind, TooManyFrames
from gateway.http2.protocol import FIELD_OVERHEAD_BYTES, Offer, new_protocol
from gateway.http2.stream import Stream, bare_environ, tell_refused

MAX_WAITING_BYTES = 262_144
"""What may wait for the socket before streams, and then the reader, wait for it."""
_DATA_BYTES = 16_384
_CREDIT_BYTES = 16_384
_SEND_BYTES = 65_536
_TABLE_BYTES = 4_096
_WEAK_CIPHERS = ("GCM", "CHACHA20", "CCM")
"""What a cipher of TLS 1.2 must have one of (RFC 9113, 9.2.2)."""


class Http2Connection:
    """A connection over a gevent TLS socket whose handshake chose h2.

    One greenlet reads, one writes, and each stream has its own. Nothing but the reader calls `receive_data`.
    Units: `deadline_ns`, `slot`: see gateway.http1.deadlines; they are the reader's.
    """

    upgraded = False

    def __init__(self, service: Service, sock: Any, base: dict[str, Any], offer: Offer) -> None:
        """Shapes: `base` is the environ's part that is the same for every request of the connection."""
        self.service = service
        self.base = base
        base["wsgi.input"] = NO_BODY
        base["caregate.socket"] = sock
        self._sock = sock
        self._offer = offer
        self._protocol = new_protocol(offer)
        self._scanner = FrameScanner()
        now_ns = time.monotonic_ns()
        self._budget = FrameBudget(now_ns, 2 * service.limits.max_head_bytes)
        self._streams: dict[int, Stream] = {}
        self._blocked: set[Stream] = set()
        self._greenlet = getcurrent()
        self._hub = get_hub()
        self._writer = Writer(service, sock, self._wake_blocked, self._broken)
        self._waiting = False
        self._leaving = False
        self._closed = False
        self._owed_credit = 0
        self._frame_began_ns = now_ns
        self._idle_since_ns = now_ns
        self._last_id = 0
        self.deadline_ns = 0
        self.slot = NEVER

    # --- the loop

    def serve(self, unread: bytes = b"") -> None:
        """Answer requests until the connection ends; the caller closes the socket.

        Yields to the hub: yes.
        """
        by_peer = False
        try:
            self._flush()
            if self._refuse_weak_cipher():
                return
            while not self._finished():
                data = self._receive()
                if not data:
                    by_peer = True
                    break
                self._take(data)
        except DeadlinePassed:
            self._give_up()
        except OSError:
            by_peer = True
        finally:
            self._end(by_peer)

    def _finished(self) -> bool:
        return self._closed or (self._leaving and not self._streams)

    def _refuse_weak_cipher(self) -> bool:
        name, version, _ = self._sock.cipher()
        if version != "TLSv1.2" or any(mode in name for mode in _WEAK_CIPHERS):
            return False
        self._say_goaway(ErrorCodes.INADEQUATE_SECURITY)
        return True

    def _receive(self) -> bytes:
        """What has come, empty at the end of the stream. A client that takes nothing is not read from either.

        Raises: DeadlinePassed, OSError.
        """
        self._writer.wait_for_room(2 * MAX_WAITING_BYTES)
        if self._closed:
            raise ConnectionAbortedError
        self._arm()
        self._waiting = True
        try:
            return self._sock.recv(RECEIVE_BYTES)  # type: ignore[no-any-return]
        finally:
            self._waiting = False

    def _arm(self) -> None:
        """The reader's deadline: of a frame it is in, and of a connection without a request whatever else comes."""
        limits, scanner = self.service.limits, self._scanner
        deadline_ns = 0
        if scanner.inside:
            deadline_ns = self._frame_began_ns + (limits.body_ns if scanner.kind == Kind.DATA else limits.head_ns)
        if not self._streams and not scanner.inside_head:
            idle_ns = self._idle_since_ns + limits.keepalive_ns
            deadline_ns = min(deadline_ns, idle_ns) if deadline_ns else idle_ns
        if deadline_ns:
            self.service.deadlines.arm(self, deadline_ns)
        else:
            self.deadline_ns = 0

    def _give_up(self) -> None:
        """The reader's deadline has passed, or the worker leaves and the connection was idle."""
        if self._scanner.inside and not self._finished():
            self._tell_refused(e.RequestTimeout("A frame took too long to arrive"), 408)
            self._say_goaway(ErrorCodes.ENHANCE_YOUR_CALM)
        else:
            self._say_goaway(ErrorCodes.NO_ERROR)

    def expire(self) -> None:
        """Called from the hub when the deadline has passed, or to end an idle connection."""
        if self._waiting:
            self._greenlet.throw(DeadlinePassed)

    @property
    def idle(self) -> bool:
        """Does the connection wait for a first or another request?"""
        return self._waiting and not self._streams

    # --- frames that came

    def _take(self, data: bytes) -> None:
        """Run what came through the state machine; what breaks the protocol ends the connection."""
        was_inside, now_ns = self._scanner.inside, time.monotonic_ns()
        try:
            frames = self._scanner.feed(data)
            if frames or not was_inside:
                self._frame_began_ns = self._frame_began_ns if self._in_same_block(was_inside, frames) else now_ns
            self._budget.take(frames, self._scanner.block_bytes, now_ns)
            for event in self._protocol.receive_data(data):
                self._dispatch(event)
        except TooManyFrames as error:
            self._abort(ErrorCodes.ENHANCE_YOUR_CALM, f"The client sends too many frames: {error}")
        except H2Error:
            told = self._protocol.state_machine.state is ConnectionState.CLOSED
            self._abort(None if told else ErrorCodes.PROTOCOL_ERROR, "The frames break the protocol")
        except Exception:
            self.service.failed("The protocol failed")
            self._abort(ErrorCodes.INTERNAL_ERROR, "The frames break the protocol")
        self._flush()

    def _in_same_block(self, was_inside: bool, frames: list[tuple[int, int, int]]) -> bool:
        """Does the data only go on with a header block that was open? Its deadline then stays."""
        return was_inside and bool(frames) and all(kind == Kind.CONTINUATION for kind, _, _ in frames)

    def _abort(self, code: ErrorCodes | None, detail: str) -> None:
        """End the connection for a fault of the client; None if the state machine has said why."""
        if self._closed:
            return
        self._tell_refused(e.BadFraming(detail), 400)
        if code is not None:
            self._say_goaway(code)
        self._closed = True

    def _tell_refused(self, error: e.GatewayError, status: int) -> None:
        environ = bare_environ(self.service, self.base, time.monotonic_ns())
        tell_refused(self.service, environ, error, status)

    def _dispatch(self, event: ev.Event) -> None:
        act = _ACTIONS.get(type(event))
        if act is not None:
            act(self, event)

    def _on_request(self, event: Any) -> None:
        stream_id = event.stream_id
        # NOTE: streams that the client has reset count until their requests have ended.
        if self._leaving or len(self._streams) >= self._offer.streams:
            self._reset(stream_id, ErrorCodes.REFUSED_STREAM)
            if not self._leaving:
                self._budget.abort(time.monotonic_ns())
            return
        self._last_id = stream_id
        self._streams[stream_id] = Stream(self, stream_id, event.headers, event.stream_ended is not None)

    def _on_data(self, event: Any) -> None:
        """Content. The connection's credit goes back at once: a stream that waits holds up no other."""
        size = event.flow_controlled_length
        self._owed_credit += size
        if self._owed_credit >= _CREDIT_BYTES:
            self._protocol.increment_flow_control_window(self._owed_credit)
            self._owed_credit = 0
        stream = self._streams.get(event.stream_id)
        if stream is None:
            return
        padding = size - len(event.data)
        if padding and event.stream_ended is None:
            self.credit(event.stream_id, padding)
        stream.take_data(event.data)

    def _on_trailers(self, event: Any) -> None:
        stream = self._streams.get(event.stream_id)
        if stream is not None:
            stream.take_trailers(event.headers)

    def _on_end(self, event: Any) -> None:
        stream = self._streams.get(event.stream_id)
        if stream is not None:
            stream.take_end()

    def _on_reset(self, event: Any) -> None:
        stream = self._streams.get(event.stream_id)
        if stream is not None:
            stream.leave()
        self._budget.abort(time.monotonic_ns())

    def _on_window(self, event: Any) -> None:
        self._wake_blocked()

    def _on_settings(self, event: Any) -> None:
        # SEC: every answer has an id of its own; a table of the size a client likes would keep them all.
        encoder = self._protocol.encoder
        if encoder.header_table_size > _TABLE_BYTES:
            encoder.header_table_size = _TABLE_BYTES
        self._wake_blocked()

    def _on_goaway(self, event: Any) -> None:
        """The client opens no more streams; those that are open finish, unless it left in anger."""
        if self._protocol.state_machine.state is ConnectionState.CLOSED:
            self._closed = True
        self._leaving = True

    # --- what streams ask for: see gateway.http2.stream.Channel

    def send_head(self, stream_id: int, fields: list[tuple[bytes, bytes]], end: bool) -> None:
        """Raises: ConnectionResetError."""
        try:
            self._protocol.send_headers(stream_id, fields, end_stream=end)
        except H2Error as error:
            raise ConnectionResetError("the stream is closed") from error
        self._flush()

    def room(self, stream: Stream) -> int:
        self._blocked.add(stream)
        if self._writer.waiting_bytes >= MAX_WAITING_BYTES:
            return 0
        try:
            window = self._protocol.local_flow_control_window(stream.id)
        except H2Error as error:
            raise ConnectionResetError("the stream is closed") from error
        if window > 0:
            self._blocked.discard(stream)
        return max(0, min(window, _DATA_BYTES, self._protocol.max_outbound_frame_size))

    def send_data(self, stream_id: int, data: memoryview, end: bool) -> None:
        """Raises: ConnectionResetError."""
        try:
            self._protocol.send_data(stream_id, bytes(data), end_stream=end)
        except H2Error as error:
            raise ConnectionResetError("the stream is closed") from error
        self._budget.sent(len(data))
        self._flush()

    def credit(self, stream_id: int, size: int) -> None:
        with contextlib.suppress(H2Error, KeyError, ValueError):
            self._protocol.increment_flow_control_window(size, stream_id)
            self._flush()

    def serving(self, stream: Stream) -> None:
        if not self.service.count() or not self.service.keep_alive:
            self.leave()

    def refused(self) -> None:
        try:
            self._budget.abort(time.monotonic_ns())
        except TooManyFrames as error:
            self._abort(ErrorCodes.ENHANCE_YOUR_CALM, f"The client sends too many frames: {error}")
            self._interrupt_reader()

    def ended(self, stream: Stream) -> None:
        """Close the stream: an answer that is not whole is cut, a request that is not wanted any more is stopped."""
        if not stream.response.complete:
            self._reset(stream.id, ErrorCodes.INTERNAL_ERROR)
        elif not stream.ended:
            self._reset(stream.id, ErrorCodes.NO_ERROR)
        else:
            self._budget.answered()
        self._blocked.discard(stream)
        self._streams.pop(stream.id, None)
        self._idle_since_ns = time.monotonic_ns()
        self._flush()
        if self._finished():
            self._interrupt_reader()
        elif self._waiting:
            self._arm()

    # --- leaving

    def leave(self) -> None:
        """Say GOAWAY: open streams finish, later ones are refused so that the client repeats them elsewhere."""
        if not self._leaving and not self._closed:
            self._leaving = True
            self._say_goaway(ErrorCodes.NO_ERROR)
            if not self._streams:
                self._interrupt_reader()

    def interrupt(self) -> None:
        """Have the requests that still run end with GraceEnded."""
        self._leaving = True
        for stream in list(self._streams.values()):
            stream.interrupt()
        if not self._streams:
            self._interrupt_reader()

    def _interrupt_reader(self) -> None:
        # NOTE: `expire` switches to the reader's greenlet, which only the hub gets control back from.
        if self._waiting:
            self._hub.loop.run_callback(self.expire)

    def _say_goaway(self, code: ErrorCodes) -> None:
        """NOTE: h2's own close_connection would let nothing be sent after it."""
        if not self._closed:
            frame = b"\0\0\x08\x07\0\0\0\0\0" + struct.pack(">II", self._last_id, code)
            self._flush()
            self._writer.put(frame)

    def _broken(self) -> None:
        """The writer cannot send."""
        self._closed = True
        self._interrupt_reader()

    def _end(self, by_peer: bool) -> None:
        """Let the streams end, send what is to be sent, and close so that the client sees it."""
        self._closed = True
        self.service.deadlines.forget(self)
        streams = list(self._streams.values())
        for stream in streams:
            stream.leave()
        self._writer.finish()
        if not by_peer:
            self._linger()
        # NOTE: last, so that the client need not wait for what a request still does; a leaving worker does.
        joinall([stream.greenlet for stream in streams])
        self.base = {}

    def _linger(self) -> None:
        """Let the client read the last frames before the socket closes on bytes it still sends."""
        limits = self.service.limits
        left = limits.linger_bytes
        try:
            self._sock.shutdown(1)
            self.service.deadlines.arm(self, time.monotonic_ns() + limits.linger_ns)
            self._waiting = True
            while left > 0 and (piece := self._sock.recv(BODY_RECEIVE_BYTES)):
                left -= len(piece)
        except (OSError, DeadlinePassed):
            pass
        finally:
            self._waiting = False
            self.service.deadlines.forget(self)

    # --- frames that go

    def _reset(self, stream_id: int, code: ErrorCodes) -> None:
        """RST_STREAM, unless the stream is closed already."""
        with contextlib.suppress(H2Error, KeyError):
            self._protocol.reset_stream(stream_id, code)

    def _flush(self) -> None:
        data = self._protocol.data_to_send()
        if data:
            self._writer.put(data)

    def _wake_blocked(self) -> None:
        for stream in self._blocked:
            stream.wake()
        self._blocked.clear()


_ACTIONS: dict[type[ev.Event], Callable[[Http2Connection, Any], None]] = {
    ev.RequestReceived: Http2Connection._on_request,
    ev.DataReceived: Http2Connection._on_data,
    ev.TrailersReceived: Http2Connection._on_trailers,
    ev.StreamEnded: Http2Connection._on_end,
    ev.StreamReset: Http2Connection._on_reset,
    ev.WindowUpdated: Http2Connection._on_window,
    ev.RemoteSettingsChanged: Http2Connection._on_settings,
    ev.ConnectionTerminated: Http2Connection._on_goaway,
}


class Writer:
    """The one greenlet that writes to the socket.

    Shapes: `waiting_bytes` have been put and not been taken by the socket.
    Units: `deadline_ns`, `slot`: see gateway.http1.deadlines.
    """

    def __init__(self, service: Service, sock: Any, sent: Callable[[], None], broken: Callable[[], None]) -> None:
        """`sent` is called when there is room again, `broken` once if the client takes nothing any more."""
        self._service = service
        self._sock = sock
        self._sent = sent
        self._tell_broken = broken
        self._pieces: list[bytes] = []
        self._work = Signal()
        self._room = Signal()
        self._finishing = False
        self._dead = False
        self._sending = False
        self.waiting_bytes = 0
        self.deadline_ns = 0
        self.slot = NEVER
        self._greenlet = spawn(self._run)

    def put(self, data: bytes) -> None:
        """Send bytes after all that were put before."""
        if not self._dead:
            self._pieces.append(data)
            self.waiting_bytes += len(data)
            self._work.set()

    def wait_for_room(self, most_bytes: int) -> None:
        """Yields to the hub: until at most so many bytes wait, or nothing is sent any more."""
        while self.waiting_bytes > most_bytes and not self._dead:
            self._room.clear()
            self._room.wait()

    def finish(self) -> None:
        """Yields to the hub: until all is sent, or the client has taken nothing for the write limit."""
        self._finishing = True
        self._work.set()
        self._greenlet.join()
        self._dead = True
        self._service.deadlines.forget(self)

    def expire(self) -> None:
        """Called from the hub when the client has taken nothing for the write limit."""
        if self._sending:
            self._greenlet.throw(DeadlinePassed)

    def _run(self) -> None:
        try:
            while True:
                if self._pieces:
                    self._send()
                elif self._finishing:
                    return
                else:
                    self._work.clear()
                    self._work.wait()
        except (OSError, DeadlinePassed):
            self._dead = True
            self._pieces.clear()
            self._room.set()
            if not self._finishing:
                self._tell_broken()

    def _send(self) -> None:
        """Raises: OSError, DeadlinePassed."""
        rest = memoryview(b"".join(self._pieces))
        self._pieces.clear()
        while rest:
            self._service.deadlines.arm(self, time.monotonic_ns() + self._service.limits.write_ns)
            self._sending = True
            try:
                size = self._sock.send(rest[:_SEND_BYTES])
            finally:
                self._sending = False
                self.deadline_ns = 0
            rest = rest[size:]
            self.waiting_bytes -= size
            if self.waiting_bytes < MAX_WAITING_BYTES:
                self._room.set()
                self._sent()


def offer_of(service: Service, streams: int, window_bytes: int, frame_bytes: int) -> Offer:
    """What the worker's connections announce. Fields somewhat over the limit are read, so that they can be answered."""
    limits = service.limits
    fields_bytes = 2 * limits.max_head_bytes + 4 * limits.max_fields * FIELD_OVERHEAD_BYTES
    return Offer(streams, window_bytes, frame_bytes, fields_bytes)

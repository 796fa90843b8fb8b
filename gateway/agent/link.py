"""One connection to the gateway: a relay session over a WebSocket, one greenlet that reads and one that writes.

Nobody else touches the socket, but for the hub: what exchanges ask for in one turn leaves in one write at its end, and
the writer sends what a plain socket does not take at once, whatever goes over TLS, and the end.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import gevent
from gevent import socket
from gevent.event import AsyncResult, Event

from fastpath.frames import (
    OP_BINARY,
    OP_CLOSE,
    OP_PING,
    OP_PONG,
    OP_TEXT,
    Decoder,
    FrameError,
    decode_close,
    encode_close,
    encode_frame,
    encode_messages,
)
from gateway.agent.exchange import Exchange
from gateway.relay import events as ev
from gateway.relay.frames import GoAwayCode, Hello, Request, ResetCode, Response, Welcome
from gateway.relay.readable import Readable
from gateway.relay.session import Limits, State, UnitSession
from gateway.relay.unsent import limit_unsent

if TYPE_CHECKING:
    from gateway.agent.log import Log
    from gateway.agent.services import Services
    from gateway.agent.settings import AgentSettings

RECEIVE_BYTES = 65_536
ROOM_BYTES = 32_768
"""An exchange may put more of its answer in hand while less than this is unsent."""
RENEW_AT = 0.6
"""Of a token's remaining life; late enough to be rare, early enough for two more attempts."""
CLOSE_GRACE_S = 1.0
ACK_DELAY_S = 0.005
"""How long an ACK waits for an answer to leave with; if the link is lost meanwhile, `unknown` is true."""


@dataclass(frozen=True, slots=True)
class LinkEnd:
    """How a connection ended, or that it is going to (`goaway` set, the connection still open).

    Units: `lived_s` seconds since WELCOME, 0 if there was none.
    """

    reason: str
    lived_s: float = 0.0
    goaway: ev.GoAwayReceived | None = None


class Link:
    """Run it once, in its own greenlet. `outcome` is set at GOAWAY or at the end, whichever is first."""

    def __init__(
        self, settings: AgentSettings, services: Services, log: Log, hello: Hello, on_active: Callable[[], None]
    ) -> None:
        """`on_active` is called at WELCOME."""
        limits = Limits(max_streams=settings.max_streams)
        self._settings = settings
        self._services = services
        self._on_active = on_active
        self._log = log
        self._session = UnitSession(limits, time.monotonic(), hello)
        self._decoder = Decoder(masked=False, max_bytes=limits.max_frame)
        self._exchanges: dict[int, tuple[Exchange, gevent.Greenlet]] = {}
        self._room: dict[int, Event] = {}
        self._wake = Event()
        self._loop = gevent.get_hub().loop
        self._readable: Readable | None = None
        self._send_now: Callable[[bytes], int] | None = None
        self._flush_due = False
        self._writing = False
        self._rest = b""
        # NOTE: one without a repetition starts with what was left when it was stopped, in the end with nothing.
        self._ack_timer = self._loop.timer(ACK_DELAY_S, ACK_DELAY_S)
        self._waiting_acks = 0
        self._pong: bytes | None = None
        self._closing: bytes | None = None
        self._leaving = False
        self._lease = settings.max_streams
        self._welcomed_s = 0.0
        self._renew_s = float("inf")
        self._end = ""
        self.outcome: AsyncResult = AsyncResult()

    # --- what the agent asks

    @property
    def streams(self) -> int:
        return len(self._exchanges)

    def leave(self, why: str) -> None:
        """Take no new requests; the connection ends when the open ones have."""
        if not self._leaving:
            self._leaving = True
            self._session.go_away(GoAwayCode.DRAIN, why)
            self._wake.set()

    def close(self, why: str) -> None:
        """End now; what is open is lost."""
        self._session.close(GoAwayCode.DRAIN, why)
        self._finish(why)

    def lease(self, full: bool) -> None:
        """Tell the gateway how many requests to send at once: what runs now, while no service has a place.

        It then answers the others itself, or gives them to another machine of the unit, without a way here and back.
        """
        running = sum(exchange.holds_place for exchange, _ in self._exchanges.values())
        lease = min(self._lease, max(1, running)) if full else self._settings.max_streams
        if lease != self._lease and self._session.state is State.ACTIVE:
            self._lease = lease
            self._session.send_lease(lease)
            self._flush_soon()

    # --- the two greenlets

    def run(self, sock: socket.socket, unread: bytes) -> None:
        """Serve the connection until it ends, then close the socket. Yields to the hub."""
        limit_unsent(sock)
        # TLS may have to read before it writes: that is left to the greenlets.
        if type(sock) is socket.socket:
            self._readable, self._send_now = Readable(sock), sock._sock.send
        self._wake.set()  # HELLO waits in the session
        writer = gevent.spawn(self._write, sock)
        try:
            self._read(sock, unread or None)
        except OSError as error:
            self._finish(type(error).__name__)
        except Exception as error:
            self._log.error("link_fault", error=type(error).__name__)
            self._finish("fault")
        finally:
            self._wake.set()
            writer.join(CLOSE_GRACE_S)
            writer.kill()
            if self._readable is not None:
                self._readable.close()
            sock.close()
            self._release_all()

    def _read(self, sock: socket.socket, data: bytes | None) -> None:
        due_s = 0.0
        while data != b"":
            if data:
                self._take(data)
            # NOTE: bytes may always be there.
            if not data or time.monotonic() >= due_s:
                self._tick()
            if self._end:
                return
            due_s = min(self._session.next_deadline_s, self._renew_s)
            data = self._receive(sock, due_s)
        self._finish("closed by the gateway")

    def _receive(self, sock: socket.socket, due_s: float) -> bytes | None:
        """Bytes, nothing at the end of the stream, None when a tick is due, and maybe before.

        NOTE: a timeout of the socket would hold for the writer too.
        """
        if self._readable is not None:
            return self._readable.receive_until(RECEIVE_BYTES, due_s)
        with gevent.Timeout(max(due_s - time.monotonic(), 0.001), False):
            return bytes(sock.recv(RECEIVE_BYTES))
        return None

    def _write(self, sock: socket.socket) -> None:
        try:
            while self._closing is None:
                self._wake.wait()
                self._wake.clear()
                self._writing = True
                self._flush(sock)
                self._writing = False
                if self._session.state is State.CLOSED:
                    self._finish(self._session.close_reason)
                if self._leaving and self._session.idle and not self._exchanges:
                    self._finish("left")
            sock.sendall(self._closing)
        except OSError as error:
            self._finish(type(error).__name__)
        _shut(sock)

    def _flush_soon(self) -> None:
        """Write what there is once the hub has run whoever is ready now."""
        if self._send_now is None:
            self._wake.set()
        elif not self._flush_due:
            self._flush_due = True
            self._loop.run_callback(self._flush_now)

    def _flush_now(self) -> None:
        """Called from the hub: may not wait. Whatever it leaves is the writer's.

        PERF: `relay_open`: a greenlet that is woken for each answer takes a twentieth of the agent's time.
        """
        self._flush_due = False
        session, send = self._session, self._send_now
        leaves = self._leaving or self._closing is not None or session.state is State.CLOSED
        if leaves or self._writing or self._pong is not None or send is None:
            self._wake.set()
            return
        self._ack_timer.stop()
        if session.has_frames:
            data = self._frames()
            try:
                sent = send(data)
            except BlockingIOError:
                sent = 0
            except OSError as error:
                self._finish(type(error).__name__)
                return
            if sent < len(data):
                self._rest, self._writing = data[sent:], True
            self._tell_room()
        if self._writing or session.has_frames:
            self._wake.set()

    def _frames(self) -> bytes:
        """PERF: `relay_small`: one draw of entropy and one piece for all frames of a write."""
        self._waiting_acks = 0
        messages = self._messages()
        return encode_messages(messages, os.urandom(4 * len(messages)))

    def _flush(self, sock: socket.socket) -> None:
        session = self._session
        self._ack_timer.stop()
        rest, self._rest = self._rest, b""
        sock.sendall(rest)
        while session.has_frames or self._pong is not None:
            data = self._frames()
            if self._pong is not None:
                data += encode_frame(OP_PONG, self._pong, os.urandom(4))
                self._pong = None
            sock.sendall(data)
            self._tell_room()

    def _messages(self) -> list[bytes]:
        return self._session.data_to_send(time.monotonic())

    def _tell_room(self) -> None:
        for stream, _ in self._session.take_flushed():
            room = self._room.get(stream)
            if room is not None:
                room.set()

    # --- arrivals

    def _take(self, data: bytes) -> None:
        try:
            messages = self._decoder.feed(data)
        except FrameError:
            return
        for opcode, payload in messages:
            if self._end:
                return
            self._take_message(opcode, payload)
        fault = self._decoder.error
        if fault is not None and not self._end:
            self._closing = encode_close(fault.code, "", os.urandom(4))
            self._on_events(self._session.violate("websocket", str(fault)))

    def _take_message(self, opcode: int, payload: bytes | str) -> None:
        if isinstance(payload, str) or opcode == OP_TEXT:
            self._on_events(self._session.violate("text", "a text message"))
        elif opcode == OP_BINARY:
            self._on_events(self._session.receive(payload, time.monotonic()))
        elif opcode == OP_PING:
            self._pong = payload
            self._wake.set()
        elif opcode == OP_CLOSE:
            code, _ = decode_close(payload)
            # RFC 6455 5.5.1: the answer to a close frame has its code; 1005 stands for none.
            echo = b"" if code == 1005 else payload[:2]
            self._closing = encode_frame(OP_CLOSE, echo, os.urandom(4))
            self._finish(f"closed by the gateway with {code}")

    def _tick(self) -> None:
        now_s = time.monotonic()
        if now_s >= self._session.next_deadline_s:
            self._on_events(self._session.tick(now_s))
        if now_s >= self._renew_s and self._session.state is not State.CLOSED:
            self._renew_s = now_s + 30.0
            self._session.renew_token(self._settings.identity.token(time.time()))
            self._flush_soon()

    def _on_events(self, events: list[ev.Event]) -> None:
        for event in events:
            self._on_event(event)
        if self._leaving or self._has_more_than_acks():
            self._flush_soon()

    def _on_event(self, event: ev.Event) -> None:
        match event:
            case ev.RequestReceived():
                self._start(event)
            case ev.DataReceived(stream, body, end):
                self._feed(stream, body, end)
            case ev.GoReceived(stream) if stream in self._exchanges:
                self._exchanges[stream][0].go()
            case ev.StreamAborted(stream):
                self._abort(stream)
            case ev.WelcomeReceived(welcome):
                self._welcome(welcome)
            case ev.TokenAccepted(exp):
                self._plan_renewal(exp)
            case ev.GoAwayReceived():
                self._on_goaway(event)
            case ev.SessionClosed(reason, detail):
                self._log.warning("session_closed", reason=reason, detail=detail)
                self._finish(reason)

    def _welcome(self, welcome: Welcome) -> None:
        self._welcomed_s = time.monotonic()
        self._plan_renewal(welcome.token_exp)
        self._log.info("connected", conn=welcome.conn, node=welcome.node, worker=welcome.worker)
        self._on_active()

    def _plan_renewal(self, exp: int) -> None:
        """Units: `exp` seconds since 1970; 0: the gateway does not end the link with the token."""
        left_s = exp - time.time()
        self._renew_s = time.monotonic() + max(1.0, left_s * RENEW_AT) if exp else float("inf")

    def _on_goaway(self, event: ev.GoAwayReceived) -> None:
        self._log.info("goaway", code=event.code, retry_ms=event.retry_ms, why=event.why)
        self._tell(LinkEnd("goaway", self._lived_s(), event))

    # --- exchanges

    def _start(self, event: ev.RequestReceived) -> None:
        stream = event.stream
        exchange = self._exchange(stream, event.request)
        exchange.feed(event.body, event.end)
        self._exchanges[stream] = (exchange, gevent.spawn(self._run_exchange, stream, exchange))

    def _exchange(self, stream: int, request: Request) -> Exchange:
        ledger = self._services.ledger
        if request.idempotency is None or ledger is None:
            return Exchange(self, self._services, self._log, stream, request)
        from gateway.agent.keyed import KeyedExchange  # PERF: SQLite is not loaded for an agent without a ledger

        return KeyedExchange(self, self._services, self._log, stream, request, ledger)

    def _run_exchange(self, stream: int, exchange: Exchange) -> None:
        try:
            exchange.run()
        finally:
            self._exchanges.pop(stream, None)
            self._room.pop(stream, None)
            if self._leaving:
                self._wake.set()

    def _feed(self, stream: int, body: bytes, end: bool) -> None:
        entry = self._exchanges.get(stream)
        if entry is None:
            self._session.consumed(stream, len(body))
        else:
            entry[0].feed(body, end)

    def _abort(self, stream: int) -> None:
        # NOTE: a greenlet that is killed before it ran never cleans up, so the entry goes here.
        entry = self._exchanges.pop(stream, None)
        if entry is not None:
            self._let_go(stream, *entry)

    def _let_go(self, stream: int, exchange: Exchange, greenlet: gevent.Greenlet) -> None:
        """Its stream is gone."""
        room = self._room.pop(stream, None)
        if not exchange.outlives_its_stream:
            greenlet.kill(block=False)
            return
        if room is not None:
            room.set()  # or it would wait for ever for bytes to leave
        self._services.detach(greenlet)

    # --- Carrier: called by exchanges

    def send_ack(self, stream: int) -> bool:
        """PERF: `relay_small`: with the answer in one write it spares both sides a wake-up a request."""
        if not self._session.send_ack(stream):
            return False
        self._waiting_acks += 1
        if not self._ack_timer.active:
            self._ack_timer.again(self._send_acks)
        return True

    def _send_acks(self) -> None:
        self._ack_timer.stop()
        self._flush_soon()

    def _has_more_than_acks(self) -> bool:
        session = self._session
        outbox = session.outbox
        return bool(outbox.ring) or len(outbox.control) > self._waiting_acks or bool(session.due)

    def send_response(self, stream: int, response: Response, body: bytes, end: bool) -> bool:
        return self._sent(self._session.send_response(stream, response, body, end))

    def send_data(self, stream: int, body: bytes, end: bool) -> bool:
        """Yields to the hub until there is room for more."""
        while self._session.queued_bytes(stream) >= ROOM_BYTES:
            room = self._room.setdefault(stream, Event())
            room.clear()
            room.wait()
        return self._sent(self._session.send_data(stream, body, end))

    def reset(self, stream: int, code: ResetCode, reason: str, dispatched: bool) -> None:
        self._session.reset(stream, code, reason, dispatched)
        self._flush_soon()

    def consumed(self, stream: int, size: int) -> None:
        if size:
            self._session.consumed(stream, size)
            if self._has_more_than_acks():
                self._flush_soon()

    def _sent(self, alive: bool) -> bool:
        self._flush_soon()
        return alive

    # --- the end

    def _finish(self, reason: str) -> None:
        """Remember why, say goodbye if the socket lives, and tell whoever waits; the first reason counts."""
        if self._end:
            return
        self._end = reason
        if self._closing is None:
            self._closing = encode_close(1000, "", os.urandom(4))
        self._wake.set()

    def _release_all(self) -> None:
        self._ack_timer.stop()
        self._ack_timer.close()
        self._session.fail_all()
        for stream, (exchange, greenlet) in list(self._exchanges.items()):
            self._let_go(stream, exchange, greenlet)
        self._log.info("disconnected", reason=self._end, lived_s=round(self._lived_s(), 1))
        self._tell(LinkEnd(self._end, self._lived_s()))

    def _tell(self, end: LinkEnd) -> None:
        if not self.outcome.ready():
            self.outcome.set(end)

    def _lived_s(self) -> float:
        return time.monotonic() - self._welcomed_s if self._welcomed_s else 0.0


def _shut(sock: socket.socket) -> None:
    """Nothing more is written: the reader wakes up and sees the end."""
    try:
        sock.shutdown(2)
    except OSError:
        pass

"""One connection of a simulated unit: dial, HELLO, then an answer to every request, all from one greenlet."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable

from fastpath import frames as ws
from gateway.agent.dial import RECEIVE_BYTES
from gateway.agent.handshake import Handshake, HandshakeBroken
from gateway.agent.settings import AgentSettings
from gateway.relay import events as ev
from gateway.relay.frames import MAX_FRAME_BYTES, GoAwayCode, Hello, Request
from gateway.relay.session import Limits, State, UnitSession
from loadtests.simulated_unit import answer
from loadtests.wire import Wire

AGENT = "caregate-loadtests"
RENEW_SHARE = 0.75
"""How much of a token's time passes before it is renewed."""
MIN_RENEW_S = 1.0


class LinkLost(Exception):
    """The connection could not be opened; the message is a short reason that names no address."""


class Stopping(BaseException):
    """Thrown into the greenlet of a connection that is to say good-bye."""


class UnitLink:
    """`open`, then `serve` until it ends or is told to move, then `close`.

    Shapes: `moved_to` is (retry_ms, jitter_ms) of a GOAWAY, or None; `ended` says in a word how it ended.
    """

    __slots__ = (
        "_answered",
        "_decoder",
        "_hello",
        "_identity",
        "_leaving",
        "_open_requests",
        "_renew_at_s",
        "_session",
        "_settings",
        "_token",
        "_told",
        "_welcomed",
        "_wire",
        "ended",
        "moved_to",
    )  # fmt: skip

    def __init__(
        self,
        settings: AgentSettings,
        index: int,
        instance: str,
        last_close: str | None,
        answered: Callable[[str, str], None],
        token: str | None = None,
    ) -> None:
        """Shapes: `token` was signed before, for this dial alone; None: it is signed when the unit dials."""
        self.moved_to: tuple[int, int] | None = None
        self.ended = "lost"
        self._settings = settings
        self._identity = settings.identity
        self._answered = answered
        self._token = token
        self._decoder = ws.Decoder(masked=False, max_bytes=MAX_FRAME_BYTES)
        self._hello = Hello(AGENT, instance, index, last_close=last_close)
        self._session: UnitSession
        self._wire = Wire()
        self._open_requests: dict[int, Request] = {}
        self._renew_at_s = float("inf")
        self._welcomed = False
        self._told = False
        self._leaving = False

    def open(self) -> None:
        """Dial and introduce the unit; returns when the gateway has welcomed it.

        Raises: HandshakeRefused, LinkLost. Yields to the hub.
        """
        try:
            unread = self._dial()
            # NOTE: as the agent's, the session begins now: the dial may have waited for longer than WELCOME may take.
            self._session = UnitSession(Limits(), time.monotonic(), self._hello)
            self._receive(unread)
            while not self._welcomed:
                if not self._turn():
                    raise LinkLost(self.ended)
        except (OSError, HandshakeBroken) as error:
            self.close()
            raise LinkLost(type(error).__name__) from error
        except BaseException:
            self.close()
            raise

    def _dial(self) -> bytes:
        """What came after the handshake. Raises: HandshakeRefused, HandshakeBroken, OSError."""
        gateway, limit_s = self._settings.gateway, self._settings.dial_timeout_s
        token, self._token = self._token, None
        handshake = Handshake(gateway, token or self._identity.token(time.time()))
        until_s = time.monotonic() + limit_s
        self._wire.connect(gateway.host, gateway.port)
        self._wire.send(handshake.request, limit_s)
        while True:
            data = self._wire.receive(RECEIVE_BYTES, until_s - time.monotonic())
            if not data:
                raise TimeoutError if data is None else HandshakeBroken("closed before the answer")
            unread = handshake.receive(data)
            if unread is not None:
                return unread

    def serve(self) -> bool:
        """Answer until the connection ends, or, once, until it is told to move: True, and it is to be served on.

        Raises: Stopping, after a good-bye. Yields to the hub.
        """
        try:
            while self._turn():
                if self.moved_to is not None and not self._told:
                    self._told = True
                    return True
        except OSError:
            pass
        except Stopping:
            self._say_good_bye()
            raise
        return False

    def leave(self) -> None:
        """Another connection has taken over: end as soon as no request is open. Yields to the hub."""
        self._leaving = True
        if self._session.idle:
            self._say_good_bye()
            with contextlib.suppress(OSError):
                self._wire.hang_up()

    def close(self) -> None:
        """Free the socket, in any state."""
        self._wire.close()

    def _turn(self) -> bool:
        """Write what waits, then wait for bytes or for the next moment something is due. False when it is over."""
        self._flush()
        if self._session.state is State.CLOSED or (self._leaving and self._session.idle):
            return False
        due_s = min(self._session.next_deadline_s, self._renew_at_s)
        data = self._wire.receive(RECEIVE_BYTES, min(due_s - time.monotonic(), 60.0))
        if data is None:
            self._tick()
            return True
        if not data:
            return False
        return self._receive(data)

    def _flush(self) -> None:
        while messages := self._session.data_to_send(time.monotonic()):
            data = ws.encode_messages(messages, os.urandom(4 * len(messages)))
            self._wire.send(data, self._settings.dial_timeout_s)

    def _tick(self) -> None:
        now_s = time.monotonic()
        if now_s >= self._renew_at_s:
            self._renew_at_s = float("inf")
            self._session.renew_token(self._identity.token(time.time()))
        self._take(self._session.tick(now_s))

    def _receive(self, data: bytes) -> bool:
        """Take bytes; False when the peer has closed."""
        for opcode, payload in self._decoder.feed(data):
            if opcode == ws.OP_BINARY and isinstance(payload, bytes):
                self._take(self._session.receive(payload, time.monotonic()))
            elif opcode == ws.OP_TEXT:
                self._take(self._session.violate("text", "a text message"))
            elif opcode == ws.OP_CLOSE:
                self.ended = "closed"
                return False
        if self._decoder.error is not None:
            self.ended = "bad-frame"
            return False
        return True

    def _take(self, events: list[ev.Event]) -> None:
        for event in events:
            match event:
                case ev.RequestReceived(stream, request, body, end):
                    self._open_requests[stream] = request
                    self._body(stream, body, end)
                case ev.DataReceived(stream, body, end):
                    self._body(stream, body, end)
                case ev.StreamAborted(stream=stream):
                    self._open_requests.pop(stream, None)
                case ev.WelcomeReceived(welcome):
                    self._welcomed = True
                    self._renew_before(welcome.token_exp)
                case ev.TokenAccepted(exp):
                    self._renew_before(exp)
                case ev.GoAwayReceived(retry_ms=retry_ms, jitter_ms=jitter_ms, why=why):
                    self.moved_to, self.ended = (retry_ms, jitter_ms), why or "goaway"
                case ev.SessionClosed(reason):
                    self.ended = reason
                case _:
                    pass

    def _body(self, stream: int, body: bytes, end: bool) -> None:
        self._session.consumed(stream, len(body))
        if not end:
            return
        request = self._open_requests.pop(stream, None)
        if request is None or not self._session.send_ack(stream):
            return
        response, content = answer(self._identity.unit, request.method, request.target)
        self._session.send_response(stream, response, content, end=True)
        self._answered(request.method, request.target)

    def _renew_before(self, expires_s: int) -> None:
        """Units: `expires_s` seconds since 1970; 0: it does not expire."""
        if expires_s:
            self._renew_at_s = time.monotonic() + max(MIN_RENEW_S, (expires_s - time.time()) * RENEW_SHARE)

    def _say_good_bye(self) -> None:
        self.ended = "stopped"
        self._session.go_away(GoAwayCode.DRAIN, "stopped")
        try:
            self._flush()
            self._wire.send(ws.encode_close(1001, "", os.urandom(4)), self._settings.dial_timeout_s)
        except OSError:
            pass

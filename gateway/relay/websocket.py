"""gevent-websocket's WebSocket over a gevent socket, with the frame codec of `fastpath` in the place of its own.

The handshake happened before, after authentication. One greenlet may read and one may write; answers to pings are left
for the writer.
"""

from __future__ import annotations

import contextlib
import socket
from typing import Any, Final

from gevent.socket import socket as PlainSocket
from geventwebsocket.exceptions import WebSocketError
from geventwebsocket.websocket import WebSocket

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
    encode_head,
)
from gateway.relay.link import CarrierFault, quietly_shut

READ_BYTES: Final = 65_536
MAX_REPLIES: Final = 64
"""SEC: pings whose answers the peer does not read; older ones are dropped, as RFC 6455 5.5.3 allows."""


class _Stream:
    """What gevent-websocket wants of a stream; the codec below goes to the socket itself."""

    def __init__(self, sock: Any) -> None:
        self.read = sock.recv
        self.write = sock.sendall


class UnitSocket(WebSocket):  # type: ignore[misc]
    """The server's side of a WebSocket: peer frames must be masked, ours are not."""

    closed: bool
    __slots__ = ("_decoder", "_events", "_raw", "_replies", "_rest", "_sock", "_unread", "close_received", "close_sent")

    def __init__(self, sock: Any, unread: bytes, max_bytes: int, environ: dict[str, Any] | None = None) -> None:
        super().__init__(environ or {}, _Stream(sock), None)
        self._sock = sock
        # TLS may have to read before it writes: that is left to the greenlets.
        self._raw = sock._sock if type(sock) is PlainSocket else None
        self._rest = b""
        self._unread = unread
        self._decoder = Decoder(masked=True, max_bytes=max_bytes)
        self._replies: list[bytes] = []
        self._events: list[tuple[int, bytes | str]] = []
        self.close_received: tuple[int, str] | None = None
        self.close_sent = False

    def __del__(self) -> None:
        """The owner closes; a collected object writes nothing."""

    # --- messages in batches: what the link uses

    def read(self) -> list[bytes] | None:
        """The next binary messages, None when the peer closed. Raises: OSError, CarrierFault."""
        while True:
            events = self._read_events()
            if events is None:
                return None
            messages = [self._take_event(opcode, payload) for opcode, payload in events]
            whole = [message for message in messages if message is not None]
            if whole or self._replies:
                return whole
            if self.close_received is not None:
                return None

    def _read_events(self) -> list[tuple[int, bytes | str]] | None:
        if self.close_received is not None:
            return None
        if self._decoder.error is not None:
            raise CarrierFault(self._decoder.error.code, str(self._decoder.error))
        data, self._unread = self._unread or self._sock.recv(READ_BYTES), b""
        if not data:
            return None
        try:
            return self._decoder.feed(data)
        except FrameError as error:
            raise CarrierFault(error.code, str(error)) from None

    def _take_event(self, opcode: int, payload: bytes | str) -> bytes | None:
        if opcode == OP_BINARY:
            return payload if type(payload) is bytes else b""
        if opcode == OP_TEXT:
            raise CarrierFault(1003, "a text message")
        if opcode == OP_PING and len(self._replies) < MAX_REPLIES:
            self._replies.append(encode_frame(OP_PONG, payload))  # type: ignore[arg-type]
        elif opcode == OP_CLOSE:
            self.close_received = decode_close(payload)  # type: ignore[arg-type]
        return None

    def has_replies(self) -> bool:
        return bool(self._replies or self._rest)

    def write(self, messages: list[bytes]) -> None:
        """All messages in one write, answers to pings first."""
        data = self._encode(messages)
        self._rest = b""
        self._sock.sendall(data)

    def write_now(self, messages: list[bytes]) -> bool:
        data = self._encode(messages)
        sent = 0
        if self._raw is not None:
            with contextlib.suppress(BlockingIOError):
                sent = self._raw.send(data, socket.MSG_DONTWAIT)
        self._rest = data[sent:]
        return sent == len(data)

    def _encode(self, messages: list[bytes]) -> bytes:
        """What was kept, answers to pings, then the messages."""
        parts = [self._rest, *self._replies]
        self._replies = []
        for message in messages:
            parts.append(encode_head(OP_BINARY, len(message)))
            parts.append(message)
        return b"".join(parts)

    def say_goodbye(self, code: int, reason: str) -> None:
        """A close frame, once, then the end of our direction."""
        if self.close_sent:
            return
        self.close_sent = True
        self._sock.sendall(encode_close(code, reason))
        with contextlib.suppress(OSError):
            self._sock.shutdown(1)

    def linger(self) -> None:
        while self._sock.recv(READ_BYTES):
            pass

    def abort(self) -> None:
        quietly_shut(self._sock)

    # --- gevent-websocket's own interface

    def receive(self) -> bytes | str | None:
        """The next message, None at the end. Raises: WebSocketError after the end."""
        if self.closed:
            raise WebSocketError("Connection is already closed")
        while not self._events:
            events = self._read_events()
            if events is None:
                return None
            self._events = events
        opcode, payload = self._events.pop(0)
        if opcode in (OP_TEXT, OP_BINARY):
            return payload
        self._take_event(opcode, payload)
        if self._replies:
            self.write([])
        return self.receive()

    def send_frame(self, message: bytes | str, opcode: int) -> None:
        """Raises: WebSocketError if the socket is dead or closed."""
        if self.closed:
            raise WebSocketError("Connection is already closed")
        try:
            self._sock.sendall(encode_frame(opcode, message.encode() if isinstance(message, str) else message))
        except OSError:
            raise WebSocketError("Socket is dead") from None

    def send(self, message: bytes | str, binary: bool | None = None) -> None:
        """Text for a str, binary for bytes, unless `binary` says otherwise."""
        if binary is None:
            binary = not isinstance(message, str)
        self.send_frame(message, OP_BINARY if binary else OP_TEXT)

    def close(self, code: int = 1000, message: bytes | str = b"") -> None:
        """Say goodbye if that was not done, and end both directions; whoever accepted the socket closes it."""
        if self.closed:
            return
        self.closed = True  # type: ignore[misc]
        with contextlib.suppress(OSError):
            if not self.close_sent:
                # NOTE: the owner is leaving: a peer that does not read must not hold it.
                self._sock.settimeout(0.5)
                self.say_goodbye(code, message if isinstance(message, str) else message.decode("utf-8", "ignore"))
        quietly_shut(self._sock)

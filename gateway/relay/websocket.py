"""gevent-websocket's WebSocket over a gevent socket, with the frame codec of `fastpath` in the place of its own.

The handshake happened before, after authentication. One greenlet may read; whoever writes while another does waits for
his turn. Answers to pings are left for the next who writes.
"""

from __future__ import annotations

import contextlib
import socket
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from gevent.lock import Semaphore
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
    decode_close,
    encode_close,
    encode_frame,
    encode_messages,
)
from gateway.relay.link import CarrierFault, quietly_shut
from gateway.relay.readable import Readable
from gateway.relay.unsent import limit_unsent

READ_BYTES: Final = 65_536
MAX_REPLIES: Final = 64
"""SEC: pings whose answers the peer does not read; the oldest are dropped: RFC 6455 5.5.3 wants the latest answered."""


class _Stream:
    """What gevent-websocket wants of a stream; the codec below goes to the socket itself."""

    def __init__(self, sock: Any) -> None:
        self.read = sock.recv
        self.write = sock.sendall


class UnitSocket(WebSocket):  # type: ignore[misc]
    """The server's side of a WebSocket: peer frames must be masked, ours are not."""

    closed: bool
    __slots__ = (
        "_decoder",
        "_events",
        "_fault",
        "_raw",
        "_readable",
        "_receive",
        "_replies",
        "_rest",
        "_sock",
        "_turn",
        "_unread",
        "close_received",
        "close_sent",
    )

    def __init__(self, sock: Any, unread: bytes, max_bytes: int, environ: dict[str, Any] | None = None) -> None:
        super().__init__(environ or {}, _Stream(sock), None)
        self._sock = sock
        limit_unsent(sock)
        # TLS may have to read before it writes: that is left to the greenlets.
        plain = type(sock) is PlainSocket
        self._raw = sock._sock if plain else None
        self._readable = Readable(sock) if plain else None
        self._receive: Callable[[int], bytes] = sock.recv if self._readable is None else self._readable.receive
        self._rest = b""
        self._turn = Semaphore()
        self._unread = unread
        self._decoder = Decoder(masked=True, max_bytes=max_bytes)
        self._replies: list[bytes] = []
        self._events: deque[tuple[int, bytes | str]] = deque()
        self._fault: CarrierFault | None = None
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
            messages = self._take_binary(events)
            if messages or self._replies:
                return messages
            if self.close_received is not None:
                return None

    def _read_events(self) -> list[tuple[int, bytes | str]] | None:
        if self.close_received is not None:
            return None
        if self._fault is not None:
            raise self._fault
        data, self._unread = self._unread or self._receive(READ_BYTES), b""
        if not data:
            return None
        events = self._decoder.feed(data)
        error = self._decoder.error
        if error is not None:
            # What came before the fault counts.
            self._fault = CarrierFault(error.code, str(error))
            if not events:
                raise self._fault
        return events

    def _take_binary(self, events: list[tuple[int, bytes | str]]) -> list[bytes]:
        messages: list[bytes] = []
        for opcode, payload in events:
            if type(payload) is str:
                self._fault = CarrierFault(1003, "a text message")
                if not messages and not self._replies:
                    raise self._fault
                break
            if opcode == OP_BINARY:
                messages.append(payload)  # type: ignore[arg-type]
            else:
                self._take_control(opcode, payload)  # type: ignore[arg-type]
        return messages

    def _take_control(self, opcode: int, payload: bytes) -> None:
        if opcode == OP_PING:
            if len(self._replies) >= MAX_REPLIES:
                del self._replies[0]
            self._replies.append(encode_frame(OP_PONG, payload))
        elif opcode == OP_CLOSE:
            self.close_received = decode_close(payload)

    def has_replies(self) -> bool:
        return bool(self._replies or self._rest)

    def write(self, messages: list[bytes]) -> None:
        """All messages in one write, answers to pings first."""
        self._write_all(encode_messages(messages))

    def write_now(self, messages: list[bytes]) -> bool:
        data = self._after_kept(encode_messages(messages))
        sent = 0
        if self._raw is not None:
            try:
                sent = self._raw.send(data, socket.MSG_DONTWAIT)
            except BlockingIOError:
                pass
        self._rest = data[sent:]
        return sent == len(data)

    def _after_kept(self, data: bytes) -> bytes:
        """What was kept, answers to pings, then the frames."""
        if self._rest or self._replies:
            data = b"".join((self._rest, *self._replies, data))
            self._replies = []
        return data

    def _write_all(self, data: bytes) -> None:
        """Frames in one piece, after whoever is writing now. Yields to the hub: yes. Raises: OSError."""
        if not self._turn.acquire(timeout=self._sock.gettimeout()):
            raise TimeoutError
        # NOTE: without it `write_now` keeps what it is given meanwhile: it may not stand amid this.
        raw, self._raw = self._raw, None
        try:
            data = self._after_kept(data)
            self._rest = b""
            self._sock.sendall(data)
        finally:
            self._raw = raw
            self._turn.release()

    def say_goodbye(self, code: int, reason: str) -> None:
        """A close frame, once, then the end of our direction. The peer's own code is the answer to its close frame."""
        if self.close_sent:
            return
        self.close_sent = True
        self._write_all(encode_close(code, reason) if self.close_received is None else self._echo())
        with contextlib.suppress(OSError):
            self._sock.shutdown(1)

    def _echo(self) -> bytes:
        """Source: RFC 6455 5.5.1. 1005 stands for a close frame without a code, 1010 is a client's alone."""
        code = self.close_received[0] if self.close_received is not None else 1000
        return encode_frame(OP_CLOSE, b"") if code == 1005 else encode_close(1000 if code == 1010 else code)

    def linger(self) -> None:
        while self._sock.recv(READ_BYTES):
            pass

    def abort(self) -> None:
        quietly_shut(self._sock)

    # --- another process goes on with it

    def fileno(self) -> int:
        return int(self._sock.fileno())

    @property
    def is_plain(self) -> bool:
        """TLS lives in its process."""
        return self._readable is not None

    @property
    def between_messages(self) -> bool:
        """Is nothing held of either direction, and its reader asleep? Who has the socket then has all of it."""
        return (
            self._readable is not None
            and self._readable.waiting
            and not (self._unread or self._rest or self._replies or self._events)
            and self._fault is None
            and self.close_received is None
            and not self.close_sent
            and self._decoder.between_messages
        )

    def let_go(self) -> None:
        """Touch the socket no more; the owner closes this process's descriptor. The reader gets PassedOn."""
        self.closed = True  # type: ignore[misc]
        if self._readable is not None:
            self._readable.let_go()

    # --- gevent-websocket's own interface

    def receive(self) -> bytes | str | None:
        """The next message, None at the end: then it is closed. Raises: WebSocketError after the end."""
        if self.closed:
            raise WebSocketError("Connection is already closed")
        try:
            return self._next_message()
        except CarrierFault as fault:
            self._give_up(fault)
        except OSError:
            self.close()
        return None

    def _next_message(self) -> bytes | str | None:
        """Raises: OSError, CarrierFault."""
        while True:
            while self._events:
                opcode, payload = self._events.popleft()
                if opcode in (OP_TEXT, OP_BINARY):
                    self._write_replies()
                    return payload
                self._take_control(opcode, payload)  # type: ignore[arg-type]
            self._write_replies()
            events = self._read_events()
            if events is None:
                self.close()
                return None
            self._events.extend(events)

    def _write_replies(self) -> None:
        if self._replies:
            self.write([])

    def _give_up(self, fault: CarrierFault) -> None:
        """Say which rule was broken, and let the peer read it: closing with unread bytes would send RST."""
        with contextlib.suppress(OSError):
            self._sock.settimeout(0.5)
            self.say_goodbye(fault.close_code, str(fault))
            self.linger()
        self.close()

    def send_frame(self, message: bytes | str, opcode: int) -> None:
        """Raises: WebSocketError if the socket is dead or closed."""
        if self.closed:
            raise WebSocketError("Connection is already closed")
        try:
            self._write_all(encode_frame(opcode, message.encode() if isinstance(message, str) else message))
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
        if self._readable is not None:
            self._readable.close()
        with contextlib.suppress(OSError):
            if not self.close_sent:
                # NOTE: the owner is leaving: a peer that does not read must not hold it.
                self._sock.settimeout(0.5)
                self.say_goodbye(code, message if isinstance(message, str) else message.decode("utf-8", "ignore"))
        quietly_shut(self._sock)

"""Connections to the unit's local HTTP service: opened with a deadline, kept, checked before reuse."""

from __future__ import annotations

import select
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from gevent.socket import socket as PlainSocket

from gateway.agent.dial import connect
from gateway.relay.readable import Readable

if TYPE_CHECKING:
    from gevent import socket

    from gateway.agent.endpoint import Endpoint

MAX_IDLE = 64
"""As many as a link has streams. PERF: `relay_small`: with 16, half of 32 callers at once paid for a new connection."""
RECEIVE_BYTES = 32_768
"""One turn of the link's writer: more in hand would only wait."""
Clock = Callable[[], float]


class ConnectFailed(Exception):
    """No connection to the local service; nothing was sent."""


class LocalConnection:
    """One connection; used by one request at a time. `reused`: it served a request before."""

    __slots__ = ("_poll", "_raw", "_readable", "_sock", "idle_since_s", "reused")

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        plain = type(sock) is PlainSocket
        self._raw = sock._sock if plain else None
        self._readable = Readable(sock) if plain else None
        self._poll = select.poll()
        self._poll.register(sock.fileno(), select.POLLIN)
        self.reused = False
        self.idle_since_s = 0.0

    def send_some(self, data: memoryview, timeout_s: float) -> int:
        """Bytes taken, at least one. Raises: OSError (TimeoutError). Yields to the hub."""
        if self._raw is not None:
            try:
                return int(self._raw.send(data))
            except BlockingIOError:
                pass
        self._sock.settimeout(timeout_s)
        return int(self._sock.send(data))

    def send_all(self, data: bytes | memoryview, timeout_s: float) -> None:
        """Raises: OSError (TimeoutError). Yields to the hub."""
        self._sock.settimeout(timeout_s)
        self._sock.sendall(data)

    def receive(self, timeout_s: float) -> bytes:
        """Empty when the service closed. Raises: OSError (TimeoutError). Yields to the hub."""
        if self._readable is None:
            self._sock.settimeout(timeout_s)
            return bytes(self._sock.recv(RECEIVE_BYTES))
        due_s = time.monotonic() + timeout_s
        while True:
            data = self._readable.receive_until(RECEIVE_BYTES, due_s)
            if data is not None:
                return data
            if time.monotonic() >= due_s:
                raise TimeoutError

    def stale(self) -> bool:
        """Whether anything can be read: a close, or bytes that belong to no request.

        NOTE: on a TLS connection session tickets count too; such a connection is opened anew, never misread.
        """
        return bool(self._poll.poll(0))

    def close(self) -> None:
        if self._readable is not None:
            self._readable.close()
        self._sock.close()


class LocalService:
    """The pool in front of one local endpoint.

    Units: `idle_s` seconds an unused connection is kept.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        connect_timeout_s: float = 5.0,
        idle_s: float = 4.0,
        ca_file: str | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        self.endpoint = endpoint
        self._connect_timeout_s = connect_timeout_s
        self._idle_s = idle_s
        self._ca_file = ca_file
        self._clock = clock
        self._idle: deque[LocalConnection] = deque()

    def acquire(self, timeout_s: float, *, fresh: bool = False) -> LocalConnection:
        """A connection that was alive a moment ago. Raises: ConnectFailed. Yields to the hub."""
        kept = None if fresh else self._kept()
        if kept is not None:
            return kept
        try:
            return LocalConnection(connect(self.endpoint, min(timeout_s, self._connect_timeout_s), self._ca_file))
        except OSError as error:
            raise ConnectFailed(type(error).__name__) from error

    def release(self, connection: LocalConnection) -> None:
        """Keep a connection whose last answer was complete."""
        self.close_idle()
        if len(self._idle) >= MAX_IDLE:
            connection.close()
            return
        connection.reused = True
        connection.idle_since_s = self._clock()
        self._idle.append(connection)

    def close_idle(self) -> None:
        """Close what has been idle for too long."""
        oldest_s = self._clock() - self._idle_s
        while self._idle and self._idle[0].idle_since_s <= oldest_s:
            self._idle.popleft().close()

    def close(self) -> None:
        while self._idle:
            self._idle.popleft().close()

    def _kept(self) -> LocalConnection | None:
        self.close_idle()
        while self._idle:
            connection = self._idle.pop()  # the one used last is the likeliest to be alive
            if not connection.stale():
                return connection
            connection.close()
        return None

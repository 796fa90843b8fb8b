"""A plain TCP connection of one greenlet, made for thousands in a process: one watcher for its life.

PERF: `unit_ms_per_dial` of `make fleet`: gevent's own socket makes a waiter and a timeout and starts and stops a
watcher for every call, a third of what a dial cost. Real units share no machine with the gateway; these do.
"""

from __future__ import annotations

import errno
import os
import socket
from functools import lru_cache
from typing import Any, Final

from gevent import get_hub, getcurrent

_READ: Final = 1
_WRITE: Final = 2


@lru_cache
def _address(host: str, port: int) -> tuple[Any, ...]:
    """Shapes: (family, address). Raises: OSError."""
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    return family, address


class Wire:
    """`connect`, then `send` and `receive`; `close` in any state. Units: every `limit_s` seconds."""

    __slots__ = ("_hub", "_reads", "_sock")

    def __init__(self) -> None:
        self._sock: socket.socket | None = None
        self._hub = get_hub()
        self._reads: Any = None

    def connect(self, host: str, port: int) -> None:
        """Begin to; whether it succeeds shows when something is sent. Raises: OSError."""
        family, address = _address(host, port)
        self._sock = sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self._reads = self._hub.loop.io(sock.fileno(), _READ)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        failure = sock.connect_ex(address)
        if failure not in (0, errno.EINPROGRESS):
            raise OSError(failure, os.strerror(failure))

    def send(self, data: bytes, limit_s: float) -> None:
        """All of it. Raises: OSError. Yields to the hub: where the socket is full."""
        sock = self._open_one()
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[sock.send(rest) :]
            except BlockingIOError:
                self._await_room(limit_s)

    def receive(self, size: int, limit_s: float) -> bytes | None:
        """What comes, empty at the end of the stream, None if nothing came in time.

        Raises: OSError. Yields to the hub.
        """
        sock = self._open_one()
        if not self._await(self._reads, limit_s):
            return None
        try:
            return sock.recv(size)
        except BlockingIOError:
            return None

    def hang_up(self) -> None:
        """Whoever receives sees the end."""
        if self._sock is not None:
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        if self._sock is not None:
            self._reads.close()
            self._sock.close()
            self._sock = None

    def _open_one(self) -> socket.socket:
        """Raises: OSError if it is closed."""
        if self._sock is None:
            raise OSError(errno.ENOTCONN, "closed")
        return self._sock

    def _await_room(self, limit_s: float) -> None:
        """Raises: TimeoutError."""
        watcher = self._hub.loop.io(self._open_one().fileno(), _WRITE)
        try:
            if not self._await(watcher, limit_s):
                raise TimeoutError
        finally:
            watcher.close()

    def _await(self, watcher: Any, limit_s: float) -> bool:
        """False if the time is over before the socket is ready."""
        wake = getcurrent().switch
        timer = self._hub.loop.timer(max(limit_s, 0.0))
        watcher.start(wake, True)
        timer.start(wake, False)
        try:
            return bool(self._hub.switch())
        finally:
            watcher.stop()
            timer.stop()
            timer.close()

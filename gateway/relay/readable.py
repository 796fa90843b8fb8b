"""Receiving from a plain gevent socket whose read watcher stays armed.

PERF: `relay_small`: a link wakes up for every few answers; gevent's own recv tries in vain first, then makes a waiter
and starts and stops a watcher, each time.
"""

from __future__ import annotations

from typing import Any

from gevent import get_hub, getcurrent


class PassedOn(Exception):
    """Thrown at whoever receives from a socket that has another owner now."""


class Readable:
    """One greenlet receives; whoever ends the connection calls `close`."""

    __slots__ = ("_armed", "_greenlet", "_hub", "_raw", "_waiting", "_watcher")

    def __init__(self, sock: Any) -> None:
        self._raw = sock._sock
        self._hub = get_hub()
        self._watcher = self._hub.loop.io(sock.fileno(), 1)
        self._armed = False
        self._greenlet: Any = None
        self._waiting = False

    @property
    def waiting(self) -> bool:
        """Is the receiver asleep? What comes from now on is in the kernel until it wakes up."""
        return self._waiting

    def receive(self, size: int) -> bytes:
        """What has come, empty at the end of the stream. Yields to the hub: yes. Raises: OSError, PassedOn."""
        self._greenlet = getcurrent()
        while True:
            if not self._armed:
                self._armed = True
                self._watcher.start(self._on_readable)
            self._waiting = True
            try:
                self._hub.switch()
            finally:
                self._waiting = False
            try:
                data: bytes = self._raw.recv(size)
            except BlockingIOError:
                continue
            return data

    def _on_readable(self) -> None:
        """Called from the hub."""
        if self._waiting:
            self._greenlet.switch()
        else:
            # Nobody receives now: a watcher that stays armed would turn the loop.
            self._watcher.stop()
            self._armed = False

    def close(self) -> None:
        """Stop watching; no more is received."""
        self._greenlet = None
        self._watcher.stop()
        self._watcher.close()

    def let_go(self) -> None:
        """Receive nothing more, not even what has come: the receiver, which is asleep, gets PassedOn."""
        receiver = self._greenlet
        self.close()
        self._hub.loop.run_callback(receiver.throw, PassedOn)

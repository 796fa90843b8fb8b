"""Receiving from a plain gevent socket whose read watcher stays armed.

PERF: `relay_small`: a link wakes up for every few answers; gevent's own recv tries in vain first, then makes a waiter
and starts and stops a watcher, each time.
"""

from __future__ import annotations

import time
from typing import Any, Final

from gevent import get_hub, getcurrent

from gateway.relay.core import NEVER

LEAST_S: Final = 0.001


class PassedOn(Exception):
    """Thrown at whoever receives from a socket that has another owner now."""


class Readable:
    """One greenlet receives; whoever ends the connection calls `close`."""

    __slots__ = ("_armed", "_due_s", "_greenlet", "_hub", "_raw", "_timer", "_waiting", "_watcher")

    def __init__(self, sock: Any) -> None:
        self._raw = sock._sock
        self._hub = get_hub()
        self._watcher = self._hub.loop.io(sock.fileno(), 1)
        self._armed = False
        self._greenlet: Any = None
        self._waiting = False
        self._timer: Any = None
        self._due_s = NEVER

    @property
    def waiting(self) -> bool:
        """Is the receiver asleep? What comes from now on is in the kernel until it wakes up."""
        return self._waiting

    def receive(self, size: int) -> bytes:
        """What has come, empty at the end of the stream. Yields to the hub: yes. Raises: OSError, PassedOn."""
        while True:
            data = self._receive(size)
            if data is not None:
                return data

    def receive_until(self, size: int, due_s: float) -> bytes | None:
        """As `receive`; None at `due_s`, and maybe before.

        Units: `due_s` seconds of time.monotonic. The timer stays too: one that was started for an earlier moment is
        not started again for a later one.
        """
        if due_s < self._due_s:
            self._stop_timer()
            self._due_s = due_s
            self._timer = self._hub.loop.timer(max(due_s - time.monotonic(), LEAST_S))
            self._timer.start(self._on_due)
        return self._receive(size)

    def _receive(self, size: int) -> bytes | None:
        """None if it was woken up and nothing is there."""
        self._greenlet = getcurrent()
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
            return None
        return data

    def _on_due(self) -> None:
        """Called from the hub."""
        self._stop_timer()
        if self._waiting:
            self._greenlet.switch()

    def _stop_timer(self) -> None:
        self._due_s = NEVER
        if self._timer is not None:
            self._timer.stop()
            self._timer.close()
            self._timer = None

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
        self._stop_timer()
        self._watcher.stop()
        self._watcher.close()

    def let_go(self) -> None:
        """Receive nothing more, not even what has come: the receiver, which is asleep, gets PassedOn."""
        receiver = self._greenlet
        self.close()
        self._hub.loop.run_callback(receiver.throw, PassedOn)

"""One connection to an upstream: gevent socket, deadlines on one timer, bytes out and bytes in."""

from __future__ import annotations

import select
import socket as stdlib_socket
from collections.abc import Sequence
from typing import Any

import gevent
from gevent import get_hub, getcurrent, monkey, socket

from gateway.errors import ClientDisconnected, UpstreamTimeout, UpstreamUnreachable
from gateway.http1.deadlines import NEVER
from gateway.wheel import deadlines_here

RECEIVE_BYTES = 65_536
_FIRST_RECEIVE_BYTES = 16_384
"""Asked for at first: most answers are short, and bytes that are asked for are memory taken."""
_poll = monkey.get_original("select", "poll")


class CallerGone(Exception):
    """Thrown into the greenlet that waits for an upstream whose caller has closed."""


class _Expired(Exception):
    """Thrown into the greenlet that waits past its deadline."""


class UpstreamConnection:
    """A connection lent to one exchange at a time.

    PERF: `upstream_small` of `make bench`: the read watcher stays armed from exchange to exchange, and the first bytes
    of an answer are waited for before they are asked for.
    Units: `deadline_ns` arguments are monotonic nanoseconds; `idle_since_ns` too.
    Shapes: `written` says whether a byte of the request under way has left.
    """

    __slots__ = (
        "_armed",
        "_deadlines",
        "_greenlet",
        "_hub",
        "_look",
        "_raw",
        "_sock",
        "_unanswered",
        "_waiting",
        "_watcher",
        "deadline_ns",
        "idle_since_ns",
        "served",
        "slot",
        "written",
    )

    def __init__(self, sock: Any) -> None:
        self._sock = sock
        self._raw = sock._sock
        self._deadlines = deadlines_here()
        self._hub = get_hub()
        self._watcher = self._hub.loop.io(sock.fileno(), 1)
        poll = _poll()
        poll.register(sock.fileno(), select.POLLIN)
        self._look = poll.poll
        self._armed = False
        self._unanswered = False
        self._greenlet: Any = None
        self._waiting = False
        self.deadline_ns = 0
        self.slot = NEVER
        self.idle_since_ns = 0
        self.served = 0
        self.written = False

    @classmethod
    def open(cls, address: tuple[str, int], timeout_s: float) -> UpstreamConnection:
        """Raises: UpstreamUnreachable, also when it took too long. Yields to the hub: yes."""
        try:
            with gevent.Timeout(max(timeout_s, 0.001), UpstreamUnreachable("The upstream did not accept in time")):
                sock = socket.create_connection(address)
        except OSError as error:
            raise UpstreamUnreachable("The upstream cannot be reached") from error
        sock.setsockopt(stdlib_socket.IPPROTO_TCP, stdlib_socket.TCP_NODELAY, 1)
        return cls(sock)

    def alive(self) -> bool:
        """Is an idle connection still open and silent? Bytes nobody asked for count as dead.

        PERF: `upstream_small` of `make bench`: poll(2) has nothing to raise where recv(2) would say EAGAIN.
        """
        return not self._look(0)

    def send(self, pieces: Sequence[bytes], deadline_ns: int) -> None:
        """Raises: OSError, UpstreamTimeout, ClientDisconnected. Yields to the hub: if the socket's buffer is full."""
        self._unanswered = True
        try:
            sent = self._raw.sendmsg(pieces) if len(pieces) > 1 else self._raw.send(pieces[0])
        except BlockingIOError:
            sent = 0
        if sent:
            self.written = True
        for piece in pieces:
            if sent >= len(piece):
                sent -= len(piece)
            else:
                self._send_on(memoryview(piece)[sent:], deadline_ns)
                sent = 0

    def _send_on(self, rest: memoryview, deadline_ns: int) -> None:
        while rest:
            self._wait_writable(deadline_ns)
            try:
                rest = rest[self._raw.send(rest) :]
                self.written = True
            except BlockingIOError:
                pass

    def receive(self, deadline_ns: int) -> bytes:
        """Bytes, empty at the end. Raises: OSError, UpstreamTimeout, ClientDisconnected. Yields to the hub: yes."""
        if self._unanswered:
            self._unanswered = False
            self._wait_readable(deadline_ns)
            size = _FIRST_RECEIVE_BYTES
        else:
            size = RECEIVE_BYTES
        while True:
            try:
                return self._raw.recv(size)  # type: ignore[no-any-return]
            except BlockingIOError:
                self._wait_readable(deadline_ns)

    def _wait_readable(self, deadline_ns: int) -> None:
        """Raises: UpstreamTimeout, ClientDisconnected."""
        if deadline_ns != self.deadline_ns:
            self._deadlines.arm(self, deadline_ns)
        if not self._armed:
            self._armed = True
            self._watcher.start(self._readable)
        self._greenlet = getcurrent()
        self._waiting = True
        try:
            self._hub.switch()
        except _Expired:
            raise UpstreamTimeout("The upstream did not answer in time") from None
        except CallerGone:
            raise ClientDisconnected("The caller went away") from None
        finally:
            self._waiting = False

    def _wait_writable(self, deadline_ns: int) -> None:
        """Raises: UpstreamTimeout, ClientDisconnected."""
        # NOTE: an answer that comes before the request is out must not wake who waits to write.
        self._disarm()
        self._deadlines.arm(self, deadline_ns)
        self._greenlet = getcurrent()
        self._waiting = True
        try:
            self._hub.wait(self._sock._write_event)
        except _Expired:
            raise UpstreamTimeout("The upstream did not answer in time") from None
        except CallerGone:
            raise ClientDisconnected("The caller went away") from None
        finally:
            self._waiting = False

    def _readable(self) -> None:
        """Called from the hub. Bytes that nobody waits for stop the watcher until somebody does."""
        if self._waiting:
            self._greenlet.switch()
        else:
            self._disarm()

    def _disarm(self) -> None:
        if self._armed:
            self._armed = False
            self._watcher.stop()

    def expire(self) -> None:
        """Called from the hub when the deadline has passed."""
        if self._waiting:
            self._greenlet.throw(_Expired)

    def cancel(self) -> None:
        """Called from the hub when the caller has gone: end the wait under way."""
        if self._waiting:
            self._greenlet.throw(CallerGone)

    def close(self) -> None:
        self._deadlines.forget(self)
        self._greenlet = None
        self._armed = False
        self._watcher.stop()
        self._watcher.close()
        self._sock.close()

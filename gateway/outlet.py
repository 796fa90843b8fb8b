"""Lines to a pipe or a socket whose reader may have stalled: nobody waits for a log.

A write to a full pipe stops the whole process, every request of a worker with it. Lines that are not taken wait, up to
a bound; beyond it they are lost, and counted.
"""

from __future__ import annotations

import os
import select
import socket
import stat
from collections.abc import Callable

_ATOMIC_BYTES = select.PIPE_BUF
"""So much is written to a pipe whole or not at all, and never between two halves of another worker's line."""
MOST_WAITING_BYTES = 4 * 2**20


class Outlet:
    """Holds: lines that were not taken yet, and a descriptor of its own."""

    def __init__(
        self, fd: int, *, most: int = MOST_WAITING_BYTES, lost: Callable[[int], None] = lambda lines: None
    ) -> None:
        """Units: `most` bytes wait. Shapes: `lost(lines)` hears of lines that found no room."""
        self._send = _sender(fd)
        self._most = most
        self._lost = lost
        self._waiting = bytearray()

    def write(self, lines: bytes) -> int:
        """Hand over whole lines; never waits. Their size."""
        if len(self._waiting) + len(lines) > self._most:
            self.flush()
        if len(self._waiting) + len(lines) > self._most:
            self._lost(lines.count(b"\n"))
        else:
            self._waiting += lines
        self.flush()
        return len(lines)

    @property
    def waiting(self) -> int:
        """Bytes that were not taken yet."""
        return len(self._waiting)

    def flush(self) -> None:
        """Write what is taken now."""
        at = 0
        try:
            while at < len(self._waiting):
                at += self._send(self._waiting[at : self._end(at)])
        except BlockingIOError:
            pass
        except OSError:
            at = len(self._waiting)  # nobody will ever read it
        del self._waiting[:at]

    def _end(self, at: int) -> int:
        """Where the last line ends that goes out with the one at `at`."""
        end = self._waiting.rfind(b"\n", at, at + _ATOMIC_BYTES) + 1
        return end or self._waiting.find(b"\n", at) + 1 or len(self._waiting)


def outlet(fd: int, **options: object) -> Outlet | None:
    """An outlet of a pipe or socket; None of a file, which does not stall."""
    try:
        mode = os.fstat(fd).st_mode
    except OSError:
        return None
    return Outlet(fd, **options) if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) else None  # type: ignore[arg-type]


def _sender(fd: int) -> Callable[[bytearray], int]:
    """What writes and does not wait. Raises, when called: BlockingIOError, OSError."""
    if stat.S_ISSOCK(os.fstat(fd).st_mode):
        connection = socket.socket(fileno=os.dup(fd))
        return lambda data: connection.send(data, socket.MSG_DONTWAIT)
    try:
        # NOTE: O_NONBLOCK on the inherited descriptor would be everybody's who has it, the arbiter's and the shell's.
        own = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return _polled(fd)
    return lambda data: os.write(own, data)


def _polled(fd: int) -> Callable[[bytearray], int]:
    """Of a pipe that cannot be opened anew, as another account's: it is asked before each write."""
    poll = select.poll()
    poll.register(fd, select.POLLOUT)

    def send(data: bytearray) -> int:
        if not poll.poll(0):
            raise BlockingIOError
        return os.write(fd, data[:_ATOMIC_BYTES])

    return send

"""Who may use one of a few things at once, and the line of those who wait for it."""

from __future__ import annotations

from collections import deque
from typing import Any, Protocol

from gevent import get_hub, getcurrent

from gateway.http1.deadlines import NEVER
from gateway.wheel import deadlines_here


class _Expired(Exception):
    """Thrown into a greenlet whose turn did not come in time."""


class _Waiter:
    """A greenlet in line. `come`: it is its turn."""

    __slots__ = ("_greenlet", "come", "deadline_ns", "slot", "waiting")

    def __init__(self) -> None:
        self._greenlet: Any = getcurrent()
        self.come = False
        self.waiting = True
        self.deadline_ns = 0
        self.slot = NEVER

    def resume(self) -> None:
        """Called from the hub."""
        if self.waiting:
            self._greenlet.switch()

    def expire(self) -> None:
        """Called from the hub when the deadline has passed."""
        if self.waiting and not self.come:
            self._greenlet.throw(_Expired)


class Candidate(Protocol):
    """What may stand in line: `come` is set and, from the hub, `resume` called once it has its turn."""

    come: bool

    def resume(self) -> None: ...


class Turns:
    """At most so many at once, first come, first served.

    PERF: `portal_read` of `make bench`, where 32 callers share 16 connections: a semaphore makes a timer for
    each wait.
    Shapes: whoever finds `free` above 0 may take one away himself; `line` is how many wait.
    """

    __slots__ = ("_line", "free")

    def __init__(self, limit: int) -> None:
        self.free = limit
        self._line: deque[Candidate] = deque()

    @property
    def line(self) -> int:
        return len(self._line)

    def wait(self, deadline_ns: int) -> bool:
        """Wait for a turn; False if none came in time.

        Units: `deadline_ns` monotonic nanoseconds; late by at most a tick of the wheel.
        Yields to the hub: yes.
        """
        waiter = _Waiter()
        self.line_up(waiter)
        deadlines = deadlines_here()
        deadlines.arm(waiter, deadline_ns)
        try:
            get_hub().switch()
        except _Expired:
            self._line.remove(waiter)
            return False
        except BaseException:
            if waiter.come:
                self.give_back()
            else:
                self._line.remove(waiter)
            raise
        finally:
            waiter.waiting = False
            deadlines.forget(waiter)
        return True

    def line_up(self, waiter: Candidate) -> None:
        """Stand in line for a turn."""
        self._line.append(waiter)

    def give_back(self) -> None:
        """End of a turn: the next in line has it."""
        if self._line:
            waiter = self._line.popleft()
            waiter.come = True
            get_hub().loop.run_callback(waiter.resume)
        else:
            self.free += 1

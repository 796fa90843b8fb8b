"""Deadlines of all connections of a worker on one timer, so that a request makes no timer of its own.

A connection sits in at most one slot of the wheel. Moving its deadline later costs one attribute: the slot is looked at
when its time comes, and the connection moves on.
"""

from __future__ import annotations

from typing import Protocol

TICK_NS = 50_000_000
NEVER = 1 << 62


class Waiter(Protocol):
    """What can have a deadline.

    Units: `deadline_ns` monotonic nanoseconds, 0 for none; `slot` belongs to the wheel and starts as NEVER.
    """

    deadline_ns: int
    slot: int

    def expire(self) -> None:
        """Called once the deadline has passed, from the hub: must not wait."""


class DeadlinePassed(BaseException):
    """Thrown into a greenlet that waits for its peer past its deadline; no `except Exception` may swallow it."""


class Deadlines:
    """A hashed wheel of waiters; late by at most one tick, never early."""

    def __init__(self, now_ns: int) -> None:
        self._slots: dict[int, set[Waiter]] = {}
        self._tick = now_ns // TICK_NS

    def arm(self, waiter: Waiter, deadline_ns: int) -> None:
        """Set a waiter's deadline."""
        waiter.deadline_ns = deadline_ns
        slot = deadline_ns // TICK_NS + 1
        if slot < waiter.slot:
            self._move(waiter, slot)

    def forget(self, waiter: Waiter) -> None:
        """Drop a waiter that has ended."""
        waiter.deadline_ns = 0
        self._move(waiter, NEVER)

    def advance(self, now_ns: int) -> None:
        """Expire what is due by now. Raises: nothing of its own; `expire` must not raise."""
        last = now_ns // TICK_NS
        while self._tick < last:
            self._tick += 1
            for waiter in self._slots.pop(self._tick, ()):
                self._fire(waiter, now_ns)

    def _fire(self, waiter: Waiter, now_ns: int) -> None:
        waiter.slot = NEVER
        deadline_ns = waiter.deadline_ns
        if deadline_ns == 0:
            return
        if deadline_ns > now_ns:
            self._move(waiter, deadline_ns // TICK_NS + 1)
            return
        waiter.deadline_ns = 0
        waiter.expire()

    def _move(self, waiter: Waiter, slot: int) -> None:
        if waiter.slot != NEVER:
            held = self._slots.get(waiter.slot)
            if held is not None:
                held.discard(waiter)
                if not held:
                    del self._slots[waiter.slot]
        waiter.slot = slot
        if slot != NEVER:
            self._slots.setdefault(max(slot, self._tick + 1), set()).add(waiter)
            waiter.slot = max(slot, self._tick + 1)

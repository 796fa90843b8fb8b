"""Time as a number, and what an agent waits on: events, timers and its socket to the gateway, without I/O.

The agent's own greenlets run on the real hub; whatever wakes one of them is the world's doing, so their order is the
same each time.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

import gevent
import gevent.event
import pytest

from gateway.agent import exchange, ledger, link, local_service

EPOCH_S = 1_800_000_000.0
LEAST_S = 0.001


class Timer:
    """Runs `callback` once at `due_s`, unless it is cancelled."""

    def __init__(self, due_s: float, callback: Callable[[], object]) -> None:
        self.due_s = due_s
        self.callback: Callable[[], object] | None = callback

    def cancel(self) -> None:
        self.callback = None


class Clock:
    """Stands for the module `time` in the agent; the world turns it."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._timers: list[tuple[float, int, Timer]] = []
        self._count = 0

    def monotonic(self) -> float:
        return self.now_s

    def time(self) -> float:
        return EPOCH_S + self.now_s

    def at(self, due_s: float, callback: Callable[[], object]) -> Timer:
        self._count += 1
        timer = Timer(due_s, callback)
        heapq.heappush(self._timers, (due_s, self._count, timer))
        return timer

    @property
    def next_due_s(self) -> float:
        while self._timers and self._timers[0][2].callback is None:
            heapq.heappop(self._timers)
        return self._timers[0][0] if self._timers else float("inf")

    def fire(self) -> None:
        """Run what is due."""
        while self.next_due_s <= self.now_s:
            callback = heapq.heappop(self._timers)[2].callback
            assert callback is not None
            callback()


class Event:
    """gevent's, whose timeouts are the clock's."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._set = False
        self._waiting: list[gevent.event.Event] = []

    def is_set(self) -> bool:
        return self._set

    def set(self) -> None:
        self._set = True
        for waiting in self._waiting:
            waiting.set()

    def clear(self) -> None:
        self._set = False

    def wait(self, timeout: float | None = None) -> bool:
        if self._set or (timeout is not None and timeout <= 0):
            return self._set
        woken = gevent.event.Event()
        self._waiting.append(woken)
        endless = timeout is None or timeout == float("inf")
        timer = None if endless else self._clock.at(self._clock.now_s + (timeout or 0.0), woken.set)
        try:
            woken.wait()
        finally:
            self._waiting.remove(woken)
            if timer is not None:
                timer.cancel()
        return self._set


class LoopTimer:
    """A timer of the hub's loop: `again` starts it anew, `stop` before it has run leaves nothing behind."""

    def __init__(self, clock: Clock, after_s: float) -> None:
        self._clock = clock
        self._after_s = after_s
        self._timer: Timer | None = None

    @property
    def active(self) -> bool:
        return self._timer is not None

    def again(self, callback: Callable[[], object]) -> None:
        self.stop()
        self._timer = self._clock.at(self._clock.now_s + self._after_s, callback)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None

    close = stop


class Wire:
    """A link's socket: `down` is under way to the unit, `here` has arrived, `up` left the agent.

    Units: `room` bytes that the kernel takes before it has to wait for the network.
    """

    def __init__(self, clock: Clock, room: int) -> None:
        self.down = bytearray()
        self.here = bytearray()
        self.up = bytearray()
        self.room = room
        self.ended = False
        self.shut = False
        self.deaf = False
        self.fault: OSError | None = None
        self._clock = clock
        self._readable = Event(clock)
        self._writable = Event(clock)

    # --- the world

    def arrive(self, size: int) -> None:
        """Some bytes reach the unit."""
        self.here += self.down[:size]
        del self.down[:size]
        if self.here:
            self._readable.set()

    def take(self, size: int) -> bytes:
        """Some bytes reach the gateway."""
        data = bytes(self.up[:size])
        del self.up[:size]
        self.room += len(data)
        if data:
            self._writable.set()
        return data

    def cut(self, fault: OSError | None) -> None:
        """What is under way is lost; the agent sees an end or a fault."""
        self.down.clear()
        self.up.clear()
        self.ended, self.fault = True, fault
        self._wake()

    def _wake(self) -> None:
        self._readable.set()
        self._writable.set()

    def go_deaf(self) -> None:
        """Nothing can be written any more; the reader does not know yet."""
        self.deaf = True
        self._writable.set()

    # --- the link

    def send(self, data: bytes) -> int:
        if self.shut or self.ended or self.deaf:
            raise self.fault or BrokenPipeError()
        size = min(len(data), self.room)
        if data and not size:
            raise BlockingIOError
        self.up += data[:size]
        self.room -= size
        return size

    def sendall(self, data: bytes) -> None:
        while data:
            try:
                data = data[self.send(data) :]
            except BlockingIOError:
                self._writable.clear()
                self._writable.wait()

    def receive_until(self, due_s: float) -> bytes | None:
        if not (self.here or self.ended or self.shut):
            self._readable.clear()
            self._readable.wait(max(due_s - self._clock.now_s, LEAST_S))
        if self.fault is not None:
            raise self.fault
        data = bytes(self.here)
        self.here.clear()
        return data if data or self.ended or self.shut else None

    def setsockopt(self, *option: int) -> None:
        pass

    def shutdown(self, how: int) -> None:
        self.shut = True
        self._wake()

    def close(self) -> None:
        self.shutdown(2)


@contextmanager
def patched(clock: Clock, faults: list[object], **names: Any) -> Iterator[None]:
    """The agent lives by the clock. Shapes: `names` are of the modules `link`, `local_service`, `ledger`, as
    `module__name`; `faults` gets what a greenlet or a callback raised unexpectedly."""
    hub = gevent.get_hub()
    loop = SimpleNamespace(
        timer=lambda after_s, repeat_s: LoopTimer(clock, after_s), run_callback=hub.loop.run_callback
    )
    modules = {"link": link, "local_service": local_service, "ledger": ledger}
    with pytest.MonkeyPatch.context() as patch:
        for module in (link, exchange, ledger, local_service):
            patch.setattr(module, "time", clock)
        for module in (link, exchange):
            patch.setattr(module, "Event", partial(Event, clock))
        patch.setattr(link, "gevent", SimpleNamespace(get_hub=lambda: SimpleNamespace(loop=loop), spawn=gevent.spawn))
        patch.setattr(link, "CLOSE_GRACE_S", None)
        patch.setattr(hub, "handle_error", lambda *told: faults.append(told), raising=False)
        for name, value in names.items():
            module_name, _, attribute = name.partition("__")
            patch.setattr(modules[module_name], attribute, value)
        yield


def settle() -> None:
    """Let the hub run until nobody can."""
    loop = gevent.get_hub().loop
    for _ in range(100_000):
        if not loop._callbacks:
            return
        gevent.sleep(0)
    raise AssertionError("greenlets that never rest")

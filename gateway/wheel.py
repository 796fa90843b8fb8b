"""The deadlines of whatever waits in one hub, on one timer: a wait makes no timer of its own."""

from __future__ import annotations

import time
from typing import Any
from weakref import WeakKeyDictionary

from gevent import get_hub

from gateway.http1.deadlines import TICK_NS, Deadlines

_SECOND_NS = 1_000_000_000


class Wheel:
    """Deadlines that a timer of the hub turns."""

    def __init__(self, hub: Any) -> None:
        self.deadlines = Deadlines(time.monotonic_ns())
        period_s = TICK_NS / _SECOND_NS
        self._timer = hub.loop.timer(period_s, period_s, ref=False)
        self._timer.start(self._turn)

    def _turn(self) -> None:
        self.deadlines.advance(time.monotonic_ns())


_wheels: WeakKeyDictionary[Any, Wheel] = WeakKeyDictionary()


def deadlines_here() -> Deadlines:
    """The deadlines of the running thread's hub."""
    hub = get_hub()
    wheel = _wheels.get(hub)
    if wheel is None:
        wheel = _wheels[hub] = Wheel(hub)
    return wheel.deadlines

"""Blocking work in a native thread, while the hub goes on.

PERF: gevent's thread pool brings `concurrent.futures`, `logging` and more: 2 MB of the agent's 40
(tests/agent/test_footprint.py). A thread of its own for each piece of work costs 60 µs, beside an fsync or a look-up.
"""

from __future__ import annotations

import _thread
from collections.abc import Callable
from typing import Any, TypeVar

import gevent
from gevent.event import Event

_Result = TypeVar("_Result")
STACK_BYTES = 524_288


def in_thread(work: Callable[[], _Result]) -> _Result:
    """What `work` returns or raises. Yields to the hub; whoever is killed meanwhile leaves the thread to its end."""
    outcome: list[Any] = []
    done = Event()
    watcher = gevent.get_hub().loop.async_()

    def run() -> None:
        try:
            outcome.append((work(), None))
        except BaseException as error:
            outcome.append((None, error))
        watcher.send()

    def finish() -> None:
        # NOTE: closed here alone, so the thread never wakes a watcher that is gone.
        watcher.stop()
        watcher.close()
        done.set()

    watcher.start(finish)
    _thread.start_new_thread(run, ())
    done.wait()
    result, error = outcome[0]
    if error is not None:
        raise error
    return result  # type: ignore[no-any-return]


_thread.stack_size(STACK_BYTES)

"""One thread that syncs files while the hub goes on.

PERF: `python -m loadtests.audit_cost`: a task of gevent's thread pool, with a watcher, a result and a Timeout of its
own, made a quarter of what group commit costs with 32 callers.
"""

from __future__ import annotations

from _queue import SimpleQueue
from collections.abc import Callable

from gevent import get_hub, monkey
from gevent.hub import Waiter

Work = Callable[[list[int]], None]
_start_thread = monkey.get_original("_thread", "start_new_thread")


class SyncThread:
    """Does one thing at a time.

    Holds: a thread, until `stop`; a watcher of the hub while it works.
    """

    def __init__(self) -> None:
        self.error: BaseException | None = None
        """What the last work raised."""
        self._jobs: SimpleQueue[tuple[Work, list[int]] | None] = SimpleQueue()
        self._busy = False
        self._waiter: Waiter[bool] | None = None
        self._loop = get_hub().loop
        self._ended = self._loop.async_()
        _start_thread(self._run, ())

    def begin(self, work: Work, files: list[int]) -> None:
        """Have `work(files)` done; what came before has ended."""
        self._busy, self.error = True, None
        self._ended.start(self._tell)
        self._jobs.put((work, files))

    def wait(self, timeout_s: float | None = None) -> bool:
        """Until it has ended; False if it has not in time. For one greenlet.

        Yields to the hub: yes.
        """
        if not self._busy:
            return True
        waiter: Waiter[bool] = Waiter()
        self._waiter = waiter
        timer = self._loop.timer(timeout_s) if timeout_s is not None else None
        if timer is not None:
            timer.start(waiter.switch, False)
        try:
            return bool(waiter.get())
        finally:
            self._waiter = None
            if timer is not None:
                timer.stop()
                timer.close()

    def stop(self) -> None:
        """The thread ends when its work does; nobody hears of that any more."""
        # NOTE: not closed: a thread whose disk hangs tells it yet.
        self._ended.stop()
        self._busy = False
        self._jobs.put(None)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            work, files = job
            try:
                work(files)
            except BaseException as error:
                self.error = error
            self._ended.send()

    def _tell(self) -> None:
        """In the hub."""
        self._ended.stop()
        self._busy = False
        if self._waiter is not None:
            self._waiter.switch(True)

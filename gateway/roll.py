"""All workers are replaced, one after another: a new one is up before an old one leaves.

The arbiter does it, by gunicorn's own signals: TTIN makes one more worker, TTOU lets the oldest leave. When it has
left, its units have moved and its callers have their answers.
"""

from __future__ import annotations

import fcntl
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from gateway.config.reload import ReloadFailed, WorkerStatus, status

POLL_S: Final = 0.1
READY_S: Final = 60.0
"""How long a new worker may take until it accepts connections."""
LEAVE_S: Final = 330.0
"""How long an old one may take to leave: the longest deadline of a request, and some."""
ANSWER_S: Final = 10.0
SERVING: Final = "serving"


class RollFailed(RuntimeError):
    """The roll has stopped; the message says how far it came."""


class Roll:
    """One roll of the gateway under `run_dir`; `tell` gets a line for each step."""

    def __init__(self, run_dir: Path, tell: Callable[[str], None], *, ready_s: float = READY_S) -> None:
        """Units: `ready_s` how long a new worker may take until it accepts connections."""
        self._run_dir = run_dir
        self._tell = tell
        self._ready_s = ready_s
        self._added = False

    def run(self) -> int:
        """How many workers were replaced. Raises: RollFailed."""
        with _alone(self._run_dir):
            workers = self._workers()
            arbiters = {worker.arbiter for worker in workers}
            if len(arbiters) != 1:
                raise RollFailed(f"no gateway runs under {self._run_dir}" if not workers else "two gateways run there")
            return self._replace_all(arbiters.pop(), workers)

    def _replace_all(self, arbiter: int, workers: list[WorkerStatus]) -> int:
        old = {worker.pid for worker in workers}
        configured = workers[0].workers
        replaced = 0
        try:
            while left := old & self._pids():
                # A roll that was cut short left one worker too many: then none needs to be added.
                if len(self._pids()) <= configured:
                    self._add(arbiter, replaced, len(old))
                gone = self._let_leave(arbiter, left)
                replaced += len(gone)
                self._tell(f"{replaced}/{len(old)} replaced")
        finally:
            if self._added:
                os.kill(arbiter, signal.SIGTTOU)
        return replaced

    def _add(self, arbiter: int, replaced: int, of: int) -> None:
        before = self._pids()
        began_s = time.monotonic()
        os.kill(arbiter, signal.SIGTTIN)
        self._added = True
        while True:
            new = [worker for worker in self._workers() if worker.pid not in before and worker.phase == SERVING]
            if new:
                break
            self._check(began_s, self._ready_s, arbiter, "the new worker does not come up; the old ones go on")
        self._tell(f"{replaced + 1}/{of} worker {new[0].pid} is up after {time.monotonic() - began_s:.1f} s")

    def _let_leave(self, arbiter: int, old: set[int]) -> set[int]:
        """Those that have left: the oldest."""
        began_s = time.monotonic()
        os.kill(arbiter, signal.SIGTTOU)
        self._added = False
        while not (gone := old - self._pids()):
            self._check(began_s, LEAVE_S, arbiter, "the old worker does not leave")
        self._tell(f"worker {', '.join(map(str, sorted(gone)))} has left after {time.monotonic() - began_s:.1f} s")
        return gone

    def _check(self, began_s: float, limit_s: float, arbiter: int, fault: str) -> None:
        """Wait a moment. Raises: RollFailed."""
        if time.monotonic() - began_s > limit_s:
            raise RollFailed(fault)
        if not Path(f"/proc/{arbiter}").exists():
            raise RollFailed("the gateway has ended")
        time.sleep(POLL_S)

    def _pids(self) -> set[int]:
        return {worker.pid for worker in self._workers()}

    def _workers(self) -> list[WorkerStatus]:
        try:
            return status(self._run_dir, timeout_s=ANSWER_S)
        except (ReloadFailed, OSError) as error:
            raise RollFailed(str(error)) from error


@contextmanager
def _alone(run_dir: Path) -> Iterator[None]:
    """Holds: a lock that one roll at a time can have. Raises: RollFailed."""
    try:
        descriptor = os.open(run_dir / "roll.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise RollFailed(f"{run_dir}: {reason}; --run-dir DIR names a running gateway's") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise RollFailed("another roll is under way") from None
    finally:
        os.close(descriptor)

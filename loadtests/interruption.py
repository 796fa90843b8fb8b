"""Ctrl-C, TERM or HUP while something is measured: all of it is stopped and removed, and one line says so."""

from __future__ import annotations

import asyncio
import shutil
import signal
import tempfile
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Final, TypeVar

T = TypeVar("T")
SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_folders: list[Path] = []


class Interrupted(KeyboardInterrupt):
    """Stop everything, then end."""


def interruptible(main: Callable[[], int]) -> int:
    """The exit status of `main`; 128 and the signal's number if one came, after its `finally` ran undisturbed."""
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
            signal.signal(number, _interrupt)
    try:
        return main()
    except Interrupted as interrupted:
        for folder in _folders:
            shutil.rmtree(folder, ignore_errors=True)
        print("interrupted; everything is stopped", flush=True)
        return 128 + int(interrupted.args[0])


def run_loop(program: Coroutine[Any, Any, T]) -> T:
    """As asyncio.run. Raises: Interrupted, after the program was cancelled.

    NOTE: what a handler raises in the middle of a loop can take the step with it that was due, and the loop waits for
    it for ever as it ends; so asyncio cancels at Ctrl-C, if the handler is Python's own.
    """
    came: list[int] = []

    async def watched() -> T:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None

        def stop(number: int, _frame: Any) -> None:
            ignore_signals()
            came.append(number)
            task.cancel()
            loop.call_soon_threadsafe(int)  # it may wait for nothing but time

        _instead(_interrupt, stop)
        try:
            return await program
        finally:
            _instead(stop, _interrupt)

    try:
        return asyncio.run(watched())
    except asyncio.CancelledError:
        if not came:
            raise
        raise Interrupted(came[0]) from None


def _instead(old: Any, new: Any) -> None:
    for number in SIGNALS:
        if signal.getsignal(number) is old:
            signal.signal(number, new)


def ignore_signals() -> None:
    """From here on nothing cuts the stop short."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def scratch(prefix: str) -> Path:
    """A new folder, which is removed if the run is interrupted; whoever asked for it removes it otherwise."""
    _folders.append(Path(tempfile.mkdtemp(prefix=prefix)))
    return _folders[-1]


def _interrupt(number: int, _frame: Any) -> None:
    ignore_signals()
    raise Interrupted(number)

"""Ctrl-C, TERM or HUP while something is measured: all of it is stopped and removed, and one line says so."""

from __future__ import annotations

import shutil
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_folders: list[Path] = []


class Interrupted(KeyboardInterrupt):
    """Stop everything, then end. NOTE: asyncio would keep any other exception that a handler raises to itself."""


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

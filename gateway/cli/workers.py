"""`caregate workers`: look at the workers of a running gateway, replace them one after another."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from pathlib import Path
from typing import NoReturn

from gateway.config.reload import ReloadFailed, ask, status
from gateway.roll import READY_S, Roll, RollFailed
from gateway.routing.model import LEVELS
from gateway.settings import Settings, SettingsError

EXIT_FAILED = 1


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `workers` and its sub-commands."""
    workers = subparsers.add_parser("workers", help="list a gateway's workers, replace them one after another")
    commands = workers.add_subparsers(dest="workers_command", metavar="COMMAND", required=True)

    roll = commands.add_parser("roll", help="replace all workers, one after another, while callers and units stay")
    roll.add_argument("--run-dir", type=Path, metavar="DIR", help="of the running gateway; CAREGATE_RUN_DIR")
    roll.add_argument("--ready-timeout", type=float, default=READY_S, metavar="S", help="for a new worker to come up")
    roll.set_defaults(run=run_roll)

    level = commands.add_parser("log-level", help="how much the workers that run now log, from now on; or what they do")
    level.add_argument("level", nargs="?", choices=LEVELS, help="without one it is only shown")
    level.add_argument("--run-dir", type=Path, metavar="DIR", help="of the running gateway; CAREGATE_RUN_DIR")
    level.set_defaults(run=run_log_level)

    listing = commands.add_parser("list", help="each worker and what it does: starting, serving, draining")
    listing.add_argument("--run-dir", type=Path, metavar="DIR", help="of the running gateway; CAREGATE_RUN_DIR")
    listing.set_defaults(run=run_list)


def run_roll(options: argparse.Namespace) -> int:
    """Print a line for each step, and a last one."""
    signal.signal(signal.SIGTERM, _interrupt)
    began_s = time.monotonic()
    try:
        replaced = Roll(_run_dir(options), _tell, ready_s=options.ready_timeout).run()
    except (RollFailed, SettingsError) as error:
        print(error, file=sys.stderr)
        return EXIT_FAILED
    _tell(f"rolled: {replaced} workers replaced in {time.monotonic() - began_s:.1f} s")
    return 0


def run_list(options: argparse.Namespace) -> int:
    """Print a line for each worker."""
    try:
        directory = _run_dir(options)
        workers = status(directory)
    except (ReloadFailed, SettingsError, OSError) as error:
        print(error, file=sys.stderr)
        return EXIT_FAILED
    if not workers:
        return _nobody(directory)
    for worker in workers:
        _tell(f"worker {worker.pid}: {worker.phase}, configuration version {worker.version}")
    return 0


def run_log_level(options: argparse.Namespace) -> int:
    """Print a line for each worker."""
    more = {} if options.level is None else {"level": options.level}
    try:
        directory = _run_dir(options)
        answers = ask(directory, "log-level", **more)
    except (ReloadFailed, SettingsError, OSError) as error:
        print(error, file=sys.stderr)
        return EXIT_FAILED
    if not answers:
        return _nobody(directory)
    for answer in answers:
        _tell(f"worker {answer['pid']}: {answer['level']}")
    return 0


def _nobody(directory: Path) -> int:
    print(f"no gateway runs under {directory}", file=sys.stderr)
    return EXIT_FAILED


def _run_dir(options: argparse.Namespace) -> Path:
    directory: Path | None = options.run_dir
    return Settings.from_environ().run_dir if directory is None else directory


def _interrupt(number: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt


def _tell(text: str) -> None:
    print(text, flush=True)

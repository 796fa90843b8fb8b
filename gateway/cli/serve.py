"""`caregate serve`: gunicorn with the project's configuration, in the foreground."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from gateway.cli.operator import unusable
from gateway.cli.said import positive
from gateway.settings import Settings, SettingsError

CONFIGURATION = Path(__file__).resolve().parents[2] / "gunicorn.conf.py"


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = subparsers.add_parser("serve", help="run the gateway; settings come from CAREGATE_* variables")
    parser.add_argument("--config", type=Path, help="the configuration document (CAREGATE_CONFIG_PATH)")
    parser.add_argument("--bind", help="HOST:PORT of the public listener (CAREGATE_BIND)")
    parser.add_argument("--workers", type=positive, help="worker processes (CAREGATE_WORKERS)")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    for variable, value in (
        ("CAREGATE_CONFIG_PATH", options.config),
        ("CAREGATE_BIND", options.bind),
        ("CAREGATE_WORKERS", options.workers),
    ):
        if value is not None:
            os.environ[variable] = str(value)
    try:
        Settings.from_environ()
    except SettingsError as error:  # gunicorn would tell of it in many lines
        return unusable("serve", error)
    return _become_gunicorn()


def _become_gunicorn() -> int:
    arguments = [sys.executable, "-m", "gunicorn", "-c", str(CONFIGURATION)]
    os.execv(sys.executable, arguments)  # noqa: S606 - our own argv, no shell

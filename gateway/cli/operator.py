"""How the operator's commands find the database: under the role caregate_operator, which is not the gateway's."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gateway.cli.said import reason
from gateway.settings import Settings, SettingsError

if TYPE_CHECKING:
    from gateway.store.unit_operator import UnitOperator

ANSWER_TIMEOUT_S = 10.0
DSN_VARIABLE = "CAREGATE_SECRET_OPERATOR_DSN"


class Unusable(Exception):
    """The command cannot run; the message says what to give."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare how to find the database and the running gateway."""
    parser.add_argument("--dsn", help=f"the database as caregate_operator; {DSN_VARIABLE}; default: the embedded one")
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="of the running gateway; CAREGATE_DATA_DIR")
    parser.add_argument("--run-dir", type=Path, metavar="DIR", help="of the running gateway; CAREGATE_RUN_DIR")


def read_settings() -> Settings:
    """Raises: Unusable."""
    try:
        return Settings.from_environ()
    except SettingsError as error:
        raise Unusable(str(error)) from None


def run_dir_of(options: argparse.Namespace) -> Path:
    """Where the gateway's sockets are. Raises: Unusable."""
    if options.run_dir is not None:
        return Path(options.run_dir)
    return Path(options.data_dir) / "run" if options.data_dir is not None else read_settings().run_dir


def connect(options: argparse.Namespace) -> UnitOperator:
    """Raises: Unusable if the database is not known or does not answer."""
    from gateway.store.unit_operator import OperatorError, UnitOperator

    try:
        return UnitOperator(dsn_of(options))
    except OperatorError as error:
        raise Unusable(f"the database does not answer: {error}") from None


def dsn_of(options: argparse.Namespace) -> str:
    """The database as caregate_operator. Raises: Unusable."""
    dsn = options.dsn or os.environ.get(DSN_VARIABLE, "")
    if dsn:
        return str(dsn)
    settings = read_settings()
    if settings.dsn and options.data_dir is None:
        raise Unusable(f"give --dsn or set {DSN_VARIABLE}: a login as caregate_operator")
    from gateway.store.embedded import EmbeddedPostgres

    directory = (options.data_dir or settings.data_dir) / "postgres"
    if not directory.is_dir():
        raise Unusable(f"{directory}: no embedded database; give --dsn, --data-dir, or set {DSN_VARIABLE}")
    return EmbeddedPostgres(directory).find().operator_dsn


def unusable(command: str, error: Exception) -> int:
    """Say why; the exit status."""
    print(f"caregate {command}: {reason(error)}", file=sys.stderr)
    return 2


def ask_workers(run_dir: Path) -> list[dict[str, Any]]:
    """What every worker of the running gateway says of its units. Raises: Unusable."""
    from gateway.config.reload import ReloadFailed, ask

    try:
        return ask(run_dir, "units", timeout_s=ANSWER_TIMEOUT_S)
    except ReloadFailed as error:
        raise Unusable(str(error)) from None

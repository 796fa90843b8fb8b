"""`caregate db`: prepare a PostgreSQL database for the gateway."""

from __future__ import annotations

import argparse
import os
import sys


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = subparsers.add_parser("db", help="prepare the database")
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    init = actions.add_parser(
        "init",
        help="make the roles, schemas and tables, or bring them up to date",
        description="Makes the login role caregate_gateway (give it a password or a pg_hba line yourself), the owner "
        "caregate_owner and the schemas portal and audit. Running it again does what is missing.",
    )
    init.add_argument(
        "--dsn", help="an administrator's DSN; default: the environment variable CAREGATE_SECRET_ADMIN_DSN"
    )
    parser.set_defaults(run=_init)


def _init(options: argparse.Namespace) -> int:
    from gateway.store.migrations import MigrationError, apply_migrations

    dsn = options.dsn or os.environ.get("CAREGATE_SECRET_ADMIN_DSN", "")
    if not dsn:
        print("caregate db: give --dsn, or set CAREGATE_SECRET_ADMIN_DSN", file=sys.stderr)
        return 2
    try:
        applied = apply_migrations(dsn)
    except MigrationError as error:
        print(f"caregate db: {error}", file=sys.stderr)
        return 1
    for name in applied:
        print(f"applied {name}")
    print("the database is up to date")
    return 0

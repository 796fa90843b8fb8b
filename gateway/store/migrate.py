"""Migrations for a process that must not import psycopg, such as gunicorn's arbiter: done in a child.

NOTE: psycopg chooses how it waits when it is imported. Imported before the fork, and so before gevent patches a worker,
it would stop all of the worker's requests at every wait.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]
_TIMEOUT_S = 120


class MigrationFailed(RuntimeError):
    """The database is not up to date; the message says why."""


def migrate(admin_dsn: str) -> list[str]:
    """Bring the gateway's schemas up to date; the names of the migrations applied.

    Raises: MigrationFailed.
    """
    result = subprocess.run(
        [sys.executable, "-m", "gateway.store.migrate"],
        input=admin_dsn,
        capture_output=True,
        text=True,
        cwd=_ROOT,
        timeout=_TIMEOUT_S,
        check=False,
    )
    if result.returncode:
        raise MigrationFailed(result.stderr.strip())
    return result.stdout.splitlines()


def _main() -> int:
    """The child: a DSN on stdin, so that no process list shows it; names on stdout."""
    import psycopg

    from gateway.store.migrations import MigrationError, apply_migrations

    try:
        applied = apply_migrations(sys.stdin.read())
    except (MigrationError, psycopg.Error) as error:
        print(str(error).strip(), file=sys.stderr)
        return 1
    for name in applied:
        print(name)
    return 0


if __name__ == "__main__":
    raise SystemExit(_main())

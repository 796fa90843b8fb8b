"""What the arbiter does once, before the first worker: directories, embedded database, a look at the configuration."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

from gateway.config.load import check_file
from gateway.settings import Settings
from gateway.store.embedded import EmbeddedError, EmbeddedPostgres
from gateway.store.migrate import migrate

SPARE_FILES = 500
"""Descriptors that a worker needs beside its connections."""

_postgres: EmbeddedPostgres | None = None


def prepare(settings: Settings) -> dict[str, str]:
    """Make ready what workers need; returns environment variables for them.

    Raises: SystemExit with every fault of the configuration on stderr.
    """
    raise_file_limit(settings.worker_connections)
    _directory(settings.data_dir, 0o711)
    _directory(settings.run_dir, 0o700)
    # NOTE: where the database has versions, the file counts only for the first, and the first worker looks at it.
    if settings.config_source == "file":
        _refuse_bad_configuration(settings.config_path)
    if settings.dsn:
        return {}
    postgres = _start_database(settings.data_dir / "postgres")
    return {
        "CAREGATE_DSN": postgres.gateway_dsn,
        "CAREGATE_AUDIT_DSN": settings.audit_dsn or postgres.reader_dsn,
        "CAREGATE_OPERATOR_DSN": settings.operator_dsn or postgres.operator_dsn,
    }


def raise_file_limit(connections: int) -> None:
    """Room for a worker's connections as far as the hard limit goes, which stderr is told if it is too low."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return
    wanted = connections + SPARE_FILES
    if hard != resource.RLIM_INFINITY and hard < connections:
        print(
            f"caregate: {connections} connections a worker (CAREGATE_WORKER_CONNECTIONS) need {wanted} descriptors, "
            f"the hard limit (RLIMIT_NOFILE) is {hard}: raise it (LimitNOFILE=, ulimit -Hn)",
            file=sys.stderr,
            flush=True,
        )
    wanted = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def clean_up() -> None:
    """Stop what `prepare` started."""
    if _postgres is not None:
        _postgres.stop()


def _directory(path: Path, mode: int) -> None:
    # NOTE: 0711 lets others pass through but not look: root's PostgreSQL runs as another account, below data_dir.
    try:
        path.mkdir(mode=mode, parents=True, exist_ok=True)
    except OSError as error:
        _refuse(f"{path}: cannot be made: {error.strerror}")


def _refuse_bad_configuration(path: Path) -> None:
    if not path.is_file():
        _refuse(f"{path}: no such configuration document; set CAREGATE_CONFIG_PATH")
    faults = check_file(path)
    if faults:
        _refuse("\n".join(f"{path}: {fault}" for fault in faults))


def _start_database(directory: Path) -> EmbeddedPostgres:
    global _postgres
    _postgres = EmbeddedPostgres(directory)
    try:
        _postgres.start()
    except EmbeddedError as error:
        _refuse(str(error))
    migrate(_postgres.admin_dsn)
    return _postgres


def _refuse(reason: str) -> None:
    print(f"caregate: {reason}", file=sys.stderr, flush=True)
    raise SystemExit(1)

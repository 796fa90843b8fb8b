"""`caregate config`: check a configuration document, put it in force, look at it."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

import msgspec

from gateway.cli.config_import import add_import_parser
from gateway.cli.config_versions import add_version_parsers, print_refused
from gateway.config.fault import Fault
from gateway.config.load import Refused, load, read_text
from gateway.config.model import Controller, Document
from gateway.config.parse import parse
from gateway.config.reload import TIMEOUT_S, ReloadFailed, reload, status
from gateway.errors import DatabaseUnavailable
from gateway.settings import Settings, SettingsError

EXIT_REFUSED = 1
EXIT_UNUSABLE = 2


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `config` and its sub-commands."""
    config = subparsers.add_parser("config", help="check the configuration document, reload it in a running gateway")
    commands = config.add_subparsers(dest="config_command", metavar="COMMAND", required=True)

    check = commands.add_parser("check", help="name every fault of a document; exit 1 if there is one, 2 if unreadable")
    check.add_argument("file", type=Path, metavar="FILE")
    check.add_argument("--dsn", help="check functions against this database, as caregate_gateway; CAREGATE_DSN")
    check.set_defaults(run=run_check)

    again = commands.add_parser("reload", help="put the document in force in every worker, or in none")
    again.add_argument("--run-dir", type=Path, metavar="DIR", help="of the running gateway; CAREGATE_RUN_DIR")
    again.add_argument("--timeout", type=float, default=TIMEOUT_S, metavar="S", help="for each worker's answer")
    again.set_defaults(run=run_reload)

    state = commands.add_parser("status", help="what each worker has in force; exit 1 if they differ")
    state.add_argument("--run-dir", type=Path, metavar="DIR", help="of the running gateway; CAREGATE_RUN_DIR")
    state.set_defaults(run=run_status)

    schema = commands.add_parser("schema", help="the document's JSON Schema, for editors")
    schema.set_defaults(run=run_schema)

    add_version_parsers(commands)
    add_import_parser(commands)

    routes = commands.add_parser("show-routes", help="a document's routes as a table")
    routes.add_argument("file", type=Path, metavar="FILE")
    routes.set_defaults(run=run_show_routes)


def run_check(options: argparse.Namespace) -> int:
    """Print `FILE:LINE: PATH: REASON` for each fault."""
    try:
        read_text(options.file)
    except OSError as error:
        return _unusable(f"{options.file}: {os.strerror(error.errno or 0)}")
    dsn = options.dsn or os.environ.get("CAREGATE_DSN", "")
    try:
        snapshot = load(options.file, catalog_check=(lambda document: _check_functions(document, dsn)) if dsn else None)
    except DatabaseUnavailable as error:
        return _unusable(f"the database cannot be asked: {error.code}")
    except Refused as error:
        for fault in error.places:
            print(f"{options.file}:{fault.line or 1}: {fault}")
        return EXIT_REFUSED
    document = snapshot.document
    counts = ", ".join(
        f"{len(getattr(document, section))} {section}"
        for section in ("audiences", "roles", "upstreams", "units", "controllers")
    )
    unchecked = "" if dsn else "; functions not checked: no --dsn"
    print(f"{options.file}: good: {counts}; digest {snapshot.digest[:12]}{unchecked}")
    return 0


def _check_functions(document: Document, dsn: str) -> list[Fault]:
    """Raises: DatabaseUnavailable."""
    from gateway.portal.catalog import check_functions
    from gateway.store.pool import Database

    database = Database(dsn)
    database.open()
    try:
        return check_functions(document, database)[1]
    finally:
        database.close()


def run_reload(options: argparse.Namespace) -> int:
    """Print a line for each worker, or each fault."""
    try:
        outcome = reload(_run_dir(options), timeout_s=options.timeout)
    except (ReloadFailed, SettingsError) as error:
        return _failed(str(error))
    if outcome.faults:
        for fault in outcome.faults:
            print(f"line {fault.line or 1}: {fault}", file=sys.stderr)
        return _failed("the document is refused; every worker keeps what it had")
    for worker in outcome.workers:
        print(f"worker {worker.pid}: version {worker.version}, digest {worker.digest[:12]}")
    for warning in outcome.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    return 0


def run_status(options: argparse.Namespace) -> int:
    """Print a line for each worker."""
    try:
        workers = status(_run_dir(options))
    except (ReloadFailed, SettingsError, OSError) as error:
        return _failed(str(error))
    for worker in workers:
        digests = f"digest {worker.digest[:12]}, keys {worker.keys_digest[:12]}"
        print(f"worker {worker.pid}: version {worker.version}, {digests}")
        print_refused(worker)
    if not workers:
        return _failed("no worker is running")
    if len({(w.version, w.digest, w.keys_digest) for w in workers}) > 1:
        again = "reload" if any(w.source == "file" for w in workers) else "apply"
        return _failed(f"the workers differ; `caregate config {again}` brings them together")
    if any(w.refused for w in workers):
        return EXIT_REFUSED
    return 0


def run_schema(_options: argparse.Namespace) -> int:
    """Print the JSON Schema (2020-12)."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **msgspec.json.schema(Document)}
    print(json.dumps(schema, indent=2))
    return 0


def run_show_routes(options: argparse.Namespace) -> int:
    """Print one line a route and method."""
    try:
        parsed = parse(read_text(options.file))
    except OSError as error:
        return _unusable(f"{options.file}: {os.strerror(error.errno or 0)}")
    if parsed.document is None or parsed.faults:
        return _failed(f"{options.file} has faults; see `caregate config check`")
    rows = [("METHOD", "PATH", "CONTROLLER", "ANSWERED BY", "ROLES")]
    for name, controller in parsed.document.controllers.items():
        rows += [
            (method, controller.path, name, _answered_by(controller), ",".join(controller.roles))
            for method in controller.methods
        ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    for row in rows[:1] + sorted(rows[1:], key=lambda r: (r[1], r[0])):
        print("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]))
    return 0


def _answered_by(controller: Controller) -> str:
    if controller.function is not None:
        return f"function {controller.function.name}"
    if controller.upstream is not None:
        return f"upstream {controller.upstream.name}"
    if controller.unit is not None:
        return f"unit {controller.unit.unit}"
    return f"resource {controller.resource}"


def _run_dir(options: argparse.Namespace) -> Path:
    directory: Path | None = options.run_dir
    return Settings.from_environ().run_dir if directory is None else directory


def _unusable(reason: str) -> int:
    print(reason, file=sys.stderr)
    return EXIT_UNUSABLE


def _failed(reason: str) -> int:
    print(reason, file=sys.stderr)
    return EXIT_REFUSED

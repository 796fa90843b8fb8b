"""`caregate config apply | diff | history | show | rollback`: the versions of the configuration in the database."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.cli.operator import Unusable, add_options, dsn_of, read_settings, run_dir_of
from gateway.config.change import Applied, Changes, Stale, add, difference
from gateway.config.fault import Fault
from gateway.config.load import Refused, load_text, read_text
from gateway.config.reload import TIMEOUT_S, ReloadFailed, WorkerStatus

if TYPE_CHECKING:
    Parsers = argparse._SubParsersAction[argparse.ArgumentParser]

    from gateway.config.version import Version
    from gateway.store.config_version import VersionStore

EXIT_REFUSED = 1
EXIT_UNUSABLE = 2
EXIT_STALE = 3


def add_version_parsers(commands: Parsers) -> None:
    """Declare the sub-commands."""
    apply = _parser(
        commands, "apply", "make a document the next version, in every worker; exit 3 if --base is stale", _apply
    )
    apply.add_argument("file", type=Path, nargs="?", metavar="FILE", help="default: the newest version again")
    apply.add_argument("--reason", required=True, help="why, for those who read the history")
    _add_change_options(apply)

    rollback = _parser(commands, "rollback", "make an earlier version's document the next version", _rollback)
    rollback.add_argument("number", type=int, metavar="N")
    rollback.add_argument("--reason", help="default: rollback to version N")
    _add_change_options(rollback)

    diff = _parser(commands, "diff", "what a document or version would change; exit 1 if they differ", _diff)
    diff.add_argument("new", metavar="FILE|N")
    diff.add_argument("old", type=int, nargs="?", metavar="N", help="the version to compare with; default: the newest")

    history = _parser(commands, "history", "the versions, the newest first", _history)
    history.add_argument("--limit", type=int, default=20, metavar="N")

    show = _parser(commands, "show", "a version's document as it was applied", _show)
    show.add_argument("number", type=int, nargs="?", metavar="N", help="default: the newest")


def _parser(
    commands: Parsers, name: str, text: str, run: Callable[[argparse.Namespace, VersionStore], int]
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text)
    add_options(parser)
    parser.set_defaults(run=lambda options: _guarded(name, options, run))
    return parser


def _add_change_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--base", type=int, metavar="N", help="refuse unless N is the newest version; 0: there is none")
    parser.add_argument("--author", help="default: who runs the command")
    parser.add_argument("--timeout", type=float, default=TIMEOUT_S, metavar="S", help="for each worker's answer")
    parser.add_argument(
        "--offline", action="store_true", help="no gateway runs here: check the document in this process"
    )


def _guarded(name: str, options: argparse.Namespace, run: Callable[[argparse.Namespace, VersionStore], int]) -> int:
    from gateway.store.config_version import VersionsError, VersionStore

    try:
        with VersionStore(dsn_of(options)) as store:
            return run(options, store)
    except Stale as error:
        print(f"caregate config {name}: {error}", file=sys.stderr)
        return EXIT_STALE
    except (Unusable, ReloadFailed) as error:
        print(f"caregate config {name}: {error}", file=sys.stderr)
    except OSError as error:
        print(f"caregate config {name}: {error.filename}: {error.strerror}", file=sys.stderr)
    except VersionsError as error:
        print(f"caregate config {name}: the database: {error}", file=sys.stderr)
    return EXIT_UNUSABLE


def _apply(options: argparse.Namespace, store: VersionStore) -> int:
    newest = store.newest()
    if options.file is not None:
        raw = read_text(options.file)
    elif newest is not None:
        raw = newest.document.encode()
    else:
        raise Unusable("there is no version yet: give a FILE")
    return _change(options, store, newest, raw, options.reason)


def _rollback(options: argparse.Namespace, store: VersionStore) -> int:
    raw = _read(store, options.number).document.encode()
    return _change(options, store, store.newest(), raw, options.reason or f"rollback to version {options.number}")


def _change(options: argparse.Namespace, store: VersionStore, newest: Version | None, raw: bytes, reason: str) -> int:
    """Check, then add the version, then wait for the workers. Raises: Stale, ReloadFailed, Unusable."""
    author = options.author or _user_name()
    try:
        if options.offline:
            return _change_offline(options, store, newest, raw, author, reason)
        changes = Changes(lambda: nullcontext(store), run_dir_of(options), options.timeout)
        return _report(changes.apply(raw, options.base, author, reason))
    except Refused as error:
        return _refused(error.places)


def _change_offline(
    options: argparse.Namespace, store: VersionStore, newest: Version | None, raw: bytes, author: str, reason: str
) -> int:
    """Raises: Stale, Refused."""
    known = newest.number if newest is not None else 0
    if options.base not in (None, known):
        raise Stale(options.base, newest)
    loaded = load_text(raw, read_settings().config_path.parent)
    add(store, known, loaded.snapshot.digest, raw, author, reason)
    print(f"version {known + 1}, digest {loaded.snapshot.digest[:12]}; functions not checked: --offline")
    return 0


def _report(applied: Applied) -> int:
    print(f"version {applied.number} is in the database")
    for worker in applied.workers:
        print(f"worker {worker.pid}: version {worker.version}, digest {worker.digest[:12]}")
        print_refused(worker)
    if applied.behind:
        print(
            f"version {applied.number} is not in force in {len(applied.behind)} of {len(applied.workers)} workers",
            file=sys.stderr,
        )
        return EXIT_REFUSED
    return 0


def print_refused(worker: WorkerStatus) -> None:
    """Say which version a worker does not take, and why."""
    if worker.refused:
        for path, reason, _line in worker.refused["faults"]:
            print(
                f"worker {worker.pid}: refuses version {worker.refused['version']}: {path}: {reason}", file=sys.stderr
            )


def _refused(faults: list[Fault]) -> int:
    for fault in faults:
        print(f"line {fault.line or 1}: {fault}", file=sys.stderr)
    print("the document is refused; nothing was changed", file=sys.stderr)
    return EXIT_REFUSED


def _diff(options: argparse.Namespace, store: VersionStore) -> int:
    old = _read(store, options.old) if options.old is not None else store.newest()
    if old is None:
        raise Unusable("there is no version yet")
    new_name, new = _text(store, options.new)
    lines = difference(f"version {old.number}", old.document, new_name, new)
    for line in lines:
        print(line)
    return EXIT_REFUSED if lines else 0


def _text(store: VersionStore, name: str) -> tuple[str, str]:
    """What the text is called, and the text, of a version's number or a file."""
    if name.isascii() and name.isdigit():
        return f"version {name}", _read(store, int(name)).document
    return name, read_text(Path(name)).decode("utf-8", "replace")


def _history(options: argparse.Namespace, store: VersionStore) -> int:
    rows = [("VERSION", "TIME", "AUTHOR", "LOGIN", "DIGEST", "REASON")]
    for entry in store.history(options.limit):
        at = entry.at.astimezone().isoformat(" ", "seconds")
        rows.append((str(entry.number), at, entry.author, entry.actor, entry.digest[:12], entry.reason))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    for row in rows:
        print("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]))
    return 0


def _show(options: argparse.Namespace, store: VersionStore) -> int:
    version = store.newest() if options.number is None else _read(store, options.number)
    if version is None:
        raise Unusable("there is no version yet")
    sys.stdout.write(version.document)
    return 0


def _read(store: VersionStore, number: int) -> Version:
    """Raises: Unusable."""
    version = store.read(number)
    if version is None:
        raise Unusable(f"there is no version {number}")
    return version


def _user_name() -> str:
    from gateway.config.versions import user_name

    name = os.environ.get("SUDO_USER", "")
    return name or user_name()

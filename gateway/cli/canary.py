"""`caregate canary`: does anything personal get where it must not be? Asked of a running gateway with made-up texts."""

from __future__ import annotations

import argparse
import secrets
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.cli.said import http_url, reason

if TYPE_CHECKING:
    from gateway.canary.marks import Marks
    from gateway.canary.probes import Heard
    from gateway.canary.sinks import Leak

_DSN = "CAREGATE_SECRET_AUDIT_DSN"
_LIMIT_S = 10.0


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "canary",
        help="send marked requests, and look for the marks where nothing personal may be",
        description="Sends requests with made-up names, ids, tokens and bodies, all but those to --path refused, and "
        "looks for them in every answer, log, metric, file and row that it is told of: one place at least beside the "
        "answers. No patient's data is touched. "
        "Ends with 0 if nothing was found, 1 if something was, 2 if a place could not be looked at.",
    )
    parser.add_argument("--gateway", required=True, type=http_url, metavar="URL", help="the public listener")
    parser.add_argument("--insecure", action="store_true", help="take any certificate")
    parser.add_argument("--token", type=Path, metavar="FILE", help="a good token, so that probes get behind the policy")
    parser.add_argument(
        "--path",
        action="append",
        default=[],
        metavar="PATH",
        help="also ask for it; {mark} is replaced by a made-up id",
    )
    parser.add_argument(
        "--metrics", type=http_url, metavar="URL", help="the operations listener: its /metrics and /status"
    )
    parser.add_argument(
        "--log", type=Path, action="append", default=[], metavar="PATH", help="a log, or a folder of logs"
    )
    parser.add_argument(
        "--data-dir", type=Path, metavar="DIR", help="of the gateway: the audit spool and what else is kept"
    )
    parser.add_argument("--dsn", help=f"the audit trail's database, as a member of caregate_auditor; {_DSN}")
    parser.add_argument(
        "--wait", type=float, default=2.0, metavar="S", help="until logs and the trail have what was sent (default: 2)"
    )
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from gateway.canary.marks import make_marks
    from gateway.canary.probes import probes, send

    dsn = _dsn(options)
    if not (options.metrics or options.log or options.data_dir or dsn):
        return _unusable("name a place to look in: --metrics, --log, --data-dir or --dsn")
    marks = make_marks(secrets.token_hex)
    begun_s = time.time()
    try:
        bearer = _token(options.token) if options.token is not None else ""
    except (OSError, ValueError) as error:
        return _unusable(reason(error))
    try:
        heard = [send(options.gateway, probe, not options.insecure) for probe in probes(marks, options.path, bearer)]
    except (OSError, ValueError) as error:
        return _unusable(f"{options.gateway}: {reason(error)}")
    answered = sum(1 for one in heard if one.status)
    if not answered:
        return _unusable(f"{options.gateway} answered none of {len(heard)} requests: is that the public listener?")
    time.sleep(options.wait)
    print(f"{len(heard)} requests sent, {answered} answered")
    found, blind = 0, 0
    for name, sink in _sinks(options, dsn, marks, heard, begun_s):
        try:
            leaks = list(sink())
        except Exception as error:
            blind += 1
            print(f"{name:24}  cannot be looked at: {type(error).__name__}: {reason(error)}")
            continue
        found += len(leaks)
        print(f"{name:24}  {'clean' if not leaks else 'FOUND'}")
        for leak in leaks:
            print(f"    {', '.join(sorted(leak.kinds))} in {leak.sink}")
    print(f"canary: {'clean' if not found and not blind else f'{found} leaks, {blind} places not looked at'}")
    return 1 if found else 2 if blind else 0


def _unusable(why: str) -> int:
    """Say why nothing was looked for; the exit status."""
    print(f"caregate canary: {why}", file=sys.stderr)
    return 2


def _sinks(
    options: argparse.Namespace, dsn: str, marks: Marks, heard: list[Heard], begun_s: float
) -> Iterator[tuple[str, Callable[[], Iterator[Leak]]]]:
    """Where is looked: a name, and what looks there."""
    from gateway.canary.sinks import look, look_in_rows, look_in_spool

    def answers() -> Iterator[Leak]:
        for one in heard:
            for leak in look(one.probe.title, one.data, marks):
                kinds = leak.kinds - (one.probe.echoes if 200 <= one.status < 300 else frozenset())
                if kinds:
                    yield type(leak)(f"the answer {one.status} to: {leak.sink}", kinds)

    def operations(path: str) -> Callable[[], Iterator[Leak]]:
        return lambda: look(path, _get(options.metrics.rstrip("/") + path), marks)

    yield "answers", answers
    if options.metrics:
        for path in ("/metrics", "/status", "/readyz"):
            yield path, operations(path)
    for path in options.log:
        yield f"log {path.name}", partial(in_file, path, marks)
    if options.data_dir is not None:
        folder = options.data_dir
        yield "audit spool", lambda: look_in_spool(_there(folder / "audit"), marks)
        yield "data directory", partial(_in_data_dir, folder, marks)
    if dsn:
        yield "audit trail", lambda: look_in_rows("audit.event", _rows(dsn, begun_s), marks)


def in_file(path: Path, marks: Marks) -> Iterator[Leak]:
    """Leaks in a log or a folder of logs. Raises: OSError, also where there is no file: nothing was looked at."""
    from gateway.canary.sinks import files_of, look_in_files

    if not files_of([_there(path)]):
        raise FileNotFoundError(f"no file is in {path}")
    return look_in_files([path], marks)


def _in_data_dir(folder: Path, marks: Marks) -> Iterator[Leak]:
    from gateway.canary.sinks import look_in_files

    return look_in_files([one for one in _there(folder).iterdir() if one.name not in ("audit", "postgres")], marks)


def _token(path: Path) -> str:
    """The bearer token in a file. Raises: OSError, ValueError if it could not be sent."""
    text = path.read_text().strip()
    if not text or not all("!" <= character <= "~" for character in text):
        raise ValueError(f"{path}: holds no bearer token")
    return text


def _rows(dsn: str, begun_s: float) -> Iterator[dict[str, object]]:
    from gateway.store.trail import TrailReader

    with TrailReader(dsn) as reader:
        yield from reader.since(begun_s - 1.0)


def _dsn(options: argparse.Namespace) -> str:
    import os

    dsn = options.dsn or os.environ.get(_DSN, "")
    folder = options.data_dir / "postgres" if options.data_dir is not None else None
    if dsn or folder is None or not folder.is_dir():
        return str(dsn)
    from gateway.store.embedded import EmbeddedPostgres

    return EmbeddedPostgres(folder).find().admin_dsn


def _get(url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=_LIMIT_S) as answer:  # noqa: S310 - the operator's own address
            return bytes(answer.read())
    except urllib.error.HTTPError as error:
        with suppress(OSError):
            return bytes(error.read())
        raise


def _there(path: Path) -> Path:
    """Raises: FileNotFoundError: a place that is not there was not looked at."""
    if not path.exists():
        raise FileNotFoundError(path)
    return path

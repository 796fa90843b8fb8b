"""`caregate audit`: verify the trail, take a copy of it, list what was begun and never ended."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    from gateway.audit.checkpoint import Sealed
    from gateway.audit.verify import Verdict

_DSN = "CAREGATE_SECRET_AUDIT_DSN"
_SHOWN = 20


class Unusable(Exception):
    """Arguments, files or a database the command cannot work with; the message is for the user."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = subparsers.add_parser("audit", help="verify the audit trail, export it")
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    verify = actions.add_parser(
        "verify",
        help="was anything changed, removed, added or reordered?",
        description="Ends with 0 if everything is as it was written, 1 if not: then the first bad record is named.",
    )
    _add_source(verify)
    verify.add_argument("--export", type=Path, metavar="FILE", help="verify an export instead of the database")
    verify.add_argument(
        "--key", type=Path, action="append", metavar="FILE", help="public key in PEM; may be given more than once"
    )
    verify.set_defaults(run=_guarded(_verify))
    export = actions.add_parser("export", help="copy records and checkpoints into a file")
    _add_source(export)
    export.add_argument("--out", type=Path, required=True, metavar="FILE", help="must not exist")
    export.set_defaults(run=_guarded(_export))
    unfinished = actions.add_parser(
        "unfinished",
        help="intents without an outcome",
        description="The gateway died, or could not write, while these requests ran. Ends with 1 if there are any.",
    )
    _add_source(unfinished)
    unfinished.set_defaults(run=_guarded(_unfinished))


def _add_source(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dsn", help=f"of a member of caregate_auditor; {_DSN}; default: the embedded database")
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="of the gateway; CAREGATE_DATA_DIR")
    parser.add_argument(
        "--from", type=_time, default=0, dest="from_ms", metavar="TIME", help="ISO 8601, UTC if it says nothing"
    )
    parser.add_argument("--to", type=_time, default=0, dest="to_ms", metavar="TIME")
    parser.add_argument(
        "--checkpoints",
        type=Path,
        metavar="PATH",
        help="a file or folder of checkpoints outside the database; default: audit/checkpoints of the data directory",
    )


def _guarded(run: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    def guarded(options: argparse.Namespace) -> int:
        from gateway.store.trail import TrailUnreadable

        try:
            return run(options)
        except (Unusable, TrailUnreadable, OSError, ValueError) as error:
            print(f"caregate audit: {error}", file=sys.stderr)
        return 2

    return guarded


def _verify(options: argparse.Namespace) -> int:
    from gateway.audit.export import read_export
    from gateway.audit.notary import read_shipped
    from gateway.audit.span import span_of
    from gateway.audit.verify import Verdict, compare_copies, read_checkpoints, verify
    from gateway.store.trail import TrailReader

    keys = _keys(options)
    verdict = Verdict()
    if options.export is not None:
        export = read_export(options.export)
        span = span_of([*export.sealed, *_from_files(options)], options.from_ms, options.to_ms)
        anchors = read_checkpoints(span.sealed, keys, verdict)
        starts = {chain: start for chain, (start, _) in export.chains.items()}
        verify(export.chains, export.lines, anchors, verdict, starts.get, span.end_of)
        return _tell(verdict)
    with TrailReader(_dsn(options)) as reader:
        in_database, outside = list(reader.numbered_checkpoints()), _from_files(options)
        compare_copies(in_database, outside, read_shipped(_outside(options)), verdict)
        span = span_of([*(sealed for _, _, sealed in in_database), *outside], options.from_ms, options.to_ms)
        anchors = read_checkpoints(span.sealed, keys, verdict)

        def lines(chain: str) -> Iterator[bytes]:
            start = span.start_of(chain)
            return reader.lines(chain, start.sequence if start else 0, span.end_of(chain))

        verify(reader.chains(), lines, anchors, verdict, span.start_of, span.end_of)
    return _tell(verdict)


def _export(options: argparse.Namespace) -> int:
    from gateway.audit.chain import genesis
    from gateway.audit.export import write_export
    from gateway.audit.span import span_of
    from gateway.audit.verify import Start
    from gateway.store.trail import TrailReader

    with TrailReader(_dsn(options)) as reader:
        span = span_of([*reader.checkpoints(), *_from_files(options)], options.from_ms, options.to_ms)

        def chains() -> Iterator[tuple[str, Start, Iterable[bytes]]]:
            for chain in reader.chains():
                start = span.start_of(chain) or Start(0, genesis(chain))
                yield chain, start, reader.lines(chain, start.sequence, span.end_of(chain))

        descriptor = os.open(options.out, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            count = write_export(file, span.sealed, chains(), (options.from_ms, options.to_ms))
            file.flush()
            os.fsync(descriptor)
    print(f"{count} records, {len(span.sealed)} checkpoints")
    return 0


def _unfinished(options: argparse.Namespace) -> int:
    from gateway.store.trail import TrailReader

    found = 0
    with TrailReader(_dsn(options)) as reader:
        for occurred_at, chain, sequence, request_id, route in reader.unfinished(
            options.from_ms, options.to_ms or round((time.time() - 60) * 1000)
        ):
            found += 1
            print(f"{occurred_at}  chain {chain} record {sequence}  request {request_id}  route {route}")
    print(f"{found} intents without an outcome")
    return 1 if found else 0


def _tell(verdict: Verdict) -> int:
    for finding in verdict.findings[:_SHOWN]:
        print(finding)
    if len(verdict.findings) > _SHOWN:
        print(f"... and {len(verdict.findings) - _SHOWN} more")
    print(
        f"{verdict.records} records in {verdict.chains} chains, {verdict.sealed} of them under {verdict.checkpoints} "
        f"signed checkpoints, {verdict.unsealed} not yet"
    )
    covers = _iso(verdict.covers_ms) if verdict.covers_ms else "never: there is no checkpoint"
    print(f"everything is covered until {covers}; what was cut off behind that cannot be told")
    if verdict.records and not verdict.checkpoints and not verdict.findings:
        print("verify: NOT JUDGED, nothing was signed")
        return 2
    print("verify: FAILED" if verdict.findings else "verify: ok")
    return 1 if verdict.findings else 0


def _keys(options: argparse.Namespace) -> list[Ed25519PublicKey]:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    paths: list[Path] = options.key or [_folder(options) / "checkpoint.pub"]
    keys = []
    for path in paths:
        if not path.exists():
            raise Unusable(f"{path}: does not exist; give --key FILE, or --data-dir for the gateway's own")
        key = serialization.load_pem_public_key(path.read_bytes())
        if not isinstance(key, Ed25519PublicKey):
            raise Unusable(f"{path} is no Ed25519 key")
        keys.append(key)
    return keys


def _from_files(options: argparse.Namespace) -> list[Sealed]:
    """The checkpoints outside the database. Without --checkpoints those of the data directory, if they are here."""
    from gateway.audit.notary import read_sealed

    path = _outside(options)
    if options.checkpoints is None and (getattr(options, "export", None) is not None or not path.is_dir()):
        return []
    files = sorted(path.glob("*.ndjson")) if path.is_dir() else [path]
    return [sealed for file in files for sealed in read_sealed(file)]


def _outside(options: argparse.Namespace) -> Path:
    return options.checkpoints or _folder(options) / "checkpoints"


def _data_dir(options: argparse.Namespace) -> Path:
    return options.data_dir or Path(os.environ.get("CAREGATE_DATA_DIR", ".caregate"))


def _folder(options: argparse.Namespace) -> Path:
    return _data_dir(options) / "audit"


def _dsn(options: argparse.Namespace) -> str:
    dsn: str = options.dsn or os.environ.get(_DSN, "")
    if dsn:
        return dsn
    from gateway.store.embedded import EmbeddedPostgres

    directory = _data_dir(options) / "postgres"
    if not directory.is_dir():
        raise Unusable(f"{directory}: no embedded database; give --dsn, --data-dir, or set {_DSN}")
    # The login of the embedded database that may read the trail; nobody but its owner reaches its socket.
    return EmbeddedPostgres(directory).find().admin_dsn


def _time(text: str) -> int:
    """ISO 8601 -> ms since 1970."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError("a time such as 2026-05-01 or 2026-05-01T12:00:00Z") from None
    return round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


def _iso(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")

"""`caregate audit export|check|syslog`: the trail into files that are signed for, and to a collector."""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.cli.audit_source import (
    Unusable,
    add_patient_key,
    add_source,
    checkpoints_of,
    dsn_of,
    folder_of,
    guarded,
    keys_of,
    note,
    patients_of,
    private_key_of,
    who,
)

if TYPE_CHECKING:
    from gateway.audit.pseudonyms import NamesReader

_SUFFIX = ".manifest.json"
_POLL_S = 1.0


def add_actions(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the commands."""
    export = actions.add_parser(
        "export",
        help="copy the trail into a file",
        description="trail: records and checkpoints, for `caregate audit verify --export`. fhir: AuditEvent resources, "
        "a line each. csv: a table. Beside the last two a signed manifest is written, FILE" + _SUFFIX + ".",
    )
    add_source(export)
    export.add_argument("--format", choices=("trail", "fhir", "csv"), default="trail")
    export.add_argument("--out", type=Path, required=True, metavar="FILE", help="must not exist")
    export.add_argument("--signing-key", type=Path, metavar="FILE", help="default: audit/checkpoint.key")
    export.add_argument(
        "--with-ids", action="store_true", help="patients by their ids where they are known, not by their pseudonyms"
    )
    add_patient_key(export)
    export.set_defaults(run=guarded(_export))
    check = actions.add_parser("check", help="is an exported file what its manifest says?")
    check.add_argument("file", type=Path, metavar="FILE")
    check.add_argument("--key", type=Path, action="append", metavar="FILE", help="public key in PEM")
    check.add_argument("--data-dir", type=Path, metavar="DIR", help="of the gateway; CAREGATE_DATA_DIR")
    check.set_defaults(run=guarded(_check))
    syslog = actions.add_parser(
        "syslog",
        help="send the trail to a collector",
        description="Follows the trail and sends each event as RFC 5424 over TLS (RFC 5425), at least once, in the "
        "order of each chain; goes on where it ended.",
    )
    syslog.add_argument("--dsn", help="of a member of caregate_auditor; default: the embedded database")
    syslog.add_argument("--data-dir", type=Path, metavar="DIR", help="of the gateway; CAREGATE_DATA_DIR")
    syslog.add_argument("--to", required=True, metavar="HOST:PORT", help="the collector; 6514 is usual")
    syslog.add_argument("--ca", type=Path, required=True, metavar="FILE", help="who has signed its certificate")
    syslog.add_argument("--cert", type=Path, metavar="FILE", help="certificate of this sender, with --cert-key")
    syslog.add_argument("--cert-key", type=Path, metavar="FILE")
    syslog.add_argument(
        "--cursor", type=Path, metavar="FILE", help="default: audit/syslog-cursor.json of the data directory"
    )
    syslog.add_argument(
        "--once", action="store_true", help="send what is there, then end: with 1 if it is not all sent"
    )
    syslog.set_defaults(run=guarded(_syslog))


def _export(options: argparse.Namespace) -> int:
    if options.out.exists():
        raise Unusable(f"{options.out}: File exists")
    if options.format == "trail":
        return _export_trail(options)
    from gateway.audit import manifest
    from gateway.audit.checkpoint import digest

    key = private_key_of(options)
    sealed = next(reversed(checkpoints_of(options)), None)
    with _Digesting(options.out) as file:
        count = sum(1 for _ in _write_events(options, file))
    about = manifest.Manifest(
        v=1, file=options.out.name, format=options.format, sha256=file.sha256, bytes=file.bytes, records=count,
        from_ms=options.from_ms, to_ms=options.to_ms, made_ms=time.time_ns() // 1_000_000, by=who(),
        checkpoint=digest(sealed.checkpoint) if sealed is not None else "",
    )  # fmt: skip
    try:
        note(
            options, "audit.exported", format=options.format, found=str(count), sha256=file.sha256, query=_span(options)
        )
    except Unusable:
        options.out.unlink()
        raise
    _write_new(options.out.with_name(options.out.name + _SUFFIX), manifest.seal(about, key))
    print(f"{count} events")
    return 0


def _export_trail(options: argparse.Namespace) -> int:
    from gateway.audit.chain import genesis
    from gateway.audit.export import write_export
    from gateway.audit.span import span_of
    from gateway.audit.verify import Start
    from gateway.store.trail import TrailReader

    with TrailReader(dsn_of(options)) as reader:
        span = span_of([*reader.checkpoints(), *checkpoints_of(options)], options.from_ms, options.to_ms)

        def chains() -> Iterator[tuple[str, Start, Iterable[bytes]]]:
            for chain in reader.chains():
                start = span.start_of(chain) or Start(0, genesis(chain))
                yield chain, start, reader.lines(chain, start.sequence, span.end_of(chain))

        with _Digesting(options.out) as file:
            count = write_export(file, span.sealed, chains(), (options.from_ms, options.to_ms), reader.acts())
    try:
        note(options, "audit.exported", format="trail", found=str(count), sha256=file.sha256, query=_span(options))
    except Unusable:
        options.out.unlink()
        raise
    print(f"{count} records, {len(span.sealed)} checkpoints")
    return 0


def _write_events(options: argparse.Namespace, file: _Digesting) -> Iterator[None]:
    import orjson

    from gateway.audit.csv_text import EVENT_COLUMNS, event_values, line
    from gateway.audit.event import readable
    from gateway.audit.fhir import audit_event
    from gateway.store.trail import TrailReader

    if options.format == "csv":
        file.write(line(EVENT_COLUMNS).encode())
    with TrailReader(dsn_of(options)) as reader:
        shown = _Shown(patients_of(options, reader, naming=True)) if options.with_ids else (lambda name: name)
        for chain, sequence, canonical in reader.events(options.from_ms, options.to_ms):
            event = readable(canonical)
            if options.format == "csv":
                file.write(line(event_values(event, chain, sequence, shown(event.patient))).encode())
            else:
                file.write(orjson.dumps(audit_event(event, chain, sequence, shown)) + b"\n")
            yield


def _check(options: argparse.Namespace) -> int:
    from gateway.audit.manifest import ManifestBad, unseal

    try:
        about = unseal(options.file.with_name(options.file.name + _SUFFIX).read_bytes(), keys_of(options))
    except ManifestBad as bad:
        print(f"the manifest is not good: {bad}")
        return 1
    sha256, size = hashlib.sha256(), 0
    with options.file.open("rb") as file:
        while piece := file.read(1 << 20):
            sha256.update(piece)
            size += len(piece)
    if (sha256.hexdigest(), size) != (about.sha256, about.bytes):
        print("the file is not the one that was signed for")
        return 1
    print(f"{about.records} events, {about.format}, made by {about.by}: as it was signed")
    return 0


def _syslog(options: argparse.Namespace) -> int:
    from gateway.audit.forwarding import Cursor, Forwarder, client_context
    from gateway.store.trail import TrailReader, TrailUnreadable

    host, _, port = options.to.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65_536:
        raise Unusable("--to: takes HOST:PORT")
    if not options.ca.is_file():
        raise Unusable(f"--ca: no such file: {options.ca}")
    dsn, cursor = dsn_of(options), options.cursor or folder_of(options) / "syslog-cursor.json"
    tls = client_context(options.ca, options.cert, options.cert_key)
    # SEC: what leaves the trail is told to it before it does.
    note(options, "audit.exported", format="syslog", query=f"to={options.to}")
    forwarder = Forwarder(lambda: TrailReader(dsn), (host.strip("[]"), int(port)), tls, Cursor(cursor))
    sent, unread = 0, False
    try:
        while True:
            try:
                count, unread = forwarder.round(), False
            except TrailUnreadable as away:
                print(f"caregate audit: {away}", file=sys.stderr, flush=True)
                count, unread = 0, True
            sent += count
            if options.once and count == 0:
                break
            if count == 0:
                time.sleep(_POLL_S)
    except KeyboardInterrupt:
        pass
    finally:
        forwarder.close()
    print(f"{sent} messages")
    return 1 if options.once and (unread or forwarder.broken) else 0


def _span(options: argparse.Namespace) -> str:
    return f"from_ms={options.from_ms} to_ms={options.to_ms}"


def _write_new(path: Path, content: bytes) -> None:
    with _Digesting(path) as file:
        file.write(content)


class _Shown:
    """Patients' ids by their pseudonyms, each asked for once."""

    def __init__(self, patients: NamesReader) -> None:
        self._patients = patients
        self._known: dict[str, str] = {}

    def __call__(self, name: str) -> str:
        if name not in self._known:
            self._known[name] = self._patients.ids_of([name]).get(name, name)
        return self._known[name]


class _Digesting:
    """A new file, its digest taken as it is written; on disk when it is closed, gone if that failed."""

    def __init__(self, path: Path) -> None:
        """Raises: OSError."""
        self._path = path
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._file = os.fdopen(self._descriptor, "wb")
        self._sha256 = hashlib.sha256()
        self.bytes = 0

    @property
    def sha256(self) -> str:
        return self._sha256.hexdigest()

    def write(self, data: bytes) -> int:
        self._sha256.update(data)
        self.bytes += len(data)
        return self._file.write(data)

    def __enter__(self) -> _Digesting:
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        if error is None:
            self._file.flush()
            os.fsync(self._descriptor)
        self._file.close()
        if error is not None:
            self._path.unlink(missing_ok=True)

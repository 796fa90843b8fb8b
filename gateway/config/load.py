"""From a file on disk to a snapshot, or to every fault that stands in the way."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from gateway.config.check import CatalogCheck, check
from gateway.config.compile import TOKEN_CACHE_SIZE, compile_document
from gateway.config.fault import WHOLE, Fault, located
from gateway.config.parse import parse, without_echoes
from gateway.config.secret import Secrets
from gateway.config.snapshot import Snapshot
from gateway.config.source import MAX_BYTES, Source, read
from gateway.errors import ConfigRefused


class Refused(ConfigRefused):
    """A document that was refused; `places` are its faults with path, reason and line."""

    def __init__(self, places: list[Fault]) -> None:
        super().__init__([str(fault) for fault in places])
        self.places = places


@dataclass(frozen=True, slots=True)
class Loaded:
    """Shapes: `raw` is the text the snapshot was made of."""

    snapshot: Snapshot
    raw: bytes
    lines: Mapping[str, int]


def read_text(path: Path) -> bytes:
    """The bytes of a document; one too large is cut just past the limit, for `parse` to refuse.

    Raises: OSError.
    """
    with path.open("rb") as file:
        return file.read(MAX_BYTES + 1)


def load(
    path: Path,
    environ: Mapping[str, str] | None = None,
    *,
    version: int = 1,
    token_cache_size: int = TOKEN_CACHE_SIZE,
    resources: Collection[str] | None = None,
    catalog_check: CatalogCheck | None = None,
) -> Snapshot:
    """The snapshot of a document; `file:` references are relative to the document's directory.

    Raises: ConfigRefused with every fault.
    Yields to the hub: only in `catalog_check`.
    """
    try:
        raw = read_text(path)
    except OSError as error:
        raise Refused([Fault(WHOLE, f"cannot be read: {os.strerror(error.errno or 0)}")]) from None
    return load_text(
        raw,
        path.parent,
        environ,
        version=version,
        token_cache_size=token_cache_size,
        resources=resources,
        catalog_check=catalog_check,
    ).snapshot


def load_text(
    raw: bytes,
    directory: Path,
    environ: Mapping[str, str] | None = None,
    *,
    version: int = 1,
    token_cache_size: int = TOKEN_CACHE_SIZE,
    resources: Collection[str] | None = None,
    catalog_check: CatalogCheck | None = None,
    reads: Callable[[bytes], Source] = read,
    sent: bool = False,
) -> Loaded:
    """Parse, check and compile a document's text; `reads` as `parse` has it, `sent` as Secrets.

    Raises: Refused.
    """
    parsed = parse(raw, reads)
    if parsed.document is None:
        raise Refused(parsed.faults)
    secrets = Secrets(directory, os.environ if environ is None else environ, sent=sent)
    checked = check(parsed.document, secrets, dropped=parsed.dropped, resources=resources, catalog_check=catalog_check)
    faults = located(without_echoes(parsed.faults, checked.faults), parsed.lines)
    if faults:
        raise Refused(faults)
    snapshot = compile_document(
        parsed.document,
        checked.keyring,
        version=version,
        token_cache_size=token_cache_size,
        descriptions=checked.descriptions,
    )
    return Loaded(snapshot, raw, parsed.lines)


def check_file(
    path: Path, environ: Mapping[str, str] | None = None, *, catalog_check: CatalogCheck | None = None
) -> list[Fault]:
    """Every fault of a document, those that only compiling it would show included; none: it can be loaded."""
    try:
        load(path, environ, catalog_check=catalog_check)
    except Refused as error:
        return error.places
    return []

"""The configuration: its versions, what a document would change, making one the next version, what the workers have."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Annotated, Any

import gevent
import msgspec
from msgspec import Meta

from gateway.admin import permissions
from gateway.admin.desk import Desk
from gateway.admin.operation import Body, Call, Change, Operation, Reply
from gateway.admin.types import Limit, Number, Reason
from gateway.config.change import Changes, Stale, difference
from gateway.config.fault import Fault
from gateway.config.load import Refused, load_text
from gateway.config.reload import ReloadFailed, WorkerStatus
from gateway.config.source import MAX_BYTES
from gateway.config.version import Entry, Version
from gateway.errors import (
    Conflict,
    GatewayError,
    NotFound,
    PreconditionRequired,
    StaleVersion,
    Unprocessable,
    WorkersUnavailable,
)
from gateway.store.config_version import VersionStore

Text = Annotated[str, Meta(min_length=1, max_length=MAX_BYTES, description="the document, YAML")]
Base = Annotated[int, Meta(ge=0, le=2**53 - 1)]


class Made(msgspec.Struct, frozen=True, kw_only=True):
    """A version without its document. Shapes: `author` made it, with the login `actor`."""

    number: int
    digest: str
    author: str
    reason: str
    actor: str
    at: datetime


class Versions(msgspec.Struct, frozen=True):
    items: list[Made]
    next: int | None


class Shown(Made, frozen=True, kw_only=True):
    document: str


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """A fault of a document. Shapes: `path` as in `controllers.results.roles[1]`. Units: `line` counts from 1."""

    path: str
    line: int | None
    detail: str


class RefusedVersion(msgspec.Struct, frozen=True, kw_only=True):
    version: int
    faults: list[Place]


class Worker(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker has in force; `refused`: the version that it does not take."""

    pid: int
    version: int
    digest: str
    keys_digest: str
    phase: str
    source: str
    refused: RefusedVersion | None


class Workers(msgspec.Struct, frozen=True, kw_only=True):
    """Shapes: `agree`: all have the same version, document and keys, and refuse nothing."""

    agree: bool
    items: list[Worker]


class Applied(msgspec.Struct, frozen=True, kw_only=True):
    """Shapes: `in_force`: every worker has it."""

    number: int
    digest: str
    in_force: bool
    workers: list[Worker]


class Checked(msgspec.Struct, frozen=True, kw_only=True):
    """Shapes: `digest` is empty if there are faults."""

    good: bool
    digest: str
    faults: list[Place]


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """Shapes: `diff` is a unified diff, empty if nothing would change."""

    against: int
    changed: bool
    diff: str


class OfVersion(Body, frozen=True):
    number: Number


class VersionsQuery(Body, frozen=True):
    limit: Limit = 20
    cursor: Number | None = None


class Document(Body, frozen=True):
    document: Text


class Compare(Body, frozen=True):
    """One of `document` and `number`, with `against`, by default the newest version."""

    document: Text | None = None
    number: Number | None = None
    against: Number | None = None


class Apply(Body, frozen=True):
    """`base`: the number of the version that the document was made from; or If-Match."""

    document: Text
    reason: Reason
    base: Base | None = None


class Rollback(Body, frozen=True):
    number: Number
    reason: Reason | None = None
    base: Base | None = None


# --- looking


def list_versions(desk: Desk, call: Call) -> Reply:
    query: VersionsQuery = call.query
    with desk.versions() as store:
        found = store.history(query.limit + 1, query.cursor)
        newest = found[0].number if found and query.cursor is None else _newest_number(store)
    page = found[: query.limit]
    items = [_made(entry) for entry in page]
    return Reply(Versions(items, page[-1].number if len(found) > len(page) else None), tag=str(newest))


def _newest_number(store: VersionStore) -> int:
    return next((entry.number for entry in store.history(1)), 0)


def _made(entry: Entry) -> Made:
    return Made(**msgspec.structs.asdict(entry))


def show_version(desk: Desk, call: Call) -> Reply:
    with desk.versions() as store:
        version = _found(store, call.path.number)
    return Reply(Shown(**msgspec.structs.asdict(version)), tag=str(version.number))


def _found(store: VersionStore, number: int) -> Version:
    """Raises: NotFound."""
    version = store.read(number)
    if version is None:
        raise NotFound("No such version")
    return version


def show_workers(desk: Desk, call: Call) -> Reply:
    found = desk.workers()
    agree = len({(w.version, w.digest, w.keys_digest) for w in found}) <= 1 and not any(w.refused for w in found)
    return Reply(Workers(agree=agree, items=[_worker(worker) for worker in found]))


def _worker(worker: WorkerStatus) -> Worker:
    refused = None
    if worker.refused is not None:
        faults = [_place(Fault(*fault)) for fault in worker.refused["faults"]]
        refused = RefusedVersion(version=worker.refused["version"], faults=faults)
    return Worker(
        pid=worker.pid, version=worker.version, digest=worker.digest, keys_digest=worker.keys_digest,
        phase=worker.phase, source=worker.source, refused=refused,
    )  # fmt: skip


def _place(fault: Fault) -> Place:
    return Place(path=fault.path, line=fault.line, detail=fault.reason)


def check(desk: Desk, call: Call) -> Reply:
    raw = call.body.document.encode()
    # PERF: a large document takes a second; in a thread the hub gets its turn every few milliseconds.
    found: Any = gevent.get_hub().threadpool.apply(_load_or_faults, (desk, raw))
    if not isinstance(found, list):
        faults = desk.catalog_check(found.snapshot.document)
        if not faults:
            return Reply(Checked(good=True, digest=found.snapshot.digest, faults=[]))
        found = faults
    return Reply(Checked(good=False, digest="", faults=[_place(fault) for fault in found]))


def _load_or_faults(desk: Desk, raw: bytes) -> Any:
    """NOTE: what leaves a function of gevent's thread pool as an exception is printed with its traceback."""
    try:
        return load_text(raw, desk.settings.config_path.parent, sent=True)
    except Refused as error:
        return error.places


def compare(desk: Desk, call: Call) -> Reply:
    body: Compare = call.body
    if (body.document is None) == (body.number is None):
        raise _refused("", "must have one of document and number")
    with desk.versions() as store:
        old = store.newest() if body.against is None else _found(store, body.against)
        if old is None:
            raise NotFound("There is no version yet")
        new_name, new = "document", body.document
        if body.number is not None:
            new_name, new = f"version {body.number}", _found(store, body.number).document
    lines = difference(f"version {old.number}", old.document, new_name, new or "")
    return Reply(Difference(against=old.number, changed=bool(lines), diff="\n".join(lines)))


def _refused(pointer: str, detail: str) -> Unprocessable:
    return Unprocessable("The body is not as declared", errors=[{"pointer": pointer, "detail": detail}])


# --- changing


def apply(desk: Desk, call: Call, change: Change) -> Reply:
    body: Apply = call.body
    return _change(desk, call, change, body.document.encode(), body.base, body.reason)


def rollback(desk: Desk, call: Call, change: Change) -> Reply:
    body: Rollback = call.body
    change.target = f"config/version/{body.number}"
    with desk.versions() as store:
        raw = _found(store, body.number).document.encode()
    return _change(desk, call, change, raw, body.base, body.reason or f"rollback to version {body.number}")


def _change(desk: Desk, call: Call, change: Change, raw: bytes, base: int | None, reason: str) -> Reply:
    base = _base(call, base)
    change.target, change.reason = "config", reason
    with desk.versions() as store:
        newest = store.newest()
    if newest is not None:
        change.before = newest.digest
    with _explained():
        applied = Changes(desk.versions, desk.settings.run_dir).apply(raw, base, call.author[:128], reason)
    change.target, change.after = f"config/version/{applied.number}", applied.digest
    answer = Applied(
        number=applied.number, digest=applied.digest, in_force=bool(applied.workers) and not applied.behind,
        workers=[_worker(worker) for worker in applied.workers],
    )  # fmt: skip
    location = f"/admin/v1/config/versions/{applied.number}"
    return Reply(answer, 200 if applied.again else 201, tag=str(applied.number), location=location)


def _base(call: Call, base: int | None) -> int:
    """From which version the change was made. Raises: PreconditionRequired, Unprocessable, StaleVersion."""
    if call.if_match is None:
        if base is None:
            raise PreconditionRequired("Say from which version: If-Match, or the member base")
        return base
    if not call.if_match.isascii() or not call.if_match.isdigit() or len(call.if_match) > 15:
        raise StaleVersion("If-Match is no version's tag")
    if base is not None and base != int(call.if_match):
        raise _refused("/base", "is not what If-Match says")
    return int(call.if_match)


@contextmanager
def _explained() -> Iterator[None]:
    """What stands in the way, as an answer. Raises: StaleVersion, Unprocessable, Conflict, WorkersUnavailable."""
    try:
        yield
    except Stale as error:
        current = None if error.newest is None else _current(error.newest)
        raise StaleVersion("Another version is the newest", current=current) from None
    except Refused as error:
        raise _as_faults(error) from None
    except ReloadFailed as error:
        if "from a file" in str(error):
            raise Conflict("The gateway takes its configuration from a file (CAREGATE_CONFIG_SOURCE)") from None
        raise WorkersUnavailable("Not every worker could check the document", retry_after_s=1) from None


def _current(newest: Version) -> dict[str, Any]:
    return {
        "number": newest.number, "digest": newest.digest, "author": newest.author, "reason": newest.reason,
        "at": newest.at.isoformat(),
    }  # fmt: skip


def _as_faults(error: Refused) -> Unprocessable:
    faults = [
        {"pointer": "/document", "path": fault.path, "line": fault.line, "detail": fault.reason}
        for fault in error.places
    ]
    return Unprocessable("The document is refused", errors=faults)


_READ, _WRITE = permissions.CONFIG_READ, permissions.CONFIG_WRITE
_CHANGES: tuple[type[GatewayError], ...] = (PreconditionRequired, StaleVersion, Conflict, WorkersUnavailable)
OPERATIONS: tuple[Operation, ...] = (
    Operation(
        name="config.versions", method="GET", path="/config/versions", permission=_READ, answer=Versions,
        query=VersionsQuery, run=list_versions,
        summary="The versions, the newest first; ETag is the newest one's number",
    ),
    Operation(
        name="config.version", method="GET", path="/config/versions/{number}", permission=_READ, answer=Shown,
        params=OfVersion, run=show_version, summary="A version with its document",
    ),
    Operation(
        name="config.workers", method="GET", path="/config/workers", permission=_READ, answer=Workers,
        run=show_workers, errors=(WorkersUnavailable,), summary="What each worker of this machine has in force",
    ),
    Operation(
        # SEC: it opens the files that the document names, so it is for those who could have them opened anyway.
        name="config.check", method="POST", path="/config/check", permission=_WRITE, answer=Checked, body=Document,
        run=check, summary="Every fault of a document; nothing is changed",
    ),
    Operation(
        name="config.diff", method="POST", path="/config/diff", permission=_READ, answer=Difference, body=Compare,
        run=compare, summary="What a document or a version would change",
    ),
    Operation(
        name="config.apply", method="POST", path="/config/versions", permission=_WRITE, answer=Applied, body=Apply,
        change=apply, status=201, also=(200,), conditional=True, errors=_CHANGES,
        summary="Make a document the next version in every worker, if it was made from the newest",
    ),
    Operation(
        name="config.rollback", method="POST", path="/config/rollback", permission=_WRITE, answer=Applied,
        body=Rollback, change=rollback, status=201, also=(200,), conditional=True, errors=_CHANGES,
        summary="Make an earlier version's document the next version",
    ),
)  # fmt: skip

"""Keeps a worker on the newest version of the configuration that the database has: told by NOTIFY, looked at from time
to time, kept on disk.

The database rules: a worker takes what is newest there, also if that is older than what it has, as after a restore. A
version that it must refuse changes nothing; it says so and tries again later. Without the database a worker goes on
with what it has; one that starts then takes the last good version from the disk, and without one it has none.
"""

from __future__ import annotations

import hashlib
import os
import pwd
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

import gevent
import msgspec
import structlog

from gateway.config.check import CatalogCheck
from gateway.config.compile import compile_document
from gateway.config.fault import WHOLE, Fault, located
from gateway.config.kept import KeptText
from gateway.config.keyring import Keyring
from gateway.config.load import Loaded, Refused, load_text, read_text
from gateway.config.model import Document
from gateway.config.snapshot import Snapshot, SnapshotHolder
from gateway.config.version import Version
from gateway.errors import AuditUnavailable, GatewayError
from gateway.files import replace_file
from gateway.settings import Settings

KEPT: Final = "config-version.json"
RETRY_S: Final = 0.5
REFUSED_AGAIN_S: Final = 30.0
"""How long a refused version is left alone: what it lacked, such as a key file, may have come."""
CANDIDATE: Final = re.compile(r"config-candidate-[0-9a-f]{16}\.yaml\Z")

log = structlog.get_logger()
Note = Callable[[str, Mapping[str, str]], None]


class Feed(Protocol):
    """See store.config_version.VersionFeed."""

    def head(self) -> tuple[int, str]: ...
    def newest(self) -> Version | None: ...
    def add_first(self, digest: str, document: str, author: str, reason: str) -> None: ...
    def wait(self, timeout_s: float) -> None: ...
    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class _Refusal:
    number: int
    digest: str
    faults: list[Fault]
    until_s: float


class Versions:
    """One greenlet. `boot` gives what the worker starts with, `start` follows the database from there."""

    commits = False
    """Nothing is put in force over the control socket."""

    def __init__(
        self,
        settings: Settings,
        dial: Callable[[], Feed],
        catalog_check: CatalogCheck | None = None,
        *,
        environ: Mapping[str, str] | None = None,
        note: Note = lambda outcome, detail: None,
        refused: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Shapes: `note(outcome, detail)` keeps in the audit trail what was put in force (allowed) or refused;
        `refused()` counts.
        """
        self._path = settings.config_path
        self._run_dir = settings.run_dir
        self._reads = KeptText(settings.run_dir).read
        self._kept = settings.data_dir / KEPT
        self._poll_s = settings.config_poll_ms / 1000
        self._token_cache_size = settings.token_cache_size
        self._dial = dial
        self._catalog_check = catalog_check
        self._environ = environ
        self._note = note
        self._count_refused = refused
        self._clock = clock
        self._feed: Feed | None = None
        self._greenlet: gevent.Greenlet | None = None
        self._holder: SnapshotHolder | None = None
        self._taken = (0, "")
        self._news: list[tuple[str, dict[str, str]]] = []
        self._rehearsed: dict[str, Loaded] = {}
        self._refusal: _Refusal | None = None

    # --- the start of a worker

    def boot(self) -> Snapshot:
        """The newest version; if there is none yet, the file as version 1; without the database the last good one.

        Version 0, in which there is nothing, if there is no other.
        Raises: Refused if the file that should become version 1 is.
        Yields to the hub: while the database answers, for seconds at most.
        """
        try:
            self._feed = self._dial()
            version = self._feed.newest() or self._import(self._feed)
        except Refused as error:
            log.error("the configuration file is refused as the first version", faults=error.faults)
            raise
        except GatewayError as error:
            log.warning("the database of configurations is away; the last good version counts", reason=error.code)
            return self._boot_kept()
        loaded = self._check(version, patient=False)
        if not isinstance(loaded, Loaded):
            self._refuse(version, loaded)
            return self._boot_kept()
        self._note_if_new(version)
        return self._boot_with(version, loaded)

    def start(self, holder: SnapshotHolder) -> None:
        """Follow the database from now on."""
        self._holder = holder
        for outcome, detail in self._news:
            self._tell(outcome, detail)
        self._news.clear()
        self._greenlet = gevent.spawn(self._run)

    def stop(self) -> None:
        """Follow no more."""
        if self._greenlet is not None:
            self._greenlet.kill()
        if self._feed is not None:
            self._feed.close()

    def _import(self, feed: Feed) -> Version:
        """Raises: Refused, DatabaseUnavailable."""
        try:
            raw = read_text(self._path)
        except OSError as error:
            fault = Fault(WHOLE, f"{self._path}: cannot be read, and the database has no version: {error.strerror}")
            raise Refused([fault]) from None
        loaded = self._load(raw)
        faults = self._faults_of_catalog(loaded)
        if faults:
            raise Refused(faults)
        digest = loaded.snapshot.digest
        feed.add_first(digest, raw.decode(), user_name(), f"imported from {self._path.name}")
        version = feed.newest()
        assert version is not None  # noqa: S101 - versions are never removed
        log.info("the configuration file is version 1 in the database", digest=digest)
        return version

    def _boot_kept(self) -> Snapshot:
        try:
            version = msgspec.json.decode(self._kept.read_bytes(), type=Version)
            loaded = self._load(version.document.encode())
        except (OSError, msgspec.MsgspecError):
            log.error("no configuration is in force: there is no last good version on this machine")
            return empty()
        except Refused as error:
            log.error("no configuration is in force: the last good version is refused", faults=error.faults)
            return empty()
        return self._boot_with(version, loaded)

    def _boot_with(self, version: Version, loaded: Loaded) -> Snapshot:
        self._taken = (version.number, version.digest)
        self._keep(version)
        return replace(loaded.snapshot, version=version.number)

    def _note_if_new(self, version: Version) -> None:
        """A worker that starts on what this machine had in force already is no news."""
        try:
            kept = msgspec.json.decode(self._kept.read_bytes(), type=Version)
        except (OSError, msgspec.MsgspecError):
            kept = None
        if kept is None or (kept.number, kept.digest) != (version.number, version.digest):
            self._news.append(("allowed", _described(version)))

    # --- following

    def _run(self) -> None:
        away = False
        while True:
            try:
                if self._feed is None:
                    self._feed = self._dial()
                away = False
                while True:
                    self._look(self._feed)
                    self._feed.wait(self._poll_s)
            except GatewayError:
                if not away:
                    log.warning("the database of configurations is away; the version in force goes on")
                away = True
            except Exception:
                log.exception("versions of the configuration could not be followed")
            if self._feed is not None:
                self._feed.close()
                self._feed = None
            gevent.sleep(RETRY_S)

    def _look(self, feed: Feed) -> None:
        head = feed.head()
        if head[0] == 0 or head == self._taken or self._is_refused(head):
            return
        version = feed.newest()
        if version is not None:
            self._take(version)

    def _is_refused(self, head: tuple[int, str]) -> bool:
        refusal = self._refusal
        return refusal is not None and (refusal.number, refusal.digest) == head and self._clock() < refusal.until_s

    def _take(self, version: Version) -> None:
        """Put a version in force, or refuse it. Raises: DatabaseUnavailable: not now."""
        holder = self._holder
        assert holder is not None  # noqa: S101 - set by start
        loaded = self._check(version, patient=True)
        if not isinstance(loaded, Loaded):
            self._refuse(version, loaded)
            return
        if version.number < self._taken[0]:
            log.warning("the database has an older configuration than this worker", newest=version.number)
        try:
            holder.swap(replace(loaded.snapshot, version=version.number))
        except Exception as error:
            log.exception("a configuration could not be put in force", config_version=version.number)
            self._refuse(version, [Fault(WHOLE, f"cannot be put in force: {type(error).__name__}")])
            return
        self._taken = (version.number, version.digest)
        self._refusal = None
        self._tell("allowed", _described(version))
        gevent.get_hub().threadpool.apply(self._keep, (version,))

    def _check(self, version: Version, *, patient: bool) -> Loaded | list[Fault]:
        """The version compiled, or its faults; `patient`: it can wait for a database that does not answer.

        Raises: GatewayError if `patient`.
        """
        raw = version.document.encode()
        loaded = self._rehearsed.get(hashlib.sha256(raw).hexdigest())
        if loaded is None:
            # PERF: a large document takes a second; in a thread the hub gets its turn every few milliseconds.
            found: Loaded | list[Fault] = gevent.get_hub().threadpool.apply(self._load_or_faults, (raw,))
            if not isinstance(found, Loaded):
                return found
            loaded = found
        try:
            faults = self._faults_of_catalog(loaded)
        except GatewayError as error:
            if patient:
                raise
            # NOTE: a gateway starts without its database; routes to functions answer 503 until it is there.
            log.warning("the functions of the configuration could not be checked", reason=error.code)
            return loaded
        return faults or loaded

    def _faults_of_catalog(self, loaded: Loaded) -> list[Fault]:
        if self._catalog_check is None:
            return []
        return located(self._catalog_check(loaded.snapshot.document), loaded.lines)

    def _load(self, raw: bytes) -> Loaded:
        """Raises: Refused."""
        # NOTE: references to key files are relative to the directory of the document's file, there or not.
        return load_text(
            raw, self._path.parent, self._environ, token_cache_size=self._token_cache_size, reads=self._reads
        )

    def _load_or_faults(self, raw: bytes) -> Loaded | list[Fault]:
        """NOTE: what leaves a function of gevent's thread pool as an exception is printed with its traceback."""
        try:
            return self._load(raw)
        except Refused as error:
            return error.places

    def _refuse(self, version: Version, faults: list[Fault]) -> None:
        known = self._refusal is not None and (self._refusal.number, self._refusal.digest) == (
            version.number, version.digest,
        )  # fmt: skip
        self._refusal = _Refusal(version.number, version.digest, faults, self._clock() + REFUSED_AGAIN_S)
        self._count_refused()
        log.error("a configuration is refused", config_version=version.number, faults=[str(fault) for fault in faults])
        if not known:
            detail = {**_described(version), "fault": str(faults[0])[:256], "faults": str(len(faults))}
            if self._holder is None:
                self._news.append(("refused", detail))
            else:
                self._tell("refused", detail)

    def _tell(self, outcome: str, detail: dict[str, str]) -> None:
        try:
            self._note(outcome, detail)
        except AuditUnavailable:
            log.error("the audit trail has no room for a configuration", outcome=outcome, **detail)

    def _keep(self, version: Version) -> None:
        """Blocks: fsync."""
        content = msgspec.json.encode(version)
        try:
            if self._kept.read_bytes() == content:
                return
        except OSError:
            pass
        try:
            replace_file(self._kept, content)
        except OSError as error:
            log.error("the last good configuration could not be kept on disk", reason=error.strerror)

    # --- for the control socket

    def load(self, candidate: object) -> Loaded:
        """A document that lies in the run directory to be tried; the swap that may follow finds it ready.

        Raises: Refused, OSError.
        """
        if not isinstance(candidate, str) or not CANDIDATE.match(candidate):
            raise Refused([Fault(WHOLE, "the configuration is in the database: `caregate config apply` changes it")])
        raw = read_text(self._run_dir / candidate)
        loaded = self._load(raw)
        self._rehearsed = {hashlib.sha256(raw).hexdigest(): loaded}
        return loaded

    def forget(self) -> None:
        """What was tried is not wanted any more."""
        self._rehearsed = {}

    def catch_up(self, current: Snapshot) -> Snapshot | None:
        """None: `start` follows the database."""
        return None

    def record(self, snapshot: Snapshot, raw: bytes) -> None:
        """The database has it already."""

    def describe(self) -> dict[str, Any]:
        """Where the configuration is from, and what was refused last."""
        refusal = self._refusal
        if refusal is None:
            return {"source": "database"}
        faults = [[fault.path, fault.reason, fault.line] for fault in refusal.faults]
        return {"source": "database", "refused": {"version": refusal.number, "faults": faults}}


def _described(version: Version) -> dict[str, str]:
    return {
        "version": str(version.number), "digest": version.digest, "author": version.author, "actor": version.actor,
        "reason": version.reason, "worker": str(os.getpid()),
    }  # fmt: skip


def user_name() -> str:
    """Who runs this process, as the machine knows it."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return f"uid-{os.geteuid()}"


def empty() -> Snapshot:
    """Version 0: nobody may do anything."""
    return compile_document(Document(version=1, audiences={}, roles={}), Keyring(), version=0)

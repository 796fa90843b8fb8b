"""The control socket of a worker: `control-PID.sock` in the run directory, mode 0600, one JSON object a line.

    {"do": "status"}                                 -> {"ok": true, "pid", "version", "digest", "keys_digest", "phase",
                                                         "arbiter", "workers"}
    {"do": "prepare"}                                -> {"ok": true, "digest", "keys_digest"}, or ok false and "faults"
    {"do": "prepare", "candidate": "FILE"}           -> the same for a file of the run directory, if versions are in the
                                                         database
    {"do": "commit", "version": N, "digest": "..."}  -> as status
    {"do": "abort"}                                  -> {"ok": true}
    {"do": NAME}                                     -> {"ok": true} and what the question of that name answers
    {"do": NAME, ...}                                -> the same for an order, which is given the whole command

`phase` is starting, serving or draining; `arbiter` the parent's process id, `workers` how many it is to have; a status
has `source` (file, database) too, and `refused`: the number and faults of a version that this worker does not take.
What a connection prepared is its own and is dropped with it, so that a caller that dies half-way changes nothing.
"""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import gevent
import structlog
from gevent import socket as green
from gevent.lock import RLock
from gevent.server import StreamServer

from gateway import unixsocket
from gateway.config.check import CatalogCheck
from gateway.config.fault import WHOLE, Fault, located
from gateway.config.inforce import InForce
from gateway.config.load import Loaded, Refused
from gateway.config.snapshot import Snapshot, SnapshotHolder
from gateway.errors import GatewayError
from gateway.settings import Settings

MAX_LINE_BYTES = 65_536
IDLE_TIMEOUT_S = 120.0
SOCKET_NAME = "control-{}.sock"

_PEER = struct.Struct("3i")

log = structlog.get_logger()
Answer = dict[str, Any]


class Origin(Protocol):
    """Where a worker's configuration comes from: config.inforce (a file) or config.versions (the database)."""

    commits: bool

    def load(self, candidate: object) -> Loaded: ...
    def forget(self) -> None: ...
    def catch_up(self, current: Snapshot) -> Snapshot | None: ...
    def record(self, snapshot: Snapshot, raw: bytes) -> None: ...
    def describe(self) -> Answer: ...


class ControlServer:
    """Serves the control socket of this worker; a commit swaps the holder's snapshot."""

    def __init__(
        self,
        settings: Settings,
        holder: SnapshotHolder,
        catalog_check: CatalogCheck | None = None,
        *,
        in_force: Origin | None = None,
        pid: int | None = None,
        questions: Mapping[str, Callable[[], Answer]] | None = None,
        orders: Mapping[str, Callable[[Answer], Answer]] | None = None,
    ) -> None:
        """`pid` is the number in the socket's name, by default this process's; `questions` and `orders` are further
        commands.
        """
        self._questions = {name: _without_more(ask) for name, ask in (questions or {}).items()} | dict(orders or {})
        self.phase = "starting"
        self._workers = settings.workers
        self._holder = holder
        self._catalog_check = catalog_check
        self._in_force: Origin = in_force or InForce(settings)
        self._run_dir = settings.run_dir
        self._pid = os.getpid() if pid is None else pid
        self._server: StreamServer | None = None
        self._lock = RLock()

    def start(self) -> None:
        """Open the socket, and join what was put in force while this worker started.

        Raises: OSError.
        """
        listener = _listen(self._run_dir, SOCKET_NAME.format(self._pid))
        self._server = StreamServer(listener, self._serve)
        self._server.start()
        # NOTE: after the socket is open: a reload that is too early for the socket has left its record already.
        try:
            newer = self._in_force.catch_up(self._holder.current)
        except (Refused, OSError):
            log.exception("the configuration in force cannot be loaded; this worker keeps the one it started with")
        else:
            if newer is not None:
                self._holder.swap(newer)

    def stop(self) -> None:
        """Close the socket and remove its file."""
        if self._server is not None:
            self._server.stop(timeout=0)
            self._server = None
            (self._run_dir / SOCKET_NAME.format(self._pid)).unlink(missing_ok=True)

    def _serve(self, connection: green.socket, _address: object) -> None:
        with connection:
            if not _is_own(connection):
                log.warning("a foreign user knocked at the control socket")
                return
            session = _Session(
                self._holder, self._in_force, self._catalog_check, self._lock, self._pid, self._questions, self._life
            )
            try:
                for line in _lines(connection):
                    connection.sendall(json.dumps(session.answer(line)).encode() + b"\n")
            except OSError:
                pass  # a peer that is gone wants no answer
            finally:
                session.forget()

    def _life(self) -> Answer:
        return {"phase": self.phase, "arbiter": os.getppid(), "workers": self._workers}


class _Session:
    """One connection: remembers what it prepared."""

    def __init__(
        self,
        holder: SnapshotHolder,
        in_force: Origin,
        catalog_check: CatalogCheck | None,
        lock: RLock,
        pid: int,
        questions: Mapping[str, Callable[[Answer], Answer]],
        life: Callable[[], Answer],
    ) -> None:
        self._holder = holder
        self._in_force = in_force
        self._catalog_check = catalog_check
        self._lock = lock
        self._pid = pid
        self._questions = questions
        self._life = life
        self._prepared: Loaded | None = None

    def answer(self, line: bytes) -> Answer:
        try:
            asked = json.loads(line)
            do = asked["do"]
        except (ValueError, TypeError, KeyError, RecursionError):
            return {"ok": False, "error": "not a command"}
        if do == "status":
            return self._status()
        if do == "prepare":
            return self._prepare(asked.get("candidate"))
        if do == "commit":
            return self._commit(asked.get("version"), asked.get("digest"))
        if do == "abort":
            self.forget()
            return {"ok": True}
        if do in self._questions:
            return {"ok": True, "pid": self._pid, **self._questions[do](asked)}
        return {"ok": False, "error": "no such command"}

    def _status(self) -> Answer:
        current = self._holder.current
        return {
            "ok": True,
            "pid": self._pid,
            "version": current.version,
            "digest": current.digest,
            "keys_digest": current.keys_digest,
            **self._life(),
            **self._in_force.describe(),
        }

    def forget(self) -> None:
        """What this connection prepared goes with it."""
        if self._prepared is not None:
            self._prepared = None
            self._in_force.forget()

    def _prepare(self, candidate: object) -> Answer:
        self._prepared = None
        # PERF: a large document takes a second; in a thread the hub gets its turn every few milliseconds.
        loaded = gevent.get_hub().threadpool.apply(self._load, (candidate,))
        faults = self._check_catalog(loaded) if isinstance(loaded, Loaded) else loaded
        if faults or not isinstance(loaded, Loaded):
            return {"ok": False, "faults": [[f.path, f.reason, f.line] for f in faults]}
        self._prepared = loaded
        return {"ok": True, "digest": loaded.snapshot.digest, "keys_digest": loaded.snapshot.keys_digest}

    def _load(self, candidate: object) -> Loaded | list[Fault]:
        """NOTE: what leaves a function of gevent's thread pool as an exception is printed with its traceback."""
        try:
            return self._in_force.load(candidate)
        except Refused as error:
            return error.places
        except OSError as error:
            return [Fault(WHOLE, f"cannot be read: {error.strerror}")]

    def _check_catalog(self, loaded: Loaded) -> list[Fault]:
        if self._catalog_check is None:
            return []
        try:
            return located(self._catalog_check(loaded.snapshot.document), loaded.lines)
        except GatewayError as error:
            return [Fault(WHOLE, f"the functions cannot be checked: {error.code}")]

    def _commit(self, version: object, digest: object) -> Answer:
        prepared, self._prepared = self._prepared, None
        if prepared is None or prepared.snapshot.digest != digest:
            return {"ok": False, "error": "nothing of that digest is prepared"}
        with self._lock:
            if not isinstance(version, int) or version <= self._holder.current.version:
                return {"ok": False, "error": "the version has not grown"}
            if not self._in_force.commits:
                return {"ok": False, "error": "versions are made in the database alone"}
            snapshot = replace(prepared.snapshot, version=version)
            self._holder.swap(snapshot)
            log.info("configuration in force", config_version=version, digest=snapshot.digest)
            try:
                gevent.get_hub().threadpool.apply(self._in_force.record, (snapshot, prepared.raw))
            except OSError as error:
                log.error("the configuration in force could not be recorded", reason=error.strerror)
                return {**self._status(), "warning": f"in force, but not recorded: {error.strerror}"}
        return self._status()


def _without_more(ask: Callable[[], Answer]) -> Callable[[Answer], Answer]:
    return lambda asked: ask()


def _lines(connection: green.socket) -> Iterator[bytes]:
    """Lines until the peer closes, falls silent, or sends one that is too long."""
    connection.settimeout(IDLE_TIMEOUT_S)
    buffered = b""
    while True:
        line, newline, rest = buffered.partition(b"\n")
        if newline:
            buffered = rest
            yield line
            continue
        if len(buffered) > MAX_LINE_BYTES:
            return
        try:
            piece = connection.recv(MAX_LINE_BYTES)
        except OSError:
            return
        if not piece:
            return
        buffered += piece


def _is_own(connection: green.socket) -> bool:
    """Does the peer run as this user or as root?

    Source: unix(7), SO_PEERCRED: process, user and group of the peer as they were when it connected.
    """
    _, uid, _ = _PEER.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
    return uid in (0, os.geteuid())


def _listen(directory: Path, name: str) -> green.socket:
    listener = green.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    unixsocket.bind(listener, directory / name, 16)
    listener.setblocking(False)
    return listener

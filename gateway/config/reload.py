"""The caller's side of the control sockets: reload in two phases, in every worker or in none."""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from gateway import unixsocket
from gateway.config.fault import Fault

TIMEOUT_S = 30.0
CATCH_UP_ROUNDS = 3
DIAL_ATTEMPTS = 5
DIAL_PAUSE_S = 0.05

_NAME = re.compile(r"control-(\d+)\.sock\Z")


class ReloadFailed(RuntimeError):
    """Nothing was changed, or (the message says so) not everywhere."""


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """Shapes: see gateway.config.control."""

    pid: int
    version: int
    digest: str
    keys_digest: str
    phase: str = ""
    arbiter: int = 0
    workers: int = 0
    source: str = "file"
    refused: dict[str, Any] | None = None


@dataclass(slots=True)
class Outcome:
    """Shapes: `faults` by path, not empty exactly if the document was refused; else `workers` as they are now."""

    workers: list[WorkerStatus] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


class _Worker:
    """A connection to one worker's control socket."""

    def __init__(self, pid: int, path: Path, connection: socket.socket) -> None:
        self.pid = pid
        self._path = path
        self._connection = connection
        self._file = connection.makefile("rb")

    def send(self, **command: Any) -> None:
        """Send a command; that the worker has gone is noticed by `receive`."""
        with suppress(OSError):
            self._connection.sendall(json.dumps(command).encode() + b"\n")

    def receive(self) -> dict[str, Any]:
        """Raises: OSError if the worker has gone or does not answer in time."""
        line = self._file.readline()
        if not line:
            raise ConnectionResetError("closed")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def ask(self, **command: Any) -> dict[str, Any]:
        self.send(**command)
        return self.receive()

    def has_left(self) -> bool:
        """Has it ended, or closed its socket for good, as it does a little before? Waits for it a moment."""
        for _ in range(DIAL_ATTEMPTS):
            if not _is_alive(self.pid) or not self._path.exists():
                return True
            time.sleep(DIAL_PAUSE_S)
        return False

    def close(self) -> None:
        self._file.close()
        self._connection.close()


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """Shapes: `faults` by path, not empty exactly if a worker refused; else the `digest` that all have ready."""

    digest: str
    faults: list[Fault]


@contextmanager
def rehearsed(run_dir: Path, raw: bytes, *, timeout_s: float = TIMEOUT_S) -> Iterator[Rehearsal]:
    """Have every worker check a document and hold it ready, as long as the `with` statement lasts.

    Raises: ReloadFailed if there is no worker, one does not answer, or they take their configuration from a file.
    """
    with _alone(run_dir, timeout_s), ExitStack() as stack:
        workers = _connect(run_dir, timeout_s, stack)
        found = _statuses(workers)
        if not found:
            raise ReloadFailed(f"no worker of a gateway runs under {run_dir}")
        if any(worker.source != "database" for worker in found):
            raise ReloadFailed(
                "the gateway takes its configuration from a file: edit that and `caregate config reload`, "
                "or start the gateway with CAREGATE_CONFIG_SOURCE=database"
            )
        name = f"config-candidate-{secrets.token_hex(8)}.yaml"
        stack.callback((run_dir / name).unlink, missing_ok=True)
        try:
            _place(run_dir, name, raw)
        except OSError as error:
            raise _no_gateway(run_dir, error) from None
        digest, faults = _prepare(workers, candidate=name)
        yield Rehearsal(digest, faults)


def await_version(run_dir: Path, version: int, *, timeout_s: float = TIMEOUT_S) -> list[WorkerStatus]:
    """What every worker has in force once each has taken or refused that version, or the time is over.

    Raises: ReloadFailed.
    """
    until_s = time.monotonic() + timeout_s
    while True:
        late = time.monotonic() > until_s
        try:
            found = status(run_dir, timeout_s=timeout_s)
        except ReloadFailed:
            # NOTE: a worker that leaves closes its socket a little before it ends.
            if late:
                raise
        else:
            if late or all(w.version >= version or (w.refused or {}).get("version") == version for w in found):
                return found
        time.sleep(DIAL_PAUSE_S)


def _place(run_dir: Path, name: str, raw: bytes) -> None:
    """Lay a document where the workers of that run directory may read it, and nobody else. Raises: OSError."""
    descriptor = os.open(run_dir / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        if os.geteuid() == 0:
            owner = run_dir.stat()
            os.fchown(descriptor, owner.st_uid, owner.st_gid)
        file.write(raw)


def reload(run_dir: Path, *, timeout_s: float = TIMEOUT_S) -> Outcome:
    """Have every worker check the document, then put it in force in all of them.

    Raises: ReloadFailed if there is no worker, one does not answer, or not all took it.
    """
    with _alone(run_dir, timeout_s), ExitStack() as stack:
        workers = _connect(run_dir, timeout_s, stack)
        found = _statuses(workers)
        if not found:
            raise ReloadFailed(f"no worker of a gateway runs under {run_dir}")
        version = 1 + max(worker.version for worker in found)
        digest, faults = _prepare(workers)
        if faults:
            return Outcome(faults=faults)
        for worker in workers:
            worker.send(do="commit", version=version, digest=digest)
        answers = [_receive(worker) for worker in workers]
        warnings = sorted({a["warning"] for a in answers if a is not None and "warning" in a})
        return Outcome(_settle(run_dir, timeout_s, version, digest), warnings=warnings)


def status(run_dir: Path, *, timeout_s: float = TIMEOUT_S) -> list[WorkerStatus]:
    """What every worker has in force. Raises: ReloadFailed."""
    with ExitStack() as stack:
        return _statuses(_connect(run_dir, timeout_s, stack))


def ask(run_dir: Path, question: str, *, timeout_s: float = TIMEOUT_S, **more: str) -> list[dict[str, Any]]:
    """What every worker answers to a question or order of the control socket. Raises: ReloadFailed."""
    with ExitStack() as stack:
        workers = _connect(run_dir, timeout_s, stack)
        for worker in workers:
            worker.send(do=question, **more)
        answers = [_receive(worker) for worker in workers]
    return [answer for answer in answers if answer is not None and answer.get("ok")]


def ask_one(run_dir: Path, command: str, *, timeout_s: float = TIMEOUT_S, **members: Any) -> dict[str, Any]:
    """What one worker answers to a command of the control socket. Raises: ReloadFailed."""
    with ExitStack() as stack:
        for worker in _connect(run_dir, timeout_s, stack):
            worker.send(do=command, **members)
            answer = _receive(worker)
            if answer is not None:
                return answer
    raise ReloadFailed(f"no worker of a gateway runs under {run_dir}")


def _prepare(workers: list[_Worker], **what: str) -> tuple[str, list[Fault]]:
    """The digest that all have ready, or the faults that any of them found; then none has anything ready."""
    for worker in workers:
        worker.send(do="prepare", **what)
    answers = [(worker, _receive(worker)) for worker in workers]
    faults = {Fault(*fault) for _, answer in answers if answer is not None for fault in answer.get("faults", ())}
    digests = {(answer["digest"], answer["keys_digest"]) for _, answer in answers if answer and answer["ok"]}
    refused = any(answer is not None and not answer["ok"] for _, answer in answers)
    if refused or len(digests) != 1:
        for worker, answer in answers:
            if answer is not None:
                worker.send(do="abort")
        if not refused:
            raise ReloadFailed("the document or its keys changed while they were read: nothing was changed, try again")
        return "", sorted(faults, key=lambda f: (f.line or 0, f.path, f.reason))
    return digests.pop()[0], []


def _settle(run_dir: Path, timeout_s: float, version: int, digest: str) -> list[WorkerStatus]:
    """Every worker there is now, the ones that started meanwhile brought to the same version.

    Raises: ReloadFailed if they do not come to agree.
    """
    found: list[WorkerStatus] = []
    for _ in range(CATCH_UP_ROUNDS):
        with ExitStack() as stack:
            workers = _connect(run_dir, timeout_s, stack)
            found = _statuses(workers)
            late = {s.pid for s in found if (s.version, s.digest) != (version, digest)}
            if not late:
                return found
            _commit_late([worker for worker in workers if worker.pid in late], version, digest)
    skew = ", ".join(f"worker {s.pid} has version {s.version} ({s.digest[:12]})" for s in found)
    raise ReloadFailed(f"version {version} ({digest[:12]}) is not in force everywhere: {skew}")


def _commit_late(workers: list[_Worker], version: int, digest: str) -> None:
    for worker in workers:
        worker.send(do="prepare")
        answer = _receive(worker)
        if answer is not None and answer["ok"] and answer["digest"] == digest:
            worker.send(do="commit", version=version, digest=digest)
            _receive(worker)


def _statuses(workers: list[_Worker]) -> list[WorkerStatus]:
    for worker in workers:
        worker.send(do="status")
    answers = [_receive(worker) for worker in workers]
    names = [named.name for named in fields(WorkerStatus)]
    return [WorkerStatus(**{name: a[name] for name in names if name in a}) for a in answers if a is not None]


def _receive(worker: _Worker) -> dict[str, Any] | None:
    """The worker's answer; None if it has left: its successor starts with what is in force.

    Raises: ReloadFailed if it is alive and silent.
    """
    try:
        return worker.receive()
    except (OSError, ValueError):
        if worker.has_left():
            return None
        raise ReloadFailed(f"worker {worker.pid} does not answer") from None


@contextmanager
def _alone(run_dir: Path, timeout_s: float) -> Iterator[None]:
    """Holds: a lock that one reload at a time can have."""
    until_s = time.monotonic() + timeout_s
    try:
        descriptor = os.open(run_dir / "control.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _no_gateway(run_dir, error) from None
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until_s:
                    raise ReloadFailed("another reload is under way") from None
                time.sleep(0.05)
        yield
    finally:
        os.close(descriptor)


def _no_gateway(run_dir: Path, error: OSError) -> ReloadFailed:
    return ReloadFailed(f"{run_dir}: {os.strerror(error.errno or 0)}; --run-dir DIR names a running gateway's")


def _connect(run_dir: Path, timeout_s: float, stack: ExitStack) -> list[_Worker]:
    """Connections to all workers, by process id; socket files of dead ones are removed."""
    workers = []
    try:
        sockets = sorted(_sockets(run_dir))
    except OSError as error:
        raise _no_gateway(run_dir, error) from None
    for pid, path in sockets:
        connection = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        connection.settimeout(timeout_s)
        if not _dial(connection, pid, path):
            path.unlink(missing_ok=True)
            continue
        worker = _Worker(pid, path, connection)
        stack.callback(worker.close)
        workers.append(worker)
    return workers


def _sockets(run_dir: Path) -> Iterator[tuple[int, Path]]:
    for path in run_dir.iterdir():
        found = _NAME.match(path.name)
        if found is not None:
            yield int(found[1]), path


def _dial(connection: socket.socket, pid: int, path: Path) -> bool:
    """Connect; False if nobody listens there any more.

    Raises: ReloadFailed.
    """
    for _ in range(DIAL_ATTEMPTS):
        try:
            unixsocket.connect(connection, path)
            return True
        except (ConnectionRefusedError, FileNotFoundError):
            if not _is_alive(pid):
                return False
            # NOTE: it may be about to listen; or its process id is another program's by now.
            time.sleep(DIAL_PAUSE_S)
        except OSError as error:
            raise ReloadFailed(f"worker {pid}: {os.strerror(error.errno or 0)}") from None
    return False


def _is_alive(pid: int) -> bool:
    """Source: proc(5): state Z or X in /proc/PID/stat is a process that has ended and was not waited for."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in ("Z", "X")

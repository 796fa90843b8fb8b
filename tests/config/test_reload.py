"""Reload in two phases over real control sockets: in every worker or in none."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import stat
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent.server import StreamServer

from gateway.config.control import MAX_LINE_BYTES, ControlServer, _is_own
from gateway.config.fault import Fault
from gateway.config.inforce import InForce
from gateway.config.reload import Outcome, ReloadFailed, _is_alive, reload, status
from gateway.config.snapshot import SnapshotHolder
from gateway.demo.keys import write_config, write_keys
from gateway.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
DEAD = 2**22 + 7
"""Above the kernel's largest process id: names sockets whose worker is certainly not alive."""

OF_ME = "roles: [patient]\n    permission: profile.read"
OF_NOBODY = OF_ME.replace("patient", "nobody")


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_keys(tmp_path_factory.mktemp("keys"))


@pytest.fixture
def settings(tmp_path: Path, keys: Path) -> Settings:
    (tmp_path / "keys").symlink_to(keys)
    run_dir = tmp_path / ("a-run-directory-deeper-than-the-address-of-a-socket-is-long-" * 3)
    run_dir.mkdir()
    return Settings(config_path=write_config(tmp_path), data_dir=tmp_path, run_dir=run_dir)


@pytest.fixture
def start(settings: Settings) -> Iterator[Callable[..., ControlServer]]:
    """Start the control server of a worker that has booted, in this process."""
    servers: list[ControlServer] = []

    def start(number: int, catalog_check: Any = None, path: Path | None = None) -> ControlServer:
        own = settings if path is None else Settings(config_path=path, data_dir=path.parent, run_dir=path.parent)
        in_force = InForce(own, arbiter=1)
        server = ControlServer(
            settings, SnapshotHolder(in_force.boot()), catalog_check, in_force=in_force, pid=DEAD + number
        )
        server.start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.stop()


def in_thread(call: Callable[..., Any], *args: Any, **named: Any) -> Any:
    """Run what blocks in a thread, while the servers of this one answer."""
    return gevent.get_hub().threadpool.apply(call, args, named)


def edit(settings: Settings, old: str, new: str) -> None:
    text = settings.config_path.read_text()
    assert old in text
    settings.config_path.write_text(text.replace(old, new, 1))


def version(server: ControlServer) -> tuple[int, str]:
    current = server._holder.current
    return current.version, current.realm


def test_every_worker_swaps(settings: Settings, start: Callable[..., ControlServer]) -> None:
    servers = [start(n) for n in range(3)]
    held = servers[0]._holder.current
    edit(settings, "realm: caregate", "realm: second")
    outcome: Outcome = in_thread(reload, settings.run_dir)
    assert [(w.pid - DEAD, w.version) for w in outcome.workers] == [(0, 2), (1, 2), (2, 2)]
    assert [version(server) for server in servers] == [(2, "second")] * 3
    assert held.realm == "caregate", "a request under way keeps what it began with"
    assert in_thread(reload, settings.run_dir).workers[0].version == 3, "each reload is a new version"
    assert InForce(settings, arbiter=1).state().version == 3  # type: ignore[union-attr]


def test_bad_document_changes_nothing(
    settings: Settings, start: Callable[..., ControlServer], capfd: pytest.CaptureFixture[str]
) -> None:
    servers = [start(n) for n in range(2)]
    edit(settings, OF_ME, OF_NOBODY)
    edit(settings, "realm: caregate", "realm: caregate\n  colour: red")
    outcome: Outcome = in_thread(reload, settings.run_dir)
    assert [fault.path for fault in outcome.faults] == ["gateway.colour", "controllers.me.roles[0]"]
    assert [version(server) for server in servers] == [(1, "caregate")] * 2
    assert "Traceback" not in capfd.readouterr().err


def test_one_worker_that_refuses_is_enough(settings: Settings, start: Callable[..., ControlServer]) -> None:
    fault = Fault("controllers.me.function.name", "the database has no such function")
    servers = [start(0), start(1, lambda document: [fault]), start(2)]
    edit(settings, "realm: caregate", "realm: second")
    outcome: Outcome = in_thread(reload, settings.run_dir)
    assert [(f.path, f.reason) for f in outcome.faults] == [(fault.path, fault.reason)]
    assert outcome.faults[0].line, "the catalog's faults have lines too"
    assert [version(server) for server in servers] == [(1, "caregate")] * 3


def test_a_worker_that_starts_meanwhile_is_brought_along(
    settings: Settings, start: Callable[..., ControlServer]
) -> None:
    late: list[ControlServer] = []

    def start_another(document: object) -> list[Fault]:
        if not late:
            late.append(start(1))
        return []

    first = start(0, start_another)
    edit(settings, "realm: caregate", "realm: second")
    outcome: Outcome = in_thread(reload, settings.run_dir)
    assert [w.version for w in outcome.workers] == [2, 2]
    assert [version(server) for server in (first, *late)] == [(2, "second")] * 2


def test_a_worker_with_another_document_is_no_agreement(
    settings: Settings, start: Callable[..., ControlServer], tmp_path: Path, keys: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "keys").symlink_to(keys)
    path = write_config(other, upstream_port=1)
    servers = [start(0), start(1, path=path)]
    with pytest.raises(ReloadFailed, match="changed while they were read"):
        in_thread(reload, settings.run_dir)
    assert [version(server)[0] for server in servers] == [1, 1]


def test_without_workers(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(ReloadFailed, match="no worker"):
        reload(settings.run_dir)
    with pytest.raises(ReloadFailed, match="No such file"):
        reload(tmp_path / "nowhere")


def test_one_reload_at_a_time(settings: Settings) -> None:
    with (settings.run_dir / "control.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ReloadFailed, match="another reload"):
            reload(settings.run_dir, timeout_s=0.1)


def test_sockets_of_dead_workers_are_removed(settings: Settings, start: Callable[..., ControlServer]) -> None:
    server = start(0)
    stale = settings.run_dir / f"control-{DEAD + 5}.sock"
    with socket.socket(socket.AF_UNIX) as gone:
        directory = os.open(settings.run_dir, os.O_PATH)
        gone.bind(f"/proc/self/fd/{directory}/{stale.name}")
        os.close(directory)
    assert len(in_thread(reload, settings.run_dir).workers) == 1
    assert not stale.exists()
    server.stop()
    assert not list(settings.run_dir.glob("*.sock"))


@pytest.fixture
def deserter(settings: Settings) -> Iterator[Callable[[int], None]]:
    """A worker, by its process id, that takes a connection and ends it unanswered; its file goes too if it `leaves`."""
    servers: list[StreamServer] = []

    def desert(pid: int, leaves: bool = False) -> None:
        listener = gevent.socket.socket(socket.AF_UNIX)
        directory = os.open(settings.run_dir, os.O_PATH)
        listener.bind(f"/proc/self/fd/{directory}/control-{pid}.sock")
        os.close(directory)
        listener.listen()

        def end(connection: gevent.socket.socket, address: object) -> None:
            connection.close()
            if leaves:
                gevent.sleep(0.01)
                (settings.run_dir / f"control-{pid}.sock").unlink()

        servers.append(StreamServer(listener, end))
        servers[-1].start()

    yield desert
    for server in servers:
        server.stop()


def test_a_worker_that_dies_meanwhile_is_left_out(
    settings: Settings, start: Callable[..., ControlServer], deserter: Callable[[int], None]
) -> None:
    server = start(0)
    deserter(DEAD + 1)
    assert [w.pid for w in in_thread(reload, settings.run_dir).workers] == [DEAD]
    assert version(server)[0] == 2


def test_a_worker_that_lives_and_is_silent_stops_it(
    settings: Settings, start: Callable[..., ControlServer], deserter: Callable[[int], None]
) -> None:
    server = start(0)
    deserter(os.getpid())
    with pytest.raises(ReloadFailed, match=f"worker {os.getpid()} does not answer"):
        in_thread(reload, settings.run_dir)
    assert version(server)[0] == 1


def test_a_worker_that_leaves_closes_its_socket_before_it_ends(
    settings: Settings, start: Callable[..., ControlServer], deserter: Callable[..., None]
) -> None:
    start(0)
    deserter(os.getpid(), leaves=True)
    assert [w.pid for w in in_thread(status, settings.run_dir)] == [DEAD]


def test_a_process_that_was_not_waited_for_is_not_alive() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert not _is_alive(child.pid)
    child.wait()
    assert not _is_alive(child.pid)
    assert _is_alive(os.getpid())


# --- the socket itself


class Peer:
    """A caller that says what it likes."""

    def __init__(self, settings: Settings, server: ControlServer) -> None:
        self.socket = gevent.socket.socket(socket.AF_UNIX)
        directory = os.open(settings.run_dir, os.O_PATH)
        self.socket.connect(f"/proc/self/fd/{directory}/control-{server._pid}.sock")
        os.close(directory)
        self.socket.settimeout(10)

    def ask(self, line: object) -> Any:
        self.socket.sendall((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n")
        return json.loads(self.socket.recv(65536))


@pytest.mark.parametrize(
    "line",
    [b"", b"{", b"[]", b"1", b"\xff", {"do": 1}, {"do": "shutdown"}, {}, {"do": None}, b'{"do": "status"'],
)
def test_what_is_no_command_is_answered_as_such(
    settings: Settings, start: Callable[..., ControlServer], line: object
) -> None:
    peer = Peer(settings, start(0))
    assert peer.ask(line)["ok"] is False
    assert peer.ask({"do": "status"})["ok"] is True


def test_an_endless_line_ends_the_connection_alone(settings: Settings, start: Callable[..., ControlServer]) -> None:
    server = start(0)
    peer = Peer(settings, server)
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        peer.socket.sendall(b"x" * MAX_LINE_BYTES * 100)
    assert Peer(settings, server).ask({"do": "status"})["version"] == 1


@pytest.mark.parametrize(
    "commit",
    [
        pytest.param({}, id="nothing said"),
        pytest.param({"version": 2, "digest": "0" * 64}, id="another digest"),
        pytest.param({"version": 1}, id="the same version"),
        pytest.param({"version": "2"}, id="not a number"),
        pytest.param({"version": True}, id="a boolean"),
    ],
)
def test_commit_is_refused(settings: Settings, start: Callable[..., ControlServer], commit: dict[str, Any]) -> None:
    server = start(0)
    peer = Peer(settings, server)
    digest = peer.ask({"do": "prepare"})["digest"]
    assert peer.ask({"do": "commit", "digest": digest, **commit})["ok"] is False
    assert version(server)[0] == 1


def test_only_who_prepared_can_commit(settings: Settings, start: Callable[..., ControlServer]) -> None:
    server = start(0)
    peer, other = Peer(settings, server), Peer(settings, server)
    digest = peer.ask({"do": "prepare"})["digest"]
    commit = {"do": "commit", "version": 2, "digest": digest}
    assert other.ask(commit)["ok"] is False
    assert peer.ask({"do": "abort"})["ok"] is True
    assert peer.ask(commit)["ok"] is False
    peer.ask({"do": "prepare"})
    assert peer.ask(commit)["version"] == 2
    assert peer.ask({**commit, "version": 3})["ok"] is False, "what was prepared is used once"


def test_the_socket_is_the_owners(settings: Settings, start: Callable[..., ControlServer]) -> None:
    start(0)
    path = settings.run_dir / f"control-{DEAD}.sock"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("uid", "own"), [pytest.param(os.geteuid(), True, id="own"), pytest.param(0, True, id="root"), (54_321, False)]
)
def test_only_the_same_user_and_root_are_heard(uid: int, own: bool) -> None:
    class Connection:
        def getsockopt(self, level: int, option: int, size: int) -> bytes:
            assert (level, option) == (socket.SOL_SOCKET, socket.SO_PEERCRED)
            return struct.pack("3i", 1, uid, 1)

    assert _is_own(Connection()) is own  # type: ignore[arg-type]


def test_a_foreign_user_gets_no_answer(
    settings: Settings, start: Callable[..., ControlServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start(0)
    monkeypatch.setattr("gateway.config.control._is_own", lambda connection: False)
    assert Peer(settings, server).socket.recv(100) == b"", "closed without a word"


# --- processes, and the command

WORKER = """
import gevent, os, sys
from gateway.config.control import ControlServer
from gateway.config.inforce import InForce
from gateway.config.snapshot import SnapshotHolder
from gateway.settings import Settings
settings = Settings.from_environ()
in_force = InForce(settings)
server = ControlServer(settings, SnapshotHolder(in_force.boot()), in_force=in_force)
server.start()
print("ready", flush=True)
gevent.sleep(600)
"""


@pytest.fixture
def environ(settings: Settings) -> dict[str, str]:
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("CAREGATE_")},
        "PYTHONPATH": str(ROOT),
        "CAREGATE_CONFIG_PATH": str(settings.config_path),
        "CAREGATE_DATA_DIR": str(settings.data_dir),
        "CAREGATE_RUN_DIR": str(settings.run_dir),
    }


@pytest.fixture
def workers(environ: dict[str, str]) -> Iterator[list[subprocess.Popen[str]]]:
    started = [
        subprocess.Popen([sys.executable, "-c", WORKER], env=environ, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    try:
        for worker in started:
            assert worker.stdout is not None
            assert worker.stdout.readline() == "ready\n"
        yield started
    finally:
        for worker in started:
            worker.kill()
            worker.wait()
            assert worker.stdout is not None
            worker.stdout.close()


def caregate(environ: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "gateway.cli.main", "config", *arguments]
    return subprocess.run(argv, env=environ, capture_output=True, text=True, timeout=60, check=False)


def test_the_command(settings: Settings, environ: dict[str, str], workers: list[subprocess.Popen[str]]) -> None:
    edit(settings, "realm: caregate", "realm: second")
    done = caregate(environ, "reload")
    assert (done.returncode, done.stderr) == (0, "")
    lines = sorted(done.stdout.splitlines())
    assert [line.partition(": version 2, digest ")[0] for line in lines] == sorted(f"worker {w.pid}" for w in workers)

    edit(settings, OF_ME, OF_NOBODY)
    refused = caregate(environ, "reload", "--run-dir", str(settings.run_dir))
    assert refused.returncode == 1
    assert "controllers.me.roles[0]: there is no role nobody" in refused.stderr
    assert "keeps what it had" in refused.stderr
    assert {w.version for w in status(settings.run_dir)} == {2}

    workers[0].send_signal(signal.SIGKILL)  # not waited for: a zombie until the fixture ends
    edit(settings, OF_NOBODY, OF_ME)
    alone = caregate(environ, "reload")
    assert alone.returncode == 0, alone.stderr
    assert alone.stdout.startswith(f"worker {workers[1].pid}: version 3")
    assert len(alone.stdout.splitlines()) == 1
    assert caregate(environ, "status").returncode == 0

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psycopg
import pytest

from gateway.store import embedded
from gateway.store.embedded import EmbeddedError, EmbeddedPostgres

_RUN = """
import os, sys, time
from pathlib import Path
from gateway.store.embedded import EmbeddedPostgres
server = EmbeddedPostgres(Path(sys.argv[1]))
server.start()
print(server.pid, flush=True)
{then}
"""


def _ask(dsn: str, query: str) -> object:
    with psycopg.connect(dsn) as connection:
        row = connection.execute(query.encode()).fetchone()
    assert row is not None
    return row[0]


def _gone(pid: int, within_s: float = 10.0) -> bool:
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.01)
    return False


def _child(folder: Path, then: str) -> tuple[subprocess.Popen[str], int]:
    process = subprocess.Popen(
        [sys.executable, "-c", _RUN.format(then=then), str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, int(process.stdout.readline())


@pytest.fixture(scope="module")
def cluster(server_folder: Path):
    """A cluster of this module's own."""
    server = EmbeddedPostgres(server_folder / "embedded")
    server.start()
    yield server
    server.remove()


@pytest.fixture
def stopped(cluster: EmbeddedPostgres):
    cluster.stop()
    yield cluster
    cluster.start()


def test_data_outlive_a_restart(cluster):
    with psycopg.connect(cluster.admin_dsn, autocommit=True) as connection:
        connection.execute("DROP TABLE IF EXISTS kept; CREATE TABLE kept AS SELECT 7 AS n")
    pid = cluster.pid
    cluster.stop()
    assert cluster.pid is None
    assert _gone(pid)
    cluster.start()
    assert _ask(cluster.admin_dsn, "SELECT n FROM kept") == 7


@pytest.mark.parametrize(
    ("setting", "value"),
    [("fsync", "on"), ("listen_addresses", ""), ("log_statement", "none"), ("data_checksums", "on")],
    ids=str,
)
def test_server_settings(cluster, setting, value):
    assert _ask(cluster.admin_dsn, f"SELECT current_setting('{setting}')") == value


def test_options_reach_the_server(server_folder):
    with EmbeddedPostgres(server_folder / "options", shared_buffers="8MB", max_connections=17) as server:
        assert _ask(server.admin_dsn, "SELECT current_setting('shared_buffers')") == "8MB"
        assert _ask(server.admin_dsn, "SELECT current_setting('max_connections')") == "17"
    server.remove()


def test_nothing_but_its_owner_may_reach_the_socket(cluster):
    folder = cluster._socket_dir
    assert folder.stat().st_mode & 0o077 == 0


def test_the_server_is_not_root(cluster):
    assert Path(f"/proc/{cluster.pid}").stat().st_uid != 0


def test_a_start_after_everything_was_killed(cluster):
    postmaster = cluster.pid
    os.kill(postmaster, signal.SIGKILL)
    assert _gone(postmaster)
    cluster.start()
    assert cluster.pid != postmaster
    assert _ask(cluster.admin_dsn, "SELECT 1") == 1


@pytest.mark.parametrize("then", ["time.sleep(60)", "os._exit(0)", "sys.exit(0)"], ids=["killed", "_exit", "exit"])
def test_the_server_ends_with_its_starter(stopped, then):
    process, postmaster = _child(stopped.directory, then)
    if "sleep" in then:
        process.kill()
    process.wait(10)
    assert _gone(postmaster)


def test_a_forked_child_that_ends_or_stops_it_changes_nothing(stopped):
    fork = (
        "pid = os.fork()\nif not pid:\n    server.stop()\n    os._exit(0)\nos.waitpid(pid, 0)\nprint('ok', flush=True)"
    )
    process, postmaster = _child(stopped.directory, fork + "\ntime.sleep(60)")
    assert process.stdout is not None
    assert process.stdout.readline() == "ok\n"
    assert _ask(stopped.admin_dsn, "SELECT 1") == 1
    process.kill()
    process.wait(10)
    assert _gone(postmaster)


def test_a_second_starter_is_refused_while_the_first_lives(stopped, monkeypatch):
    process, postmaster = _child(stopped.directory, "time.sleep(60)")
    monkeypatch.setattr(embedded, "_ORPHAN_PATIENCE_S", 0.05)
    with pytest.raises(EmbeddedError, match=rf"process {postmaster}\b"):
        EmbeddedPostgres(stopped.directory).start()
    assert _ask(stopped.admin_dsn, "SELECT 1") == 1
    process.kill()
    process.wait(10)
    assert _gone(postmaster)


def test_a_stale_note_of_a_process_id_given_to_somebody_else(stopped):
    data = stopped._base / "data"
    (data / "postmaster.pid").write_text(f"{os.getppid()}\n{data}\n0\n5432\n/tmp\n\n0 0\nready\n")
    stopped.start()
    assert _ask(stopped.admin_dsn, "SELECT 1") == 1


def test_an_interrupted_creation_is_begun_anew(server_folder):
    folder = server_folder / "torn"
    (folder / "data.new").mkdir(parents=True)
    (folder / "data.new" / "PG_VERSION").write_text("18\n")
    server = EmbeddedPostgres(folder)
    server.start()
    assert _ask(server.admin_dsn, "SELECT current_database()") == "caregate"
    server.remove()
    assert not folder.exists()


@pytest.mark.parametrize("name", ["x" * 120, "a,b", 'q"q', "sp ace%20"], ids=["long", "comma", "quote", "space"])
def test_odd_directories(server_folder, name):
    folder = server_folder / name
    server = EmbeddedPostgres(folder)
    server.start()
    assert _ask(server.admin_dsn, "SELECT 1") == 1
    server.stop()
    server.start()
    assert _ask(server.admin_dsn, "SELECT 1") == 1
    sockets = server._socket_dir
    server.remove()
    assert not sockets.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user's server runs as himself")
def test_root_in_a_directory_closed_to_others(tmp_path, monkeypatch, server_folder):
    """The server's account cannot enter it, and no mode of it or of its parents is changed."""
    monkeypatch.setattr(embedded, "_SHARED_STATE", server_folder / "state")
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    server = EmbeddedPostgres(closed / "pg")
    server.start()
    assert _ask(server.admin_dsn, "SELECT 1") == 1
    assert closed.stat().st_mode & 0o777 == 0o700
    elsewhere = server._base
    assert elsewhere.parent == server_folder / "state"
    server.stop()
    again = EmbeddedPostgres(closed / "pg")
    again.start()
    assert again._base == elsewhere
    again.remove()
    assert not elsewhere.exists()


def test_clusters_of_temporary_directories_that_are_gone_are_removed(tmp_path):
    clusters = {
        "postgres-gone": tmp_path / "gone" / "location",
        "postgres-kept": tmp_path / "location",
        "postgres-elsewhere": Path("/nowhere/mounted/location"),
    }
    for name, location in clusters.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "origin").write_text(f"{location}\n")
    (tmp_path / "postgres-unknown").mkdir()
    (tmp_path / "location").touch()
    embedded._forget_temporary_clusters(tmp_path)
    left = {path.name for path in tmp_path.glob("postgres-*")}
    assert left == {"postgres-kept", "postgres-elsewhere", "postgres-unknown"}


@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user's server runs as himself")
def test_root_with_binaries_in_a_closed_directory(monkeypatch, server_folder):
    real = embedded._may_enter
    monkeypatch.setattr(embedded, "_SHARED_STATE", server_folder / "state-2")
    monkeypatch.setattr(
        embedded, "_may_enter", lambda path, account: "pginstall" not in str(path) and real(path, account)
    )
    server = EmbeddedPostgres(server_folder / "copied")
    server.start()
    assert Path(os.readlink(f"/proc/{server.pid}/exe")).is_relative_to(server_folder / "state-2")
    server.remove()

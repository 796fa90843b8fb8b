"""The configuration as numbered versions in PostgreSQL: four real workers, a real server, the command itself."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from gateway.cli.main import main
from gateway.config.reload import ReloadFailed, WorkerStatus, status
from gateway.config.version import Version
from gateway.config.versions import KEPT
from gateway.demo.platform import ROOT, Platform
from gateway.store.config_version import APPLICATION, VersionStore
from loadtests.demo import free_base_port

WORKERS = 4
SWAPS = int(os.environ.get("CAREGATE_TEST_CONFIG_SWAPS", "5"))
"""How many versions are put in force under load."""


class VersionsPlatform(Platform):
    """The demo's gateway and database, without its units."""

    def __init__(self, directory: Path, port: int) -> None:
        super().__init__(directory, port, WORKERS, tell=lambda text: None)
        self._env.update(CAREGATE_CONFIG_SOURCE="database", CAREGATE_CONFIG_POLL_MS="3000", CAREGATE_DRAIN_GRACE_S="5")

    @property
    def run_dir(self) -> Path:
        return self.directory / "run"

    @property
    def server(self) -> Any:
        assert self._postgres is not None
        return self._postgres

    def store(self) -> VersionStore:
        return VersionStore(self.server.operator_dsn)

    def sql(self, query: str) -> list[Any]:
        """As an administrator."""
        with psycopg.connect(self.server.admin_dsn, autocommit=True) as admin:
            cursor = admin.execute(query)
            return cursor.fetchall() if cursor.description else []

    def newest(self) -> Version:
        with self.store() as store:
            found = store.newest()
        assert found is not None
        return found

    def with_realm(self, realm: str) -> str:
        """The newest document with another realm, which every 401 shows."""
        return re.sub(r"realm: .*", f"realm: {realm}", self.newest().document, count=1)

    def states(self) -> list[WorkerStatus]:
        return status(self.run_dir)

    def ask(self, path: str = "/nothing", *, ops: bool = False) -> tuple[int, dict[str, str], bytes]:
        port = self.ports.ops if ops else self.ports.gateway
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def realms(self) -> set[str]:
        found = [self.ask("/portal/v1/me")[1].get("www-authenticate", "") for _ in range(4 * WORKERS)]
        return {re.sub(r'.*realm="([^"]*)".*', r"\1", one) for one in found}

    def pids(self) -> list[int]:
        """Of the arbiter's children."""
        arbiter = self.children["gateway"].process
        assert arbiter is not None
        return [int(pid) for pid in Path(f"/proc/{arbiter.pid}/task/{arbiter.pid}/children").read_text().split()]

    def stop_workers(self) -> None:
        child = self.children["gateway"]
        child.signal(signal.SIGTERM)
        child.wait(time.monotonic() + 15)

    def spawn_workers(self) -> None:
        """Without waiting until they are ready."""
        self._spawn("gateway", "-m", "gunicorn", "-c", str(ROOT / "gunicorn.conf.py"))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VersionsPlatform]:
    started = VersionsPlatform(tmp_path_factory.mktemp("versions"), free_base_port())
    try:
        started.start_gateway()
        started._wait("gateway", lambda: in_force(started, 1), 15)
        yield started
    finally:
        started.stop()


@pytest.fixture
def config(site: VersionsPlatform) -> Callable[..., int]:
    """`caregate config …` in this process."""
    return lambda *arguments: main(["config", *arguments, "--data-dir", str(site.directory)])


@pytest.fixture
def document(site: VersionsPlatform, tmp_path: Path) -> Callable[[str], str]:
    def write(text: str) -> str:
        path = tmp_path / "edited.yaml"
        path.write_text(text)
        return str(path)

    return write


def in_force(site: VersionsPlatform, number: int) -> bool:
    try:
        found = site.states()
    except ReloadFailed:  # a worker that leaves closes its socket a little before it ends
        return False
    return len(found) == WORKERS and {worker.version for worker in found} == {number}


def test_an_empty_database_imports_the_file(site: VersionsPlatform) -> None:
    newest = site.newest()
    assert (newest.number, newest.actor) == (1, "caregate_gateway")
    assert newest.document == site._config.read_text()
    assert in_force(site, 1)


def test_apply_puts_a_document_in_force_everywhere(
    site: VersionsPlatform,
    config: Callable[..., int],
    document: Callable[[str], str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = document(site.with_realm("applied"))
    before = site.newest().number
    assert config("diff", path) == 1
    assert "+  realm: applied" in capsys.readouterr().out
    assert config("apply", path, "--reason", "a new name", "--author", "dr-who") == 0
    out = capsys.readouterr().out
    assert out.count(f": version {before + 1}, digest ") == WORKERS
    assert site.realms() == {"applied"}
    newest = site.newest()
    assert (newest.number, newest.author, newest.reason, newest.actor) == (
        before + 1, "dr-who", "a new name", "caregate_operator",
    )  # fmt: skip
    assert config("diff", path) == 0
    assert config("history") == 0
    assert re.search(rf"^{before + 1} .* dr-who +caregate_operator .* a new name$", capsys.readouterr().out, re.M)
    assert config("show", str(before + 1)) == 0
    assert capsys.readouterr().out == Path(path).read_text()
    assert list(site.run_dir.glob("config-candidate-*")) == []


def test_the_trail_has_who_put_what_in_force(site: VersionsPlatform, wait: Callable[..., Any]) -> None:
    query = "SELECT canonical::json -> 'detail' FROM audit.event WHERE kind = 'config' AND outcome = 'allowed'"
    events = wait(lambda: [e for (e,) in site.sql(query) if e.get("author") == "dr-who"])
    assert {event["reason"] for event in events} == {"a new name"}
    assert len({event["worker"] for event in events}) == len(events)


@pytest.mark.parametrize("refused", ["- nonsense", "a role that is nowhere"])
def test_a_bad_document_changes_nothing_and_every_fault_is_named(
    site: VersionsPlatform, config: Callable[..., int], document: Callable[[str], str],
    capsys: pytest.CaptureFixture[str], refused: str,
) -> None:  # fmt: skip
    before, was = site.newest().number, site.states()
    head, role, tail = site.with_realm("bad").rpartition("roles: [patient]")
    bad = (head + role.replace("patient", "nobody") + tail).replace("methods:", "verbs:", 1)
    path = document("- nonsense\n" if refused == "- nonsense" else bad)
    assert config("apply", path, "--reason", "oops") == 1
    err = capsys.readouterr().err
    assert "nothing was changed" in err
    if refused != "- nonsense":
        assert "nobody" in err
        assert ".verbs: " in err
    assert (site.newest().number, site.states()) == (before, was)


def test_a_stale_base_is_refused(
    site: VersionsPlatform,
    config: Callable[..., int],
    document: Callable[[str], str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = site.newest().number
    path = document(site.with_realm("stale"))
    assert config("apply", path, "--reason", "x", "--base", str(before - 1)) == 3
    assert f"version {before} is the newest" in capsys.readouterr().err
    assert site.newest().number == before


def test_of_concurrent_applies_one_is_taken(site: VersionsPlatform, document: Callable[[str], str]) -> None:
    before = site.newest().number
    path = document(site.with_realm("one-of-three"))
    argv = [sys.executable, "-m", "gateway.cli.main", "config", "apply", path, "--data-dir", str(site.directory),
            "--base", str(before), "--reason"]  # fmt: skip
    running = [
        subprocess.Popen(
            [*argv, f"number {number}"], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        for number in range(3)
    ]
    said = [process.communicate(timeout=60)[1] for process in running]
    assert sorted(process.returncode for process in running) == [0, 3, 3], said
    assert site.newest().number == before + 1


def test_writers_race_for_a_number(site: VersionsPlatform) -> None:
    newest = site.newest()
    won: list[bool] = []

    def add(number: int) -> None:
        with site.store() as store:
            won.append(store.add(newest.number, newest.digest, newest.document, f"writer-{number}", "race"))

    threads = [threading.Thread(target=add, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert won.count(True) == 1
    assert site.newest().number == newest.number + 1


def test_a_version_from_elsewhere_is_in_force_within_a_second_without_a_failed_request(
    site: VersionsPlatform, wait: Callable[..., Any]
) -> None:
    wait(lambda: in_force(site, site.newest().number))
    stop, answers = threading.Event(), []

    def call() -> None:
        while not stop.is_set():
            answers.append(site.ask("/portal/v1/me")[0])

    caller = threading.Thread(target=call)
    caller.start()
    took = []
    try:
        for number in range(SWAPS):
            newest = site.newest()
            with site.store() as store:
                assert store.add(newest.number, newest.digest, site.with_realm(f"swap-{number}"), "elsewhere", "test")
            began = time.monotonic()
            wait(lambda n=newest.number + 1: in_force(site, n), limit_s=5, every_s=0.01)
            took.append(time.monotonic() - began)
    finally:
        stop.set()
        caller.join()
    # On a machine with other work the slowest may be late; without notifications most of them would be.
    assert sorted(took)[len(took) // 2] < 1.0, took
    assert set(answers) == {401}
    assert site.realms() == {f"swap-{SWAPS - 1}"}
    took.sort()
    median_ms, slowest_ms = round(took[len(took) // 2] * 1000), round(took[-1] * 1000)
    print(f"{SWAPS} versions, {len(answers)} requests: median {median_ms} ms, slowest {slowest_ms} ms")


@pytest.mark.parametrize("lost", ["the notification", "the connection"])
def test_what_was_not_told_is_found_by_looking(site: VersionsPlatform, wait: Callable[..., Any], lost: str) -> None:
    newest = site.newest()
    if lost == "the notification":
        site.sql("ALTER TABLE caregate.config_version DISABLE TRIGGER tell")
    else:
        ended = site.sql(
            f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = '{APPLICATION}'"
        )
        assert len(ended) == WORKERS
    try:
        with site.store() as store:
            assert store.add(newest.number, newest.digest, site.with_realm("unheard"), "elsewhere", lost)
        wait(lambda: in_force(site, newest.number + 1), limit_s=8)
    finally:
        site.sql("ALTER TABLE caregate.config_version ENABLE TRIGGER tell")
    assert site.realms() == {"unheard"}


def test_rollback_is_a_new_version_with_the_old_document(
    site: VersionsPlatform, config: Callable[..., int], wait: Callable[..., Any]
) -> None:
    before = site.newest().number
    wait(lambda: in_force(site, before))
    assert config("rollback", "1") == 0
    assert in_force(site, before + 1)
    newest = site.newest()
    assert (newest.number, newest.reason) == (before + 1, "rollback to version 1")
    assert newest.document == site._config.read_text()
    assert config("rollback", "999") == 2


def test_a_bad_version_in_the_database_is_refused_by_every_worker_and_said(
    site: VersionsPlatform, config: Callable[..., int], wait: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    newest = site.newest()
    wait(lambda: in_force(site, newest.number))
    with site.store() as store:
        bad = newest.document.replace("roles: [patient]", "roles: [nobody]", 1)
        assert store.add(newest.number, newest.digest, bad, "elsewhere", "past the check")
    wait(lambda: all(worker.refused for worker in site.states()))
    assert in_force(site, newest.number)
    assert main(["config", "status", "--run-dir", str(site.run_dir)]) == 1
    said = capsys.readouterr()
    assert said.err.count(f"refuses version {newest.number + 1}: ") >= WORKERS
    assert "nobody" in said.err
    assert site.ask("/readyz", ops=True)[0] == 200
    assert config("rollback", str(newest.number)) == 0
    assert in_force(site, newest.number + 2)
    assert main(["config", "status", "--run-dir", str(site.run_dir)]) == 0


def test_reload_and_hup_leave_versions_to_the_database(
    site: VersionsPlatform, wait: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["config", "reload", "--run-dir", str(site.run_dir)]) == 1
    assert "the configuration is in the database" in capsys.readouterr().err
    newest, before = site.newest().number, {state.pid for state in site.states()}
    text = site._config.read_text()
    site._config.write_text("- broken\n")
    try:
        site.children["gateway"].signal(signal.SIGHUP)
        wait(lambda: not before & set(site.pids()) and in_force(site, newest), limit_s=20)
    finally:
        site._config.write_text(text)


def test_a_gateway_starts_without_its_database_and_file(site: VersionsPlatform, wait: Callable[..., Any]) -> None:
    newest = site.newest().number
    site.stop_workers()
    text = site._config.read_text()
    site.server.stop()
    site._config.write_text("- broken\n")
    try:
        site.spawn_workers()
        wait(lambda: ready(site) == (200, newest), limit_s=20)
        assert site.ask("/portal/v1/me")[0] == 401
    finally:
        site.server.start()
        site._config.write_text(text)
    with site.store() as store:
        now = site.newest()
        assert store.add(now.number, now.digest, site.with_realm("back"), "elsewhere", "the database is back")
    wait(lambda: site.realms() == {"back"}, limit_s=15)


def test_without_database_and_last_good_version_nothing_is_ready(
    site: VersionsPlatform, wait: Callable[..., Any]
) -> None:
    newest = site.newest().number
    site.stop_workers()
    (site.directory / KEPT).unlink()
    site.server.stop()
    try:
        site.spawn_workers()
        wait(lambda: ready(site) == (503, 0), limit_s=20)
        code, fields, body = site.ask("/portal/v1/me")
        assert (code, fields.get("retry-after")) == (503, "1"), body
        assert json.loads(body)["type"].endswith(":config-unavailable")
    finally:
        site.server.start()
    wait(lambda: in_force(site, newest), limit_s=15)
    assert ready(site) == (200, newest)
    assert site.ask("/portal/v1/me")[0] == 401


def ready(site: VersionsPlatform) -> tuple[int, int]:
    try:
        code, _, body = site.ask("/readyz", ops=True)
    except OSError:
        return 0, 0
    return code, json.loads(body)["config_version"]

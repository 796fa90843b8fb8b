"""Fixtures of several packages' tests: a real PostgreSQL that can be stopped, started and frozen."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.store.embedded import EmbeddedPostgres
from gateway.store.migrate import migrate


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from tests.sharing import ByPlatform

    config.option.loadscopereorder = False
    return ByPlatform(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):
        from tests.sharing import turn

        items.sort(key=lambda item: turn(item.nodeid))


class Postgres:
    """One embedded server, with the gateway's schemas in it."""

    def __init__(self, server: EmbeddedPostgres) -> None:
        self._server = server
        self._frozen: list[int] = []

    @property
    def directory(self) -> Path:
        """The server's, as a gateway's data directory has it at `postgres`."""
        return self._server.directory

    @property
    def admin_dsn(self) -> str:
        return self._server.admin_dsn

    @property
    def gateway_dsn(self) -> str:
        return self._server.gateway_dsn

    @property
    def operator_dsn(self) -> str:
        return self._server.operator_dsn

    @property
    def reader_dsn(self) -> str:
        return self._server.reader_dsn

    def start(self) -> None:
        self._server.start()

    def stop(self) -> None:
        self.thaw()
        self._server.stop()

    def processes(self) -> list[int]:
        """The postmaster, then its children."""
        postmaster = self._server.pid
        assert postmaster is not None
        return [postmaster, *children_of(postmaster)]

    def freeze(self) -> None:
        """Stop every process of the server in its tracks: connections stay open, nothing answers."""
        while found := [pid for pid in self.processes() if pid not in self._frozen]:
            for pid in found:
                os.kill(pid, signal.SIGSTOP)
            self._frozen += found

    def thaw(self) -> None:
        for pid in self._frozen:
            try:
                os.kill(pid, signal.SIGCONT)
            except ProcessLookupError:
                continue
        self._frozen = []


def children_of(parent: int) -> list[int]:
    """Direct children by /proc."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except OSError:
                continue
            if int(stat.rpartition(")")[2].split()[1]) == parent:
                found.append(int(entry.name))
    return found


@pytest.fixture(scope="session")
def server_folder() -> Iterator[Path]:
    """A short folder that a server account may enter; pytest's own is closed to others."""
    folder = Path(tempfile.mkdtemp(prefix="caregate-test-", dir="/tmp"))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres_server(server_folder: Path) -> Iterator[Postgres]:
    # NOTE: a killed server loses nothing by it, only a machine does; a restart would wait for thousands of files.
    server = EmbeddedPostgres(server_folder / "pg", shared_buffers="16MB", max_connections=60, fsync="off")
    server.start()
    migrate(server.admin_dsn)
    postgres = Postgres(server)
    yield postgres
    postgres.thaw()
    server.remove()


@pytest.fixture
def postgres(postgres_server: Postgres) -> Iterator[Postgres]:
    """The session's PostgreSQL, running before and after each test whatever the test does to it."""
    postgres_server.start()
    yield postgres_server
    postgres_server.thaw()
    postgres_server.start()


@pytest.fixture(scope="session")
def loaded_portal(postgres_server: Postgres) -> Postgres:
    """The same with the demo portal loaded."""
    from gateway.demo.portal_data import load_portal

    load_portal(postgres_server.admin_dsn)
    return postgres_server


@pytest.fixture
def portal(loaded_portal: Postgres, postgres: Postgres) -> Postgres:
    """PostgreSQL with the demo portal, running."""
    return postgres

"""The run's PostgreSQL: one embedded server with the demo portal, shared by all contenders that need one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gateway.demo.portal_data import load_portal
from gateway.store.embedded import EmbeddedPostgres
from gateway.store.migrate import migrate
from loadtests.bench.policy import Portal
from loadtests.bench.servers import LOAD_CPU

_NICE = 10


@contextmanager
def portal_database(directory: Path) -> Iterator[Portal]:
    """A server of its own for one run, on the load's core; removed afterwards.

    Raises: gateway.store.embedded.EmbeddedError.
    """
    postgres = EmbeddedPostgres(directory)
    try:
        postgres.start()
        pid = postgres.pid
        assert pid is not None
        os.sched_setaffinity(pid, {int(LOAD_CPU)})
        # What it does in the background must not keep the load from asking, and from seeing answers, in time.
        os.setpriority(os.PRIO_PROCESS, pid, _NICE)
        migrate(postgres.admin_dsn)
        load_portal(postgres.admin_dsn)
        yield Portal(postgres.gateway_dsn, postgres.admin_dsn, pid)
    finally:
        postgres.remove()

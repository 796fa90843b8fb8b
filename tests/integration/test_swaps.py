"""New versions of the configuration under load, four workers: no request fails, none is decided by two versions, every
worker has each within a second, no worker grows, no unit's link is touched.

CAREGATE_TEST_CONFIG_SWAPS=200 for the whole of it; the default is a sample.
"""

from __future__ import annotations

import http.client
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest

from gateway.config.reload import ReloadFailed, ask, status
from gateway.config.version import Version
from gateway.demo import story
from gateway.demo.platform import Platform
from gateway.store.config_version import VersionStore
from loadtests.demo import free_base_port

pytestmark = pytest.mark.integration

WORKERS = 4
SWAPS = int(os.environ.get("CAREGATE_TEST_CONFIG_SWAPS", "5"))
"""How many versions are put in force under load."""
MEASURED_FROM = 20
"""From this swap on memory is compared: the first ones warm caches up."""
GROWTH_KB = 20_480
"""What a worker under load may grow by in all swaps after those: its allocator's slack. A snapshot of the demo holds
200 kB, so of 180 swaps 36 MB would stay; tests/http/test_swap_memory.py counts what stays exactly.
"""
BURST = 20_000
"""A version's number is to be seen in two places of one answer: the realm, and the burst of the address limit."""


@dataclass
class Load:
    """Callers until `stop`: without a token, and with one through the portal's database."""

    port: int
    token: str
    stop: threading.Event = field(default_factory=threading.Event)
    statuses: dict[str, set[int]] = field(default_factory=lambda: {"anonymous": set(), "portal": set()})
    failed: list[str] = field(default_factory=list)
    mixed: list[tuple[str, int]] = field(default_factory=list)
    portal: dict[str, int] = field(default_factory=dict)
    """Request id -> the version that its limits were of."""
    requests: int = 0

    def run(self, kind: str) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        fields = {"Authorization": f"Bearer {self.token}"} if kind == "portal" else {}
        while not self.stop.is_set():
            try:
                connection.request("GET", "/portal/v1/me", headers=fields)
                answer = connection.getresponse()
                answer.read()
            except (OSError, http.client.HTTPException) as error:
                self.failed.append(f"{kind}: {error!r}")
                connection.close()
                continue
            self._look(kind, answer)
        connection.close()

    def _look(self, kind: str, answer: http.client.HTTPResponse) -> None:
        self.requests += 1
        self.statuses[kind].add(answer.status)
        burst = re.search(r'"per-address";q=([0-9]+)', answer.headers["RateLimit-Policy"] or "")
        assert burst is not None
        number = int(burst[1]) - BURST
        if kind == "portal":
            self.portal[answer.headers["X-Request-Id"]] = number
            return
        realm = re.search(r'realm="swap-([0-9]+)"', answer.headers["WWW-Authenticate"] or "")
        if realm is None or int(realm[1]) != number:
            self.mixed.append((answer.headers["WWW-Authenticate"], number))


class SwapsPlatform(Platform):
    """The demo's gateway and database, and one unit's agent."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, free_base_port(), WORKERS, tell=lambda text: None)
        self._env.update(CAREGATE_CONFIG_SOURCE="database", CAREGATE_DRAIN_GRACE_S="5")

    @property
    def run_dir(self) -> Path:
        return self.directory / "run"

    def store(self) -> VersionStore:
        assert self._postgres is not None
        return VersionStore(self._postgres.operator_dsn)

    def newest(self) -> Version:
        with self.store() as store:
            found = store.newest()
        assert found is not None
        return found

    def put(self, base: Version, number: int) -> int:
        """Add the version that shows `number`, without any check; its own number."""
        text = re.sub(r"realm: \S+", f"realm: swap-{number}", base.document, count=1)
        text = re.sub(r"per-address: .*", f"per-address: {{per: address, rate: 15000, burst: {BURST + number}}}", text)
        with self.store() as store:
            newest = store.newest()
            assert newest is not None
            assert store.add(newest.number, newest.digest, text, "elsewhere", f"swap {number}")
        return newest.number + 1

    def links(self) -> set[tuple[str, str, int]]:
        """The units' connections, in all workers."""
        found = ask(self.run_dir, "units")
        return {(one["unit"], one["conn"], one["epoch"]) for worker in found for one in worker["connections"]}

    def memory_kb(self) -> dict[int, int]:
        """What each worker has of its own in memory."""
        found = {}
        for worker in status(self.run_dir):
            text = Path(f"/proc/{worker.pid}/smaps_rollup").read_text()
            found[worker.pid] = sum(int(kb) for kb in re.findall(r"^Private_(?:Clean|Dirty): +([0-9]+) kB", text, re.M))
        return found

    def lost_links(self) -> int:
        assert self._postgres is not None
        with psycopg.connect(self._postgres.admin_dsn) as admin:
            row = admin.execute("SELECT count(*) FROM caregate.unit_event WHERE kind = 'down'").fetchone()
        assert row is not None
        return int(row[0])

    def decided_by(self) -> dict[str, int]:
        """Request id -> the configuration's version, of the portal's requests in the audit trail."""
        assert self._postgres is not None
        query = "SELECT request_id, config_version FROM audit.event WHERE kind = 'access' AND phase = 'outcome'"
        with psycopg.connect(self._postgres.admin_dsn) as admin:
            return dict(admin.execute(query).fetchall())


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SwapsPlatform]:
    started = SwapsPlatform(tmp_path_factory.mktemp("swaps"))
    try:
        started._issue_tokens(started.start_gateway())
        started.start_agent(story.HOSPITAL)
        started._wait(f"{story.HOSPITAL}-agent", lambda: bool(started.links()), 20)
        yield started
    finally:
        started.stop()


def in_force(site: SwapsPlatform, number: int) -> bool:
    try:
        found = status(site.run_dir)
    except ReloadFailed:
        return False
    return len(found) == WORKERS and {worker.version for worker in found} == {number}


def test_versions_under_load(site: SwapsPlatform, wait: Callable[..., Any]) -> None:
    base, took, numbers = site.newest(), [], {}
    first = site.put(base, 0)
    wait(lambda: in_force(site, first), limit_s=10)
    numbers[0] = first
    links, lost = site.links(), site.lost_links()
    load = Load(site.ports.gateway, site.tokens[story.PATIENT])
    callers = [
        threading.Thread(target=load.run, args=(kind,)) for kind in ("anonymous", "anonymous", "portal", "portal")
    ]
    for caller in callers:
        caller.start()
    before: dict[int, int] = {}
    try:
        for number in range(1, SWAPS + 1):
            if number == min(MEASURED_FROM, SWAPS):
                before = site.memory_kb()
            numbers[number] = site.put(base, number)
            began = time.monotonic()
            wait(lambda n=numbers[number]: in_force(site, n), limit_s=10, every_s=0.01)
            took.append(time.monotonic() - began)
    finally:
        load.stop.set()
        for caller in callers:
            caller.join()
    after = site.memory_kb()
    assert load.failed == []
    assert load.statuses == {"anonymous": {401}, "portal": {200}}
    assert load.mixed == []
    assert site.links() == links
    assert site.lost_links() == lost
    check_decided_by_one_version(site, load, numbers, wait)
    took.sort()
    if "CAREGATE_TEST_CONFIG_SWAPS" in os.environ:
        # A figure of a machine that does nothing else: with the other tests beside it, five are no measure.
        assert took[len(took) // 2] < 1.0, took
    assert after.keys() == before.keys(), "a worker was replaced"
    growth_kb = {pid: after[pid] - before[pid] for pid in after}
    print(
        f"\n{SWAPS} versions, {load.requests} requests: in force in {WORKERS} workers after "
        f"{took[len(took) // 2] * 1000:.0f} ms (median), {took[-1] * 1000:.0f} ms (slowest), "
        f"{sum(1 for s in took if s >= 1)} over 1 s; 0 failed, 0 mixed of {len(load.portal)} in the trail; "
        f"{len(links)} unit links as before; memory of a worker {min(before.values()) // 1024} MB, "
        f"growth {max(growth_kb.values())} kB in {max(0, SWAPS - MEASURED_FROM)} swaps"
    )
    assert max(growth_kb.values()) < GROWTH_KB, growth_kb


def check_decided_by_one_version(
    site: SwapsPlatform, load: Load, numbers: dict[int, int], wait: Callable[..., Any]
) -> None:
    """The limits that a request was admitted by, before it waited for the database, are of the version that the trail
    says decided it, after.
    """
    assert len(load.portal) > 20
    trail = wait(lambda: (found := site.decided_by()).keys() >= load.portal.keys() and found, limit_s=30)
    mixed = {rid: number for rid, number in load.portal.items() if trail[rid] != numbers[number]}
    assert mixed == {}
    assert len({trail[rid] for rid in load.portal}) >= min(SWAPS, 3)

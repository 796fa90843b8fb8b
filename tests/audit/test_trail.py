"""The trail against a real server; tests/store/test_patched.py runs this again under gevent's patches."""

import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import gevent
import greenlet
import orjson
import psycopg
import pytest
from gevent import monkey

from gateway.audit import commit, shipper
from gateway.audit.event import decode
from gateway.audit.kinds import KINDS
from gateway.audit.spool import sync_files
from gateway.audit.trail import FOLDER, AuditTrail
from gateway.context import Principal, RequestContext, new_request_id
from gateway.errors import AuditUnavailable
from gateway.store.pool import Database
from tests.audit.disk import under

SEGMENT = 262_144
_allocate_lock = monkey.get_original("_thread", "allocate_lock")


def _request(n=0, **changes):
    return RequestContext(
        id=new_request_id(), started_ns=time.monotonic_ns() - 1000, method="GET", query=str(n), **changes
    )


class Table:
    """What the table holds, asked as the administrator."""

    def __init__(self, dsn):
        self._dsn = dsn

    def _ask(self, query):
        with psycopg.connect(self._dsn, autocommit=True) as connection:
            return connection.execute(query).fetchall()

    def ids(self):
        return Counter(row[0] for row in self._ask("SELECT request_id FROM audit.event"))

    def transactions(self):
        return len(self._ask("SELECT DISTINCT xmin::text FROM audit.event"))

    def rows(self, columns):
        return self._ask(f"SELECT {columns} FROM audit.event ORDER BY chain, sequence")

    def clear(self):
        with psycopg.connect(self._dsn, autocommit=True) as connection:
            connection.execute("DELETE FROM audit.event")

    def wait_for(self, requests, within_s=8.0):
        """Each of them exactly once, and nothing else."""
        end = time.monotonic() + within_s
        while len(found := self.ids()) < len(requests) and time.monotonic() < end:
            gevent.sleep(0.02)
        assert found == {ctx.id: 1 for ctx in requests}


@pytest.fixture
def table(postgres):
    table = Table(postgres.admin_dsn)
    table.clear()
    return table


@pytest.fixture
def database(postgres):
    database = Database(postgres.gateway_dsn, pool_max=2, statement_timeout_ms=2_000)
    database.open()
    yield database
    database.close()


@pytest.fixture
def counts():
    return Counter()


@pytest.fixture
def make(database, tmp_path, counts):
    made = []

    def make(**options):
        trail = AuditTrail(
            database, tmp_path, node="node-1",
            count=lambda outcome, number: counts.update({outcome: number}),
            **{"segment_bytes": SEGMENT, **options},
        )  # fmt: skip
        made.append(trail)
        trail.start()
        return trail

    yield make
    for trail in made:
        trail.stop(timeout_s=2)


@pytest.fixture
def trail(make):
    return make()


def test_an_event_reaches_the_table_with_all_its_columns(trail, table):
    ctx = _request(client_address="192.0.2.7", params={"patient": "pat\t\\0001\n", "unit": "ü-1"}, rule="allowed")
    trail.record(ctx, 200)
    table.wait_for([ctx])
    assert table.rows("request_id, phase, outcome, patient, unit, client_address, node, phi, status, sequence") == [
        (ctx.id, "outcome", "allowed", "pat\t\\0001\n", "ü-1", "192.0.2.7", "node-1", False, 200, 1)
    ]
    ((occurred, recorded, duration, canonical, digest),) = table.rows(
        "occurred_at, recorded_at, duration_us, canonical, hash"
    )
    assert 0 <= (recorded - occurred).total_seconds() < 5
    assert 0 < duration < 10_000_000
    event = decode(canonical.encode())
    assert (event.request_id, event.duration_us) == (ctx.id, duration)
    assert event.at_ms == round(occurred.timestamp() * 1000)
    assert len(digest) == 32


def test_events_arrive_in_order_without_a_gap_in_few_transactions(trail, table, counts):
    requests = [_request(n) for n in range(1200)]
    for ctx in requests:
        trail.enqueue_finished(ctx, 200)
    table.wait_for(requests)
    assert [row[0] for row in table.rows("sequence")] == list(range(1, 1201))
    assert [row[0] for row in table.rows("request_id")] == [ctx.id for ctx in requests]
    assert table.transactions() <= 4
    assert (counts["written"], counts["refused"]) == (1200, 0)
    gevent.sleep(0.1)
    assert trail.pending == 0


def test_other_events(trail, table):
    trail.note("unit", "up", unit="u-1", agent="caregate/1", address="192.0.2.9")
    table.wait_for([RequestContext(id="", started_ns=0)])
    ((kind, unit, canonical),) = table.rows("kind, unit, canonical")
    assert (kind, unit, orjson.loads(canonical)["detail"]) == ("unit", "u-1", {"address": "192.0.2.9"})


def test_many_waiting_requests_share_a_sync(trail):
    syncs, disk = [], under(trail)
    disk.work = lambda files: (syncs.append(files), sync_files(files))
    trail.record(_request(), 0)
    before = len(syncs)
    gevent.joinall([gevent.spawn(trail.record, _request(n), 0) for n in range(200)], raise_error=True)
    assert 1 <= len(syncs) - before <= 4


def test_a_recorded_event_is_synced_before_record_returns(trail):
    order = []

    def slow(files):
        time.sleep(0.05)
        sync_files(files)
        order.append("synced")

    under(trail).work = slow
    trail.record(_request(), 0)
    order.append("returned")
    assert order[:2] == ["synced", "returned"]


def test_a_killed_waiter_harms_nobody(trail):
    under(trail).work = lambda files: (time.sleep(0.05), sync_files(files))
    jobs = [gevent.spawn(trail.record, _request(n), 0) for n in range(4)]
    gevent.sleep(0.01)
    jobs[1].kill()
    gevent.joinall(jobs)
    assert [job.successful() and job.value is None for job in (jobs[0], jobs[2], jobs[3])] == [True] * 3
    trail.record(_request(), 0)


def test_a_disk_that_cannot_sync_acknowledges_nothing(trail, table):
    def fail(files):
        raise OSError(5, "Input/output error")

    disk = under(trail)
    disk.work = fail
    lost = _request()
    with pytest.raises(AuditUnavailable):
        trail.record(lost, 0)
    assert table.ids() == {}, "what is not durable here is not shipped"
    disk.work = sync_files
    ctx = _request()
    trail.record(ctx, 0)
    table.wait_for([lost, ctx])


def test_a_disk_that_hangs_and_then_fails_is_written_again(make, monkeypatch):
    """The kernel takes what the failed sync should have written for written."""
    again, hung = [], []

    def hang_once(files):
        if hung:
            return sync_files(files)
        hung.append(files)
        time.sleep(0.3)
        raise OSError(5, "Input/output error")

    # NOTE: the shipper syncs too, and may be the one whose sync hangs: one alone does, whosever it is.
    monkeypatch.setattr(commit, "AT_ONCE", 1)
    trail = make()
    trail.record(_request(), 200)
    under(trail).work = hang_once
    monkeypatch.setattr(commit, "SLOW_S", 0.05)
    monkeypatch.setattr(type(trail._spool), "sync_failed", lambda spool: again.append(spool.state.suspect))
    with pytest.raises(AuditUnavailable):
        trail.record(_request(), 200)
    monkeypatch.setattr(commit, "SLOW_S", 10.0)
    deadline = time.monotonic() + 10
    while not (again and trail._commit.durable == trail._spool.sequence) and time.monotonic() < deadline:
        gevent.sleep(0.01)
    assert again == [True]
    assert trail._commit.durable == trail._spool.sequence, "what was refused is written again with the next sync"


class Held:
    """Syncs that end when a test says so: each with its own outcome, in any order."""

    def __init__(self, trail):
        self.begun = []
        trail._commit._took_s = 1.0
        under(trail).work = self._work

    def _work(self, files):
        gate = _allocate_lock()
        gate.acquire()
        outcome = []
        self.begun.append((gate, outcome))
        if not gate.acquire(timeout=10):
            raise OSError(5, "nobody ended it")
        if outcome:
            raise OSError(outcome[0], "as the test says")
        sync_files(files)

    def await_begun(self, number):
        end = time.monotonic() + 5
        while len(self.begun) < number and time.monotonic() < end:
            gevent.sleep(0.001)
        assert len(self.begun) == number

    def end(self, number, *error):
        gate, outcome = self.begun[number]
        outcome += error
        gate.release()


@pytest.fixture
def quiet(trail):
    """A trail that asks for no sync by itself: nobody ships."""
    trail._shipper._greenlets[0].kill()
    return trail


class TestOverlappingSyncs:
    def test_who_comes_while_a_sync_is_under_way_does_not_wait_for_it(self, quiet):
        held = Held(quiet)
        first = gevent.spawn(quiet.record, _request(1), 0)
        held.await_begun(1)
        second = gevent.spawn(quiet.record, _request(2), 0)
        held.await_begun(2)
        held.end(1)
        second.get(timeout=5)
        assert not first.ready(), "its own sync has not ended"
        assert quiet._commit.durable == 2, "a later sync covers what came before"
        held.end(0)
        first.get(timeout=5)
        assert quiet._spool.state.head.sequence == 2, "one that ends late takes nothing back"

    def test_no_more_than_so_many(self, quiet):
        held = Held(quiet)
        jobs = []
        for n in range(commit.AT_ONCE):
            jobs.append(gevent.spawn(quiet.record, _request(n), 0))
            held.await_begun(n + 1)
        jobs += [gevent.spawn(quiet.record, _request(n), 0) for n in range(5)]
        gevent.sleep(0.02)
        held.await_begun(commit.AT_ONCE)
        held.end(1)
        held.await_begun(commit.AT_ONCE + 1)
        for n in (0, *range(2, commit.AT_ONCE + 1)):
            held.end(n)
        gevent.joinall(jobs, timeout=5, raise_error=True)
        assert all(job.ready() for job in jobs)

    def test_quick_ones_follow_one_another(self, quiet):
        held = Held(quiet)
        quiet._commit._took_s = 0.0001
        jobs = [gevent.spawn(quiet.record, _request(1), 0)]
        held.await_begun(1)
        jobs.append(gevent.spawn(quiet.record, _request(2), 0))
        gevent.sleep(0.02)
        held.await_begun(1)
        held.end(0)
        held.await_begun(2)
        held.end(1)
        gevent.joinall(jobs, timeout=5, raise_error=True)

    def test_who_fails_after_the_wait_keeps_nobody_else_waiting(self, quiet, monkeypatch):
        held, hub, errors = Held(quiet), gevent.get_hub(), []
        quiet._commit._took_s = 0.0001
        monkeypatch.setattr(hub, "print_exception", lambda context, kind, value, tb: errors.append(str(value)))

        def fail():
            quiet.record(_request(1), 0)
            raise RuntimeError("nobody catches it")

        hub.loop.run_callback(greenlet.greenlet(fail, hub).switch)
        held.await_begun(1)
        job = gevent.spawn(quiet.record, _request(2), 0)
        gevent.sleep(0.01)
        held.end(0)
        held.await_begun(2)
        held.end(1)
        job.get(timeout=5)
        assert errors == ["nobody catches it"]

    def test_one_that_fails_takes_the_others_under_way_with_it(self, quiet, monkeypatch):
        """What it should have written may be forgotten by the kernel, and the others' pages with it."""
        held, again = Held(quiet), []
        monkeypatch.setattr(type(quiet._spool), "sync_failed", lambda spool: again.append(spool.sequence))
        jobs = []
        for n in range(2):
            jobs.append(gevent.spawn(quiet.record, _request(n), 0))
            held.await_begun(n + 1)
        held.end(1, 5)
        gevent.joinall(jobs, timeout=5)
        assert [type(job.exception) for job in jobs] == [AuditUnavailable] * 2
        assert again == [2], "all is written again"
        held.end(0)
        gevent.sleep(0.05)
        assert quiet._commit.durable == 0, "it began before that"
        third = gevent.spawn(quiet.record, _request(3), 0)
        held.await_begun(3)
        held.end(2)
        third.get(timeout=5)
        assert quiet._commit.durable == 3

    def test_each_has_descriptors_of_its_own(self, quiet):
        """Of two syncs over one opening of a file, one alone would hear of an error."""
        given = []
        quiet._commit._took_s = 1.0
        under(quiet).work = lambda files: (given.append(tuple(files)), time.sleep(0.1), sync_files(files))
        jobs = []
        for n in range(2):
            jobs.append(gevent.spawn(quiet.record, _request(n), 0))
            gevent.sleep(0.02)
        gevent.joinall(jobs, timeout=5, raise_error=True)
        assert len(given) == 2
        assert not set(given[0]) & set(given[1])


def test_a_disk_that_hangs_is_refused_soon_and_then_used_again(trail, monkeypatch):
    disk = under(trail)
    monkeypatch.setattr(commit, "SLOW_S", 0.05)
    disk.work = lambda files: (time.sleep(1.0), sync_files(files))
    began = time.monotonic()
    jobs = [gevent.spawn(trail.record, _request(n), 0) for n in range(5)]
    gevent.joinall(jobs)
    assert all(isinstance(job.exception, AuditUnavailable) for job in jobs)
    with pytest.raises(AuditUnavailable):
        trail.record(_request(), 0)
    assert time.monotonic() - began < 0.9
    disk.work = sync_files
    gevent.sleep(1.2)
    trail.record(_request(), 0)


def test_the_database_away_changes_nothing_for_who_is_answered(trail, table, postgres):
    before = _request()
    trail.record(before, 200)
    table.wait_for([before])
    postgres.stop()
    requests = [_request(n) for n in range(600)]
    began = time.monotonic()
    for n, ctx in enumerate(requests):
        (trail.record if n % 50 == 0 else trail.enqueue_finished)(ctx, 200)
    assert time.monotonic() - began < 2
    gevent.sleep(0.5)
    assert trail.pending == 600
    postgres.start()
    table.wait_for([before, *requests])
    assert [row[0] for row in table.rows("sequence")] == list(range(1, 602))


@pytest.mark.skipif(not monkey.is_module_patched("socket"), reason="deadlines hold where gevent has patched")
def test_the_database_frozen_in_the_middle(trail, table, postgres, monkeypatch):
    monkeypatch.setattr(shipper, "_COPY_TIMEOUT_S", 0.3)
    requests = [_request(n) for n in range(900)]
    for n, ctx in enumerate(requests):
        trail.record(ctx, 200) if n % 90 == 0 else trail.enqueue_finished(ctx, 200)
        if n == 300:
            gevent.sleep(0.06)
            postgres.freeze()
        if n == 600:
            gevent.sleep(1)
            postgres.thaw()
    table.wait_for(requests, within_s=15)
    assert [row[0] for row in table.rows("sequence")] == list(range(1, 901))


def test_a_batch_whose_commit_was_not_heard_of_is_there_once(trail, table, monkeypatch):
    """The worst moment for a connection to break: all is committed, and nobody says so."""
    real, failures = trail._store.copy, [1]

    def break_after(pieces, timeout_s):
        real(pieces, timeout_s)
        if failures[0]:
            failures[0] -= 1
            raise AuditUnavailable()

    monkeypatch.setattr(trail._store, "copy", break_after)
    requests = [_request(n) for n in range(40)]
    for ctx in requests:
        trail.enqueue_finished(ctx, 200)
    table.wait_for(requests)
    with gevent.Timeout(20):
        while trail.pending:
            gevent.sleep(0.05)
    table.wait_for(requests)


def test_stop_ships_what_waits(make, table):
    trail = make()
    requests = [_request(n) for n in range(1200)]
    for ctx in requests:
        trail.enqueue_finished(ctx, 200)
    trail.stop()
    table.wait_for(requests)
    with pytest.raises(AuditUnavailable):
        trail.record(_request(), 0)


def test_stop_without_a_database_leaves_it_to_the_successor(make, table, postgres):
    postgres.stop()
    first = make()
    requests = [_request(n) for n in range(20)]
    for ctx in requests:
        first.enqueue_finished(ctx, 200)
    first.stop(timeout_s=0.3)
    postgres.start()
    last = _request()
    make().record(last, 200)
    table.wait_for([*requests, last])
    assert [row[0] for row in table.rows("sequence")] == list(range(1, 22)), "one chain"


_DIES = """
import os, sys, time
from pathlib import Path
from gateway.audit.trail import AuditTrail
from gateway.context import RequestContext
class Nowhere:
    def reserve(self, count): pass
    def connection(self, timeout_s):
        from gateway.errors import DatabaseUnavailable
        raise DatabaseUnavailable()
trail = AuditTrail(Nowhere(), Path(sys.argv[1]), segment_bytes=262144)
trail.start()
for n in range(700):
    ctx = RequestContext(id=f"r-{n}", started_ns=0, method="GET")
    trail.record(ctx, 0) if n % 100 == 0 else trail.enqueue_finished(ctx, 200)
os.kill(os.getpid(), 9)
"""


def test_what_killed_workers_left_is_shipped_by_the_living(trail, table, tmp_path, monkeypatch):
    monkeypatch.setattr(shipper, "_ORPHAN_SCAN_S", 0.1)
    trail._shipper._scan_s = 0.0
    for _ in range(2):
        subprocess.run([sys.executable, "-c", _DIES, str(tmp_path)], cwd=Path.cwd())
    end = time.monotonic() + 8
    while sum(table.ids().values()) < 1400 and time.monotonic() < end:
        gevent.sleep(0.02)
    assert table.ids() == {f"r-{n}": 2 for n in range(700)}
    gevent.sleep(0.2)
    assert trail.pending == 0


def test_a_successor_ships_what_its_killed_predecessor_left(make, table, tmp_path):
    subprocess.run([sys.executable, "-c", _DIES, str(tmp_path)], cwd=Path.cwd())
    make()
    table.wait_for([RequestContext(id=f"r-{n}", started_ns=0) for n in range(700)])
    assert [row[0] for row in table.rows("sequence")] == list(range(1, 701))


def test_an_event_the_database_refuses_holds_up_no_other_and_is_kept(trail, table, tmp_path, counts):
    requests = [_request(n) for n in range(10)]
    for ctx in requests[:5]:
        trail.enqueue_finished(ctx, 200)
    trail._spool.append(b"no event")
    for ctx in requests[5:]:
        trail.enqueue_finished(ctx, 200)
    table.wait_for(requests)
    assert [row[0] for row in table.rows("sequence")] == [1, 2, 3, 4, 5, 7, 8, 9, 10, 11]
    (refused,) = (tmp_path / FOLDER / "refused.ndjson").read_text().splitlines()
    assert (orjson.loads(refused)["sequence"], orjson.loads(refused)["canonical"]) == (6, "no event")
    assert counts["refused"] == 1


def fill(trail, kept):
    while True:
        ctx = _request()
        trail.enqueue_finished(ctx, 200)
        kept.append(ctx)


def test_a_full_spool_refuses_before_work_is_done_and_keeps_room_for_what_runs(make, table, postgres):
    trail = make(segment_bytes=SEGMENT, spool_bytes=2 * SEGMENT)
    postgres.stop()
    kept = []
    while trail.ready:
        kept.append(_request(len(kept)))
        trail.enqueue_finished(kept[-1], 200)
        if len(kept) % 50 == 0:
            gevent.sleep(0.06)
    for n in range(100):
        kept.append(_request(n))
        trail.enqueue_finished(kept[-1], 200)
    with pytest.raises(AuditUnavailable):
        fill(trail, kept)
    postgres.start()
    table.wait_for(kept)
    end = time.monotonic() + 3
    while not trail.ready and time.monotonic() < end:
        gevent.sleep(0.02)
    trail.record(_request(), 200)


def test_the_gateways_role_can_add_and_nothing_else(postgres, trail, table):
    ctx = _request()
    trail.record(ctx, 200)
    table.wait_for([ctx])
    with psycopg.connect(postgres.gateway_dsn, autocommit=True) as connection:
        for statement in (
            "SELECT * FROM audit.event",
            "UPDATE audit.event SET subject = ''",
            "DELETE FROM audit.event",
            "TRUNCATE audit.event",
            "ALTER TABLE audit.event DISABLE TRIGGER ALL",
            "DROP TABLE audit.event",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement)


def test_an_event_of_a_request_says_who_caused_it(trail, table):
    principal = Principal(
        subject="s-1", issuer="https://id.test", audience="staff", role="auditor", permissions=frozenset(),
        token_id="j-1", key_id="k", expires_at_s=0, claims={"org": "o-1", "client_id": "c-1", "purpose": "HOPERAT"},
    )  # fmt: skip
    ctx = _request(client_address="192.0.2.7", principal=principal)
    trail.note("audit.searched", "allowed", ctx=ctx, durable=True, query="patient=x" + "y" * 2000, found="3", empty="")
    trail.note("login", "refused", ctx=_request(), subject="s-2", rule="otp", method="totp")
    end = time.monotonic() + 8
    while len(rows := table.rows("kind, subject, role, client, organisation, purpose, token_id, rule, action")) < 2:
        assert time.monotonic() < end
        gevent.sleep(0.02)
    assert rows == [
        ("audit.searched", "s-1", "auditor", "c-1", "o-1", "HOPERAT", "j-1", "", "R"),
        ("login", "s-2", "", "", "", "", "", "otp", "E"),
    ]
    detail = orjson.loads(table.rows("canonical")[0][0])["detail"]
    assert (len(detail["query"]), detail["found"], "empty" in detail) == (1024, "3", False)


def test_kinds_are_documented():
    documented = (Path(__file__).parents[2] / "docs" / "audit.md").read_text()
    assert [kind for kind in KINDS if f"`{kind}`" not in documented] == []


def test_room_is_made_while_shipping_waits_for_the_database(trail, table, monkeypatch):
    real, held = trail._store.copy, gevent.event.Event()
    monkeypatch.setattr(trail._store, "copy", lambda pieces, timeout_s: (held.wait(), real(pieces, timeout_s)))
    requests = [_request(n) for n in range(3000)]
    for n, ctx in enumerate(requests):
        trail.enqueue_finished(ctx, 200)
        if n % 50 == 0:
            gevent.sleep(0.01)
            assert trail.ready
    assert len(list(trail._spool.folder.glob("*.spool"))) > 3
    held.set()
    table.wait_for(requests, within_s=20)

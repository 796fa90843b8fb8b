"""The audit writer against a real server; tests/store/test_patched.py runs this again under gevent's patches."""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import gevent
import psycopg
import pytest
from msgspec.structs import replace

from gateway.audit.event import build_event
from gateway.audit.spill import adopt_orphans, open_own
from gateway.audit.writer import AuditWriter
from gateway.context import RequestContext
from gateway.errors import AuditUnavailable
from gateway.store.pool import Database


def _event(n=0, **changes):
    ctx = RequestContext(id=f"request-{n}", started_ns=time.monotonic_ns(), method="GET")
    return replace(build_event(ctx, 200), **changes)


class Trail:
    """What the table holds, asked as the administrator."""

    def __init__(self, dsn):
        self._dsn = dsn

    def _ask(self, query):
        with psycopg.connect(self._dsn, autocommit=True) as connection:
            return connection.execute(query).fetchall()

    def ids(self):
        return Counter(str(row[0]) for row in self._ask("SELECT event_id FROM audit.event"))

    def transactions(self):
        return len(self._ask("SELECT DISTINCT xmin::text FROM audit.event"))

    def rows(self, columns):
        return self._ask(f"SELECT {columns} FROM audit.event")

    def clear(self):
        with psycopg.connect(self._dsn, autocommit=True) as connection:
            connection.execute("TRUNCATE audit.event")

    def wait_for(self, count, within_s=5.0):
        end = time.monotonic() + within_s
        while len(self.ids()) < count and time.monotonic() < end:
            gevent.sleep(0.01)
        return self.ids()


@pytest.fixture
def trail(postgres):
    trail = Trail(postgres.admin_dsn)
    trail.clear()
    return trail


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
def writer(database, tmp_path, counts):
    writer = AuditWriter(
        database, tmp_path, node="node-1", queue=50, count=lambda outcome, number: counts.update({outcome: number})
    )
    writer.start()
    yield writer
    writer.stop()


def test_a_recorded_event_is_in_the_table_at_once(writer, trail):
    event = _event(client_address="192.0.2.7", patient="pat-0001", config_version=3)
    writer.record(event)
    assert trail.ids() == {event.event_id: 1}
    assert trail.rows("request_id, phase, outcome, patient, client_address, config_version, node, phi, status") == [
        ("request-0", "outcome", "allowed", "pat-0001", "192.0.2.7", 3, "node-1", False, 200)
    ]
    (occurred, recorded, duration) = trail.rows("occurred_at, recorded_at, duration_us")[0]
    assert abs((recorded - occurred).total_seconds()) < 2
    assert 0 < duration < 10_000_000


def test_an_enqueued_event_follows_soon(writer, trail):
    events = [_event(n) for n in range(30)]
    for event in events:
        writer.enqueue(event)
    assert trail.wait_for(30) == {event.event_id: 1 for event in events}
    assert writer.backlog == 0


def test_the_event_of_a_finished_request_is_made_later_but_says_when_it_was(writer, trail):
    ctx = RequestContext(id="request-7", started_ns=time.monotonic_ns() - 5_000_000, method="PUT")
    finished_s = time.time()
    writer.enqueue_finished(ctx, 204)
    trail.wait_for(1)
    ((request, action, status, duration, occurred),) = trail.rows(
        "request_id, action, status, duration_us, extract(epoch FROM occurred_at)::float"
    )
    assert (request, action, status) == ("request-7", "U", 204)
    assert 5_000 <= duration < 15_000
    assert abs(occurred - finished_s) < 0.01


def test_events_that_nobody_waits_for_share_a_transaction(writer, trail):
    for n in range(30):
        writer.enqueue(_event(n))
        gevent.sleep(0)
    trail.wait_for(30)
    assert trail.transactions() == 1


def test_an_event_that_cannot_be_made_holds_up_no_other(writer, trail, counts):
    writer.enqueue_finished(RequestContext(id="\ud800", started_ns=0, method="GET"), 200)
    writer.enqueue(_event(1))
    assert len(trail.wait_for(1)) == 1
    assert counts["refused"] == 1


def test_many_waiting_requests_share_a_transaction(writer, trail, counts):
    writer.record(_event())
    jobs = [gevent.spawn(writer.record, _event(n)) for n in range(200)]
    gevent.joinall(jobs, raise_error=True)
    assert len(trail.ids()) == 201
    assert trail.transactions() < 40
    assert counts["written"] == 201


def test_an_event_written_twice_is_there_once(writer, trail):
    event = _event()
    for _ in range(3):
        writer.record(event)
    assert trail.ids() == {event.event_id: 1}


def test_the_gateways_role_can_add_and_nothing_else(postgres, writer):
    writer.record(_event())
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


def test_record_fails_fast_while_the_database_is_away_and_then_works(writer, trail, postgres):
    writer.record(_event())
    postgres.stop()
    for _ in range(5):
        began = time.monotonic()
        with pytest.raises(AuditUnavailable):
            writer.record(_event())
        assert time.monotonic() - began < 1.5
    postgres.start()
    end = time.monotonic() + 3
    while True:
        try:
            writer.record(_event())
            break
        except AuditUnavailable:
            assert time.monotonic() < end
            gevent.sleep(0.01)


def test_record_on_a_frozen_server_has_an_end(writer, trail, postgres):
    writer.record(_event())
    postgres.freeze()
    began = time.monotonic()
    with pytest.raises(AuditUnavailable):
        writer.record(_event(), timeout_s=0.5)
    assert time.monotonic() - began < 1.0
    postgres.thaw()


def test_events_wait_in_a_file_while_the_database_is_away(writer, trail, postgres, tmp_path, counts):
    writer.record(_event())
    postgres.stop()
    events = [_event(n) for n in range(300)]
    for event in events:
        writer.enqueue(event)
    end = time.monotonic() + 5
    while writer.backlog and time.monotonic() < end:
        gevent.sleep(0.01)
    assert writer.backlog == 0
    assert writer.spilled_bytes > 0
    assert next(tmp_path.glob("audit-spill-*")).stat().st_mode & 0o077 == 0
    postgres.start()
    assert trail.wait_for(301)
    assert {event.event_id for event in events} <= set(trail.ids())
    while writer.spilled_bytes and time.monotonic() < end + 5:
        gevent.sleep(0.01)
    assert writer.spilled_bytes == 0
    assert (writer.dropped, counts["dropped"]) == (0, 0)


def test_an_event_that_failed_and_is_handed_over_again_comes_once(writer, trail, postgres):
    """What http.accounting does when `record` fails."""
    writer.record(_event())
    event = _event(1)
    postgres.freeze()
    with pytest.raises(AuditUnavailable):
        writer.record(event, timeout_s=0.2)
    writer.enqueue(event)
    postgres.thaw()
    assert trail.wait_for(2)[event.event_id] == 1


def test_stop_writes_what_waits(database, trail, tmp_path):
    writer = AuditWriter(database, tmp_path)
    writer.start()
    events = [_event(n) for n in range(1200)]
    for event in events:
        writer.enqueue(event)
    writer.stop()
    assert len(trail.ids()) == 1200
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(AuditUnavailable):
        writer.record(_event())


def test_stop_without_a_database_keeps_what_waits_for_the_next_worker(database, trail, postgres, tmp_path):
    writer = AuditWriter(database, tmp_path)
    writer.start()
    postgres.stop()
    events = [_event(n) for n in range(20)]
    for event in events:
        writer.enqueue(event)
    writer.stop()
    postgres.start()
    successor = AuditWriter(database, tmp_path)
    successor.start()
    assert trail.wait_for(20) == {event.event_id: 1 for event in events}
    successor.stop()
    assert list(tmp_path.iterdir()) == []


_DIES = """
import os, sys
from pathlib import Path
from gateway.audit.spill import open_own
spill = open_own(Path(sys.argv[1]), 1 << 20)
spill.append([line.encode() for line in sys.stdin.read().splitlines()])
os.write(spill._descriptor, b'')
with open(spill.path, 'ab') as file:
    file.write(b'{"torn": ')
os.kill(os.getpid(), 9)
"""


def test_what_a_killed_worker_left_is_written_once(database, trail, tmp_path):
    template = AuditWriter(database, tmp_path)
    events = [_event(n) for n in range(700)]
    lines = "\n".join(template._encoded(event).decode() for event in events)
    subprocess.run([sys.executable, "-c", _DIES, str(tmp_path)], input=lines, text=True, cwd=Path.cwd())
    assert len(list(tmp_path.glob("audit-spill-*"))) == 1
    writer = AuditWriter(database, tmp_path)
    writer.start()
    assert trail.wait_for(700) == {event.event_id: 1 for event in events}
    writer.stop()
    assert list(tmp_path.iterdir()) == []


def test_an_event_the_database_refuses_holds_up_no_other(writer, trail, tmp_path, counts):
    bad = _event(1, action="?")
    good = [_event(n) for n in range(10)]
    for event in (*good[:5], bad, *good[5:]):
        writer.enqueue(event)
    assert trail.wait_for(10) == {event.event_id: 1 for event in good}
    refused = (tmp_path / "audit-refused.ndjson").read_text().splitlines()
    assert [json.loads(line)["event_id"] for line in refused] == [bad.event_id]
    assert counts["refused"] == 1
    with pytest.raises(AuditUnavailable):
        writer.record(bad)


def test_a_full_queue_moves_to_the_file_instead_of_growing(database, tmp_path, trail):
    writer = AuditWriter(database, tmp_path, queue=50)
    writer.start()
    for n in range(500):
        writer.enqueue(_event(n))
        assert writer.backlog <= 51
    assert writer.spilled_bytes > 0
    assert len(trail.wait_for(500)) == 500
    writer.stop()


class TestSpill:
    def test_bound(self, tmp_path):
        with open_own(tmp_path, 100) as spill:
            assert spill.append([b"x" * 30] * 5) == 3
            assert spill.append([b"y" * 30]) == 0
            assert spill.path.stat().st_size == 93
            rows, position = spill.next_rows(2)
            assert rows == [b"x" * 30] * 2
            spill.shipped(position)
            rows, position = spill.next_rows(10)
            assert rows == [b"x" * 30]
            spill.shipped(position)
            assert spill.path.stat().st_size == 0
            assert spill.append([b"z" * 30]) == 1

    def test_full_disk_keeps_whole_rows(self, tmp_path, monkeypatch):
        with open_own(tmp_path, 1000) as spill:
            spill.append([b"first"])
            real = os.pwrite
            monkeypatch.setattr(os, "pwrite", lambda fd, text, at: real(fd, text[:8], at))
            assert spill.append([b"second", b"third"]) == 1
            monkeypatch.setattr(os, "pwrite", real)
            assert spill.next_rows(10)[0] == [b"first", b"second"]
            spill.append([b"fourth"])
            assert spill.next_rows(10)[0] == [b"first", b"second", b"fourth"]

    def test_no_disk_at_all(self, tmp_path, monkeypatch):
        def fail(*_):
            raise OSError(28, "No space left on device")

        with open_own(tmp_path, 1000) as spill:
            monkeypatch.setattr(os, "pwrite", fail)
            assert spill.append([b"row"]) == 0

    def test_a_living_workers_file_is_not_adopted(self, tmp_path):
        with open_own(tmp_path, 1000) as spill:
            spill.append([b"row"])
            assert adopt_orphans(tmp_path) == []
        (orphan,) = adopt_orphans(tmp_path)
        assert orphan.next_rows(1)[0] == [b"row"]
        assert adopt_orphans(tmp_path) == []
        orphan.close()

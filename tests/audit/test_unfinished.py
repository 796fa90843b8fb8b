"""Requests that were begun and never ended are counted by whoever signs, without anybody asking."""

from __future__ import annotations

import time

import gevent
import psycopg
import pytest

from gateway.audit.columns import COLUMNS, row
from gateway.audit.trail import AuditTrail
from gateway.audit.unfinished import SETTLED_S, SPAN_S, Unfinished
from gateway.errors import DatabaseUnavailable
from gateway.store.pool import Database
from tests.audit.conftest import event

NOW_S = 1_000_000.0


class Clock:
    def __init__(self) -> None:
        self.now_s = NOW_S

    def __call__(self) -> float:
        return self.now_s


def caught_up(clock, count, told):
    unfinished = Unfinished(count, told.append, clock)
    for _ in range(round(SPAN_S / 300)):
        unfinished.look()
    return unfinished


def test_every_moment_is_looked_at_once_and_none_that_may_still_run():
    clock, asked, told = Clock(), [], []
    unfinished = caught_up(clock, lambda since, until: asked.append((since, until)) or 0, told)
    for _ in range(3):
        clock.now_s += 60
        unfinished.look()
    assert asked[0][0] == NOW_S - SETTLED_S - SPAN_S
    assert [until for _, until in asked[:-1]] == [since for since, _ in asked[1:]]
    assert asked[-1][1] == clock.now_s - SETTLED_S
    assert max(until - since for since, until in asked) <= 300


def test_what_was_found_is_told_for_an_hour():
    clock, found, told = Clock(), [0] * 12 + [2, 0, 1], []
    unfinished = caught_up(clock, lambda since, until: found.pop(0) if found else 0, told)
    assert told[-1] == 0
    for expected, later_s in ((2, 60), (2, 60), (3, 60), (3, SPAN_S - 180), (1, 60), (0, 120)):
        clock.now_s += later_s
        unfinished.look()
        assert told[-1] == expected


def test_a_look_that_failed_is_taken_again():
    clock, asked, told = Clock(), [], []

    def away(since, until):
        asked.append(since)
        raise DatabaseUnavailable(retry_after_s=1)

    unfinished = Unfinished(away, told.append, clock)
    for _ in range(2):
        with pytest.raises(DatabaseUnavailable):
            unfinished.look()
    assert (asked, told) == ([NOW_S - SETTLED_S - SPAN_S] * 2, [])


@pytest.fixture
def database(postgres):
    database = Database(postgres.gateway_dsn, pool_max=2)
    database.open()
    yield database
    database.close()


def test_a_living_gateway_counts_them(database, postgres, tmp_path):
    """Of three intents one has an outcome, one may still run; one has only the use of an emergency case."""
    at_ms = round((time.time() - SETTLED_S - SPAN_S + 60) * 1000)
    records = (
        (at_ms, {"request_id": "died", "phase": "intent"}),
        (at_ms, {"request_id": "died", "kind": "break-glass.used"}),
        (at_ms, {"request_id": "ended", "phase": "intent"}),
        (at_ms + 400_000, {"request_id": "ended"}),
        (round(time.time() * 1000), {"request_id": "runs", "phase": "intent"}),
    )
    columns = ", ".join(COLUMNS)
    with psycopg.connect(postgres.admin_dsn, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute("DELETE FROM audit.event; DELETE FROM audit.checkpoint")
        with cursor.copy(f"COPY audit.event ({columns}) FROM STDIN") as copy:
            for number, (began_ms, changes) in enumerate(records, start=1):
                copy.write(row("c" * 16, number, bytes(32), event(number, began_ms, **changes)))
    told: list[int] = []
    trail = AuditTrail(database, tmp_path, segment_bytes=262_144, checkpoint_s=0.1, unfinished=told.append)
    trail.start()
    try:
        end = time.monotonic() + 10
        while not told and time.monotonic() < end:
            gevent.sleep(0.02)
    finally:
        trail.stop()
    assert told == [1]

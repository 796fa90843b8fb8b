"""Batches on their way to the database: bounded, repeated after a failure, never in anybody's way."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from gateway.errors import DatabaseUnavailable
from gateway.units import timeline as timeline_module
from gateway.units.timeline import BATCH, Timeline


class Database:
    def __init__(self):
        self.away = False
        self.documents = []

    def write(self, document, timeout_s):
        if self.away:
            raise DatabaseUnavailable
        self.documents.append(json.loads(document))

    def rows(self, name):
        return [row for document in self.documents for row in document[name]]


@pytest.fixture
def database():
    return Database()


@pytest.fixture
def counted():
    return Counter()


@pytest.fixture
def clock():
    return [1000.0]


@pytest.fixture
def timeline(database, counted, clock):
    count = lambda outcome, number: counted.update({outcome: number})  # noqa: E731
    return Timeline(database.write, held=lambda: ["held"], count=count, node="host/1", now=lambda: clock[0])


UP = {"conn": "c1", "epoch": 5, "agent": "a/1", "kid": "k1"}


def test_a_connection_from_up_to_down(timeline, database, counted, clock):
    timeline.observe("connection.up", "north", UP)
    timeline.observe("unit.up", "north", UP)
    clock[0] = 1010.0
    timeline.observe("connection.down", "north", {"conn": "c1", "why": "silent"})
    timeline.observe("unit.down", "north", {"why": "silent"})
    timeline.used("k1")
    assert timeline.flush()
    kinds = [(row["kind"], row["at_s"], row["conn"], row["why"], row["kid"]) for row in database.rows("events")]
    assert kinds == [("up", 1000.0, "c1", "", "k1"), ("down", 1010.0, "c1", "silent", "")]
    assert database.rows("presence") == [{"unit": "north", "at_s": 1010.0, "why": "silent"}]
    assert database.rows("used") == [{"kid": "k1", "at_s": 1010.0}]
    assert counted == {"written": 2}
    assert timeline.waiting == 0


def test_a_siblings_connection_that_was_lost_with_it(timeline, database):
    timeline.observe("connection.lost", "north", {"conn": "c9", "why": "worker-lost"})
    timeline.flush()
    assert [(row["kind"], row["conn"]) for row in database.rows("events")] == [("down", "c9")]


def test_what_could_not_be_written_waits_in_its_order(timeline, database, clock):
    database.away = True
    timeline.observe("connection.up", "north", UP)
    assert not timeline.flush()
    clock[0] += 1
    timeline.observe("connection.down", "north", {"conn": "c1", "why": "lost"})
    timeline.observe("unit.down", "north", {"why": "lost"})
    assert not timeline.flush()
    database.away = False
    assert timeline.flush()
    assert [row["kind"] for row in database.rows("events")] == ["up", "down"]
    assert database.rows("presence") == [{"unit": "north", "at_s": 1001.0, "why": "lost"}]


def test_what_happens_during_a_write_that_fails_comes_after_it(timeline, database, clock, monkeypatch):
    def fail(document, timeout_s):
        clock[0] += 1
        timeline.observe("connection.down", "north", {"conn": "c1", "why": "lost"})
        timeline.observe("unit.down", "north", {"why": "lost"})
        timeline.used("k1")
        raise DatabaseUnavailable

    timeline.observe("connection.up", "north", UP)
    timeline.used("k1")
    monkeypatch.setattr(timeline, "_write", fail)
    assert not timeline.flush()
    monkeypatch.setattr(timeline, "_write", database.write)
    assert timeline.flush()
    assert [row["kind"] for row in database.rows("events")] == ["up", "down"]
    assert database.rows("presence") == [{"unit": "north", "at_s": 1001.0, "why": "lost"}]
    assert database.rows("used") == [{"kid": "k1", "at_s": 1001.0}]


def test_memory_is_bounded_and_what_is_dropped_is_counted(timeline, counted, monkeypatch):
    monkeypatch.setattr(timeline_module, "MAX_EVENTS", 3)
    for number in range(5):
        timeline.observe("connection.up", "north", {**UP, "conn": str(number)})
    assert counted == {"dropped": 2}
    assert timeline.waiting == 3 + 1


def test_batches_have_a_size(timeline, database):
    for number in range(BATCH + 1):
        timeline.observe("connection.up", f"u{number}", {**UP, "conn": str(number)})
    assert timeline.flush()
    assert timeline.flush()
    assert [len(document["events"]) for document in database.documents] == [BATCH, 1]
    assert [len(document["presence"]) for document in database.documents] == [BATCH, 1]


def test_a_heartbeat_says_who_is_held(timeline, database, clock):
    timeline._heartbeat()
    timeline._heartbeat()
    timeline.flush()
    clock[0] += timeline_module.HEARTBEAT_S
    timeline._heartbeat()
    timeline.flush()
    assert [row["at_s"] for row in database.rows("presence")] == [1000.0, 1030.0]


def test_what_a_peer_said_is_cut_and_has_no_nul(timeline, database):
    timeline.observe("connection.down", "north", {"conn": "c1", "why": "x\0" * 500})
    timeline.flush()
    assert database.rows("events")[0]["why"] == "x" * 64

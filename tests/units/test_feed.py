"""The registry is followed, looked at, asked for in haste, and kept on disk."""

from __future__ import annotations

import gevent
import pytest
from gevent.event import Event

from gateway.errors import DatabaseUnavailable
from gateway.units import feed as feed_module
from gateway.units.feed import COPY, RosterFeed
from gateway.units.model import Changes
from gateway.units.roster import Roster


class Source:
    """A database that can be away."""

    def __init__(self) -> None:
        self.now = Changes(1, whole=True)
        self.away = False
        self.told = Event()
        self.dials = 0
        self.asked: list[int] = []

    def dial(self):
        self.dials += 1
        if self.away:
            raise DatabaseUnavailable
        return self

    def changes(self, after, timeout_s=0.0):
        self.asked.append(after)
        if self.away:
            raise DatabaseUnavailable
        return Changes(self.now.revision, self.now.units, self.now.keys, whole=after == 0)

    def wait(self, timeout_s):
        if self.away:
            raise DatabaseUnavailable
        self.told.wait(timeout_s)
        self.told.clear()

    def close(self):
        pass

    def put(self, changes, *, tell=True):
        self.now = changes
        if tell:
            self.told.set()


@pytest.fixture
def source():
    return Source()


@pytest.fixture
def roster(holder):
    return Roster(holder)


@pytest.fixture
def start(source, roster, tmp_path, monkeypatch):
    monkeypatch.setattr(feed_module, "RETRY_S", 0.005)
    monkeypatch.setattr(feed_module, "COPY_EVERY_S", 0.005)
    started = []

    def begin(poll_s=10.0, clock=lambda: 0.0):
        made = RosterFeed(roster, source.dial, source.changes, tmp_path, poll_s=poll_s, kind=Changes, clock=clock)
        made.start()
        started.append(made)
        return made

    yield begin
    for made in started:
        made.stop()


def until(check, limit_s=2.0):
    with gevent.Timeout(limit_s):
        while not check():
            gevent.sleep(0.002)


def test_known_when_start_returns_and_told_afterwards(start, source, roster, site_key):
    source.put(Changes(5, keys=[site_key().row()]), tell=False)
    start()
    assert (roster.revision, len(roster.keys)) == (5, 1)
    source.put(Changes(6))
    until(lambda: roster.revision == 6)
    assert source.dials == 1


def test_a_lost_notification_is_healed(start, source, roster):
    start(poll_s=0.01)
    source.put(Changes(9), tell=False)
    until(lambda: roster.revision == 9)


def test_a_database_that_went_away_is_read_whole_when_it_is_back(start, source, roster, site_key):
    key = site_key()
    source.put(Changes(5, keys=[key.row()]), tell=False)
    start(poll_s=0.005)
    source.away = True
    until(lambda: source.dials > 2)
    assert key.kid in roster.keys, "the last known keys go on"
    source.put(Changes(2), tell=False)
    source.away = False
    until(lambda: roster.revision == 2)
    assert key.kid not in roster.keys


def test_a_start_without_the_database_takes_the_copy(start, source, roster, holder, tmp_path, site_key):
    key = site_key()
    source.put(Changes(5, keys=[key.row()]), tell=False)
    start()
    copy = tmp_path / COPY
    until(copy.exists)
    assert copy.stat().st_mode & 0o777 == 0o600
    source.away = True
    later = Roster(holder)
    following = RosterFeed(later, source.dial, source.changes, tmp_path, poll_s=1.0, kind=Changes)
    following.start()
    following.stop()
    assert (later.revision, list(later.keys)) == (5, [key.kid])


@pytest.mark.parametrize("content", [b"", b"{", b'{"revision":"x"}'], ids=["empty", "cut", "other"])
def test_a_broken_copy_is_none(start, source, roster, tmp_path, content):
    (tmp_path / COPY).write_bytes(content)
    source.away = True
    start()
    assert roster.revision == 0


def test_haste_asks_once_a_second(start, source, roster):
    now = [100.0]
    following = start(clock=lambda: now[0])
    source.put(Changes(3), tell=False)
    following.hasten()
    assert roster.revision == 3
    asked = len(source.asked)
    following.hasten()
    assert len(source.asked) == asked
    now[0] += 1.0
    source.away = True
    following.hasten()
    assert len(source.asked) == asked + 1

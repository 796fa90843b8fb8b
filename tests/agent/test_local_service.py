"""The connections kept to a local service: how many, for how long, and what is left of one that is closed."""

from __future__ import annotations

import pytest
from gevent.server import StreamServer

from gateway.agent import local_service
from gateway.agent.endpoint import Endpoint
from gateway.agent.local_service import LocalService


class Clock:
    now_s = 100.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def server():
    """Says a word to whoever connects, and waits until he goes."""

    def serve(sock, address):
        sock.sendall(b"word")
        sock.recv(1)

    started = StreamServer(("127.0.0.1", 0), serve)
    started.start()
    yield started
    started.stop()


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def pool(server, clock):
    made = LocalService(Endpoint(False, "127.0.0.1", server.server_port, ""), idle_s=4.0, clock=clock)
    yield made
    made.close()


def used(pool):
    """A connection whose answer is complete."""
    connection = pool.acquire(5.0)
    assert connection.receive(5.0) == b"word"
    return connection


def is_open(connection):
    return connection._sock.fileno() >= 0


def test_what_was_idle_for_too_long_is_closed_when_another_comes_back(pool, clock):
    old, other = used(pool), used(pool)
    pool.release(old)
    clock.now_s += 3.9
    pool.release(other)
    assert is_open(old)
    late = pool.acquire(5.0)
    assert late is other
    clock.now_s += 0.1
    pool.release(late)
    assert not is_open(old)
    assert is_open(late)


def test_no_more_are_kept_than_may_run_at_once(pool, monkeypatch):
    monkeypatch.setattr(local_service, "MAX_IDLE", 2)
    connections = [pool.acquire(5.0) for _ in range(3)]
    for connection in connections:
        assert connection.receive(5.0) == b"word"
        pool.release(connection)
    assert [is_open(connection) for connection in connections] == [True, True, False]


def test_one_that_is_closed_leaves_nothing_in_the_loop(pool):
    connection = used(pool)
    watcher = connection._readable._watcher
    assert watcher.active
    connection.close()
    assert not watcher.active
    assert connection._readable._timer is None


def test_silence_is_a_timeout(pool):
    connection = used(pool)
    with pytest.raises(TimeoutError):
        connection.receive(0.02)
    connection.close()

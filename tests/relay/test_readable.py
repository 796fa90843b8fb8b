"""Receiving with a moment to wake up at: bytes come at once, the moment is kept, and nothing turns the loop."""

from __future__ import annotations

import time

import gevent
import pytest
from gevent import socket

from gateway.relay.readable import PassedOn, Readable


@pytest.fixture
def ends():
    ours, theirs = socket.socketpair()
    readable = Readable(ours)
    yield readable, theirs
    readable.close()
    ours.close()
    theirs.close()


def test_bytes_come_before_the_moment(ends):
    readable, theirs = ends
    gevent.spawn_later(0.01, theirs.sendall, b"hello")
    assert readable.receive_until(100, time.monotonic() + 5) == b"hello"


@pytest.mark.parametrize("left_s", [-1.0, 0.0, 0.02])
def test_nothing_by_the_moment_is_none(ends, left_s):
    readable, _ = ends
    due_s = time.monotonic() + left_s
    assert readable.receive_until(100, due_s) is None
    assert time.monotonic() >= due_s - 0.01  # the hub's clock is that of its last turn


def test_an_earlier_moment_counts_after_a_later_one(ends):
    readable, theirs = ends
    theirs.sendall(b"x")
    assert readable.receive_until(100, time.monotonic() + 60) == b"x"
    began_s = time.monotonic()
    with gevent.Timeout(5):
        assert readable.receive_until(100, began_s + 0.02) is None


def test_a_later_moment_after_an_earlier_one_may_be_told_of_early_and_is_kept(ends):
    readable, theirs = ends
    theirs.sendall(b"x")
    began_s = time.monotonic()
    assert readable.receive_until(100, began_s + 0.02) == b"x"
    with gevent.Timeout(5):
        while readable.receive_until(100, began_s + 0.06) is None and time.monotonic() < began_s + 0.06:
            pass
    assert time.monotonic() >= began_s + 0.06


def test_the_end_of_the_stream_is_empty(ends):
    readable, theirs = ends
    theirs.close()
    assert readable.receive_until(100, time.monotonic() + 5) == b""


def test_what_nobody_receives_turns_no_loop(ends):
    """A watcher that stays armed while bytes wait would."""
    readable, theirs = ends
    theirs.sendall(b"x")
    assert readable.receive_until(100, time.monotonic() + 5) == b"x"
    theirs.sendall(b"y")
    gevent.sleep(0.02)
    began_s, cpu_s = time.monotonic(), time.process_time()
    gevent.sleep(0.3)
    assert time.process_time() - cpu_s < 0.5 * (time.monotonic() - began_s)
    assert readable.receive_until(100, time.monotonic() + 5) == b"y"


def test_a_receiver_that_is_killed_leaves_it_usable(ends):
    readable, theirs = ends
    receiver = gevent.spawn(readable.receive_until, 100, time.monotonic() + 60)
    gevent.sleep(0.01)
    receiver.kill()
    theirs.sendall(b"x")
    assert readable.receive_until(100, time.monotonic() + 5) == b"x"


def test_nothing_is_left_behind(ends):
    readable, theirs = ends
    loop = gevent.get_hub().loop
    before = loop.activecnt
    theirs.sendall(b"x")
    assert readable.receive_until(100, time.monotonic() + 60) == b"x"
    readable.close()
    assert loop.activecnt == before


def test_who_sleeps_while_the_socket_goes_to_another_is_told_so(ends):
    readable, theirs = ends
    receiver = gevent.spawn(readable.receive, 100)
    gevent.sleep(0.01)
    assert readable.waiting
    readable.let_go()
    theirs.sendall(b"for the new owner")
    with gevent.Timeout(5), pytest.raises(PassedOn):
        receiver.get()

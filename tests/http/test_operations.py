"""What /status says of the process."""

from __future__ import annotations

import gevent

from gateway.http.operations import count_greenlets


def test_greenlets_that_have_not_ended_are_counted():
    gevent.idle()  # the hub is one itself
    before = count_greenlets()
    waiting = [gevent.spawn(gevent.sleep, 60) for _ in range(7)]
    gevent.idle()
    assert count_greenlets() == before + 7
    gevent.killall(waiting)
    assert count_greenlets() == before

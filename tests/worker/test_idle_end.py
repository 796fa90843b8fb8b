"""An idle connection ends, and its client begins to send at the same moment."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import gevent
import pytest
from gevent import get_hub, socket

from fastpath.http import HeadReader
from fastpath.loop import Outbox
from fastpath.responses import RequestIds
from fastpath.target import canonical_path
from gateway.http1.connection import Connection
from gateway.http1.deadlines import Deadlines
from gateway.http1.limits import SECOND_NS, Limits

REQUEST = b"GET / HTTP/1.1\r\nHost: g\r\n\r\n"


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    start_response("200 OK", [])
    return [b"ok"]


class Served:
    """A connection whose clock stands still until the test moves it, and its client's end."""

    def __init__(self) -> None:
        self.client, self.sock = socket.socketpair()
        limits = Limits()
        self.service: Any = SimpleNamespace(
            application=application, limits=limits, deadlines=Deadlines(time.monotonic_ns()),
            ids=RequestIds(os.urandom),
            reader=HeadReader(canonical_path, limits.max_target_bytes, limits.max_head_bytes, limits.max_fields),
            outbox=Outbox(get_hub().loop.run_callback, time.monotonic_ns), date=b"", draining=False, keep_alive=True,
            observed=False, count=lambda: True,
        )  # fmt: skip
        self.connection = Connection(self.service, self.sock, {"REQUEST_METHOD": None})
        self.greenlet = gevent.spawn(self._serve)
        while not self.connection.idle:
            gevent.sleep(0)

    def _serve(self) -> None:
        self.connection._greenlet = gevent.getcurrent()
        self.connection.serve()
        self.sock.close()

    def expire(self) -> None:
        """As the worker does that leaves, from the hub."""
        get_hub().loop.run_callback(self.connection.expire)


@pytest.fixture
def served() -> Iterator[Served]:
    made = Served()
    with gevent.Timeout(5):
        yield made
    made.greenlet.kill()
    made.client.close()
    made.sock.close()


@pytest.mark.parametrize(("draining", "status"), [(True, b"503"), (False, b"200")])
def test_a_request_that_has_come_is_answered(served: Served, draining: bool, status: bytes) -> None:
    served.service.draining = draining
    served.client.sendall(REQUEST)
    served.expire()
    assert served.client.recv(4096).split()[1] == status


def test_one_that_was_under_way_is_not_answered_with_a_reset(served: Served) -> None:
    served.expire()
    assert served.client.recv(1) == b""
    assert not served.connection.idle
    served.client.sendall(REQUEST)
    gevent.sleep(0)
    assert served.client.recv(1) == b""
    assert not served.greenlet.dead
    served.client.shutdown(socket.SHUT_WR)
    served.greenlet.join(3)
    assert served.greenlet.dead


def test_a_client_that_does_not_close_is_waited_for_briefly(served: Served) -> None:
    served.expire()
    assert served.client.recv(1) == b""
    later_ns = time.monotonic_ns() + served.service.limits.idle_linger_ns + SECOND_NS
    get_hub().loop.run_callback(served.service.deadlines.advance, later_ns)
    served.greenlet.join(3)
    assert served.greenlet.dead

"""The real agent between a real gateway and a real service: held uploads, and stopping in order."""

from __future__ import annotations

import signal
import socket
import threading
import time

import pytest

pytestmark = pytest.mark.integration


@pytest.fixture
def served(rig):
    """A service that answers with the body it got, when it may."""
    may_answer = threading.Event()
    may_answer.set()

    def behave(sock: socket.socket, head: bytes, body: bytes) -> None:
        may_answer.wait(8)
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b" % (len(body), body))

    service = rig.service(behave)
    service.may_answer = may_answer
    service.agent = rig.agent(service.port)
    rig.settle(rig.UNIT)
    return service


def begin_upload(rig, worker, size, first):
    caller = rig.caller(rig.pids()[worker])
    connection = caller.connection
    connection.putrequest("POST", f"/bulk/v1/{rig.UNIT}/x")
    connection.putheader("Content-Length", str(size))
    connection.putheader("Authorization", f"Bearer {rig.platform.tokens['PRACTITIONER']}")
    connection.endheaders(first)
    return caller


@pytest.mark.parametrize("size", [1_000, 190_000])
def test_an_upload_that_breaks_off_reaches_no_service(rig, served, size, wait):
    for worker in range(4):
        caller = begin_upload(rig, worker, size, b"x" * (size // 2))
        wait(lambda: rig.open_streams() > 0)
        time.sleep(0.05)
        caller.vanish()
        wait(lambda: rig.open_streams() == 0)
    assert served.seen == []


@pytest.mark.parametrize("size", [1_000, 190_000])
def test_an_upload_that_takes_its_time_arrives_whole(rig, served, size):
    for worker in range(4):
        caller = begin_upload(rig, worker, size, b"a" * (size // 2))
        time.sleep(0.1)
        assert len(served.seen) == worker
        caller.connection.send(b"b" * (size - size // 2))
        answer = caller.connection.getresponse()
        assert answer.read() == b"a" * (size // 2) + b"b" * (size - size // 2)


def test_a_long_upload_is_not_held(rig, served, wait):
    caller = begin_upload(rig, 0, 400_000, b"a" * 200_000)
    wait(lambda: rig.open_streams() > 0)
    time.sleep(0.2)
    caller.connection.send(b"b" * 200_000)
    assert len(caller.connection.getresponse().read()) == 400_000


def test_it_stops_in_order(rig, served, wait):
    served.may_answer.clear()
    found = []
    caller = rig.caller(rig.pids()[0])
    running = threading.Thread(target=lambda: found.append(caller("GET", f"/bulk/v1/{rig.UNIT}/x")), daemon=True)
    running.start()
    wait(lambda: served.seen)
    served.agent.send_signal(signal.SIGTERM)

    def refused():
        answer = rig.caller(rig.pids()[1])("GET", f"/probe/v1/{rig.UNIT}/x")
        return answer.status == 503 and answer.problem["delivery"] == "not_dispatched"

    wait(refused, 20)
    # A request may have been on its way when the signal came; from here on there is none.
    seen = len(served.seen)
    assert served.agent.poll() is None
    served.may_answer.set()
    running.join(5)
    assert found[0].status == 200
    assert served.agent.wait(5) == 0
    assert len(served.seen) == seen

"""Workers that die or are replaced while units are connected."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import threading
import time

import psutil
import pytest

pytestmark = pytest.mark.integration


def by_path(unit, request):
    """/before: nothing; /after: ACK; /during: a part of an answer; anything else: an answer."""
    target = request.request.target
    if target == "/before":
        return
    unit.ack(request.stream)
    if target == "/after":
        return
    if target == "/during":
        unit.answer(request.stream, 200, b"x" * 200_000, end=False)
        return
    unit.answer(request.stream, 200, b"fine")


def test_the_worker_that_holds_the_unit_is_killed(rig, wait):
    rig.may_lose_workers = True
    unit = rig.unit(by_path)
    other = rig.routes_to(unit)["mesh"]
    before, after, during, own = (rig.caller(pid) for pid in (other, other, other, unit.worker))
    before.send("POST", f"/bulk/v1/{rig.UNIT}/before", b"1")
    after.send("POST", f"/bulk/v1/{rig.UNIT}/after", b"1")
    during.send("GET", f"/bulk/v1/{rig.UNIT}/during")
    own.send("GET", f"/bulk/v1/{rig.UNIT}/after")
    wait(lambda: len(unit.requests) == 4)
    streaming = during.connection.getresponse()
    time.sleep(0.2)
    killed_s = time.monotonic()
    os.kill(unit.worker, signal.SIGKILL)

    for caller, delivery in ((before, "unknown"), (after, "dispatched")):
        response = caller.connection.getresponse()
        problem = json.loads(response.read())
        assert (response.status, problem["type"]) == (502, "urn:caregate:problem:unit-disconnected")
        assert problem["delivery"] == delivery
        assert problem["retryable"] is False
        assert response.headers["Relay-Source"] == "gateway"
    with pytest.raises((http.client.IncompleteRead, OSError)):
        streaming.read()
    with pytest.raises((http.client.HTTPException, OSError)):
        own.connection.getresponse()
    assert time.monotonic() - killed_s < 3

    absent = rig.caller(other)("GET", f"/probe/v1/{rig.UNIT}/x")
    assert (absent.status, absent.problem["type"]) == (503, "urn:caregate:problem:unit-not-connected")
    assert absent.problem["why"] == "worker-lost"
    assert absent.problem["last_seen"]
    wait(lambda: len(rig.pids()) == 4)


def test_the_real_agent_is_back_within_ten_seconds(rig, wait):
    rig.may_lose_workers = True
    service = rig.service(
        lambda sock, head, body: sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
    )
    rig.agent(service.port, rig.UNIT, None, "--connections", "1")
    rig.settle(rig.UNIT)
    holder = next(pid for pid, state in rig.states().items() for unit in state["units"] if unit["connections"])
    caller = rig.caller(next(pid for pid in rig.pids() if pid != holder))
    assert caller("GET", f"/probe/v1/{rig.UNIT}/x").body == b"ok"
    os.kill(holder, signal.SIGKILL)
    killed_s = time.monotonic()
    wait(lambda: caller("GET", f"/probe/v1/{rig.UNIT}/x").status == 200, 10, 0.05)
    assert time.monotonic() - killed_s < 10
    wait(lambda: len(rig.pids()) == 4 and rig.states())


def test_two_connections_survive_one_killed_worker(rig, wait):
    """By default an agent holds two, on different workers: once the dead one is gone, no new request fails."""
    rig.may_lose_workers = True
    wait(lambda: len(rig.states()) == 4, 30)  # the one that follows the last test's victim has joined the others
    service = rig.service(
        lambda sock, head, body: sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
    )
    rig.agent(service.port)

    def holders():
        states = rig.states().items()
        return {pid for pid, state in states for unit in state["units"] if unit["connections"]}

    wait(lambda: len(holders()) == 2, 30)
    victim, kept = sorted(holders())
    asking = next(pid for pid in rig.pids() if pid not in (victim, kept))
    callers = [rig.caller(pid) for pid in (asking, kept)]

    def known_gone():
        """Not there any more, and those that are know of no connection that it had."""
        states = rig.states()
        told = {pid: sum(unit["siblings"] for unit in state["units"]) for pid, state in states.items()}
        here = {pid: sum(len(unit["connections"]) for unit in state["units"]) for pid, state in states.items()}
        return not psutil.pid_exists(victim) and told[asking] == sum(here.values()) - here[asking]

    os.kill(victim, signal.SIGKILL)
    wait(known_gone)
    found = [caller("GET", f"/probe/v1/{rig.UNIT}/x") for _ in range(40) for caller in callers]
    assert [answer.problem for answer in found if answer.status != 200] == []
    wait(lambda: len(rig.pids()) == 4 and len(holders()) == 2, 30)


def test_rolling_replacement_with_units_connected(rig, wait):
    """HUP: new workers, the old ones accept until those do; open requests finish, and none fails."""
    rig.may_lose_workers = True

    def behave(sock, head, body):
        if b"/slow" in head:
            time.sleep(2)
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")

    service = rig.service(behave)
    agent = psutil.Process(rig.agent(service.port).pid)
    rig.settle(rig.UNIT)
    old = set(rig.pids())

    def links():
        return {link.laddr.port for link in agent.net_connections() if link.raddr and link.raddr.port == rig.port}

    wait(lambda: len(links()) == 2)
    before = links()
    slow = [rig.caller(pid) for pid in sorted(old)]
    for caller in slow:
        caller.send("GET", f"/bulk/v1/{rig.UNIT}/slow")
    stop = threading.Event()
    seen = []

    def load():
        while not stop.is_set():
            connection = http.client.HTTPConnection("127.0.0.1", rig.port, timeout=20)
            try:
                connection.request(
                    "GET",
                    f"/bulk/v1/{rig.UNIT}/x",
                    headers={"Authorization": f"Bearer {rig.platform.tokens['PRACTITIONER']}"},
                )
                response = connection.getresponse()
                seen.append((response.status, response.read()))
            except (OSError, http.client.HTTPException) as error:
                seen.append((type(error).__name__, b""))
            finally:
                connection.close()
            time.sleep(0.01)

    wait(lambda: sum(b"/slow" in head for head in service.seen) == 4)
    threads = [threading.Thread(target=load) for _ in range(3)]
    for thread in threads:
        thread.start()
    arbiter = rig.platform.children["gateway"].process
    try:
        arbiter.send_signal(signal.SIGHUP)
        wait(lambda: len(rig.pids()) == 4 and not old & set(rig.pids()), 25)
        time.sleep(0.5)
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)
    assert {caller.connection.getresponse().status for caller in slow} == {200}
    failed = [(status, body) for status, body in seen if (status, body) != (200, b"ok")]
    assert len(seen) > 50
    assert failed == []
    assert links() == before, "its connections were handed over"


def test_requests_that_wait_for_a_worker_that_dies(rig, wait):
    """What had not left for it was certainly not dispatched: relay-path-unavailable, and any method may be repeated."""
    rig.may_lose_workers = True
    unit = rig.unit(by_path)
    asking = rig.routes_to(unit)["mesh"]
    stuffing = [rig.caller(asking) for _ in range(10)]
    waiting = [rig.caller(asking) for _ in range(3)]
    os.kill(unit.worker, signal.SIGSTOP)
    try:
        for caller in stuffing:
            threading.Thread(
                target=_send_quietly, args=(caller, f"/bulk/v1/{rig.UNIT}/before", b"x" * 400_000), daemon=True
            ).start()
        time.sleep(0.5)
        for caller in waiting:
            caller.send("POST", f"/bulk/v1/{rig.UNIT}/fine", b"1")
        time.sleep(0.3)
    finally:
        os.kill(unit.worker, signal.SIGKILL)
    for caller in waiting:
        response = caller.connection.getresponse()
        problem = json.loads(response.read())
        assert (response.status, problem["type"]) == (503, "urn:caregate:problem:relay-path-unavailable")
        assert problem["delivery"] == "not_dispatched"
        assert problem["retryable"] is True
        assert int(response.headers["Retry-After"]) >= 1
    assert not [event for event in unit.requests if event.request.target == "/fine"]


def _send_quietly(caller, path, body):
    with contextlib.suppress(OSError, http.client.HTTPException):
        caller.send("POST", path, body)
        caller.connection.getresponse().read()

"""Real workers that leave with a unit connected."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gevent
import psutil
import pytest

from tests.worker.conftest import Server

HERE = Path(__file__).parent
WORKERS, MOST = 2, 40
SHARED = ("-c", str(HERE / "front.conf.py"))
Start = Callable[..., Server]


@pytest.fixture
def start(rig: Any) -> Iterator[Start]:
    running: list[Server] = []

    def make(*options: str, grace_s: int) -> Server:
        environ = {"TEST_RUN_DIR": str(rig.run_dir), "PYTHONPATH": f"{HERE.parent.parent}:{HERE}"}
        fixed = ("-w", str(WORKERS), "--graceful-timeout", str(grace_s), "--chdir", str(HERE), *SHARED)
        running.append(
            Server(
                rig.run_dir / "notes", *fixed, *options, application="front:app", TEST_GRACE_S=str(grace_s), **environ
            )
        )
        return running[-1]

    yield make
    for unit in rig.units:
        unit.cut()
    for server in running:
        server.stop()


def workers(server: Server) -> set[int]:
    return {child.pid for child in psutil.Process(server.process.pid).children()}


def answered(rig: Any, server: Server, path: str = "a") -> Any:
    return rig.fetch(server.address[1], "GET", f"/units/hospital/{path}")


def await_unit(rig: Any, server: Server) -> None:
    """Until all workers know the unit, as far as nine requests in a row can tell."""
    rig.until(lambda: all(answered(rig, server).status == 200 for _ in range(9)), 10)


def keep(rig: Any, server: Server, index: int) -> None:
    """A unit's connection; asked to, it dials again, and ends the old one once that has nothing to do."""
    place = SimpleNamespace(port=server.address[1])
    old = None
    while True:
        unit = rig.unit(place, index=index, wait=False)
        if unit.status == 101:
            if old is not None:
                gevent.spawn(end, rig, old)
            old = unit
            rig.until(lambda unit=unit: unit.goaway or unit.over.is_set(), 30)
        gevent.sleep(0.01)


def end(rig: Any, unit: Any) -> None:
    rig.until(lambda: not unit.session.streams, 10)
    unit.cut()


def test_after_max_requests_they_are_replaced_and_no_request_fails(rig: Any, start: Start) -> None:
    server = start("--max-requests", str(MOST), "--max-requests-jitter", "0", grace_s=5)
    answers: Counter[Any] = Counter()
    stop = gevent.event.Event()

    def ask() -> None:
        while not stop.is_set():
            answer = answered(rig, server)
            answers[answer.status, answer.body] += 1
            gevent.sleep(0.02)

    unit = [gevent.spawn(keep, rig, server, index) for index in range(2)]
    rig.until(lambda: len(workers(server)) == WORKERS, 10)
    first = workers(server)
    await_unit(rig, server)
    callers = [gevent.spawn(ask) for _ in range(2)]
    try:
        rig.until(lambda: not first & workers(server), 25)
    finally:
        stop.set()
        gevent.joinall(callers, timeout=5, raise_error=True)
        gevent.killall(unit)
    assert answers == {(200, b"/a"): answers.total()}


def hang_at_b(unit: Any, event: Any) -> None:
    unit.ack(event.stream)
    if event.request.target == "/a":
        unit.answer(event.stream)


def test_what_hangs_is_answered_before_the_worker_ends(rig: Any, start: Start) -> None:
    server = start(grace_s=4)
    unit = rig.unit(SimpleNamespace(port=server.address[1]), hang_at_b)
    await_unit(rig, server)
    asked = len(unit.bodies)
    call = gevent.spawn(answered, rig, server, "b")
    rig.until(lambda: len(unit.bodies) > asked)
    server.process.send_signal(signal.SIGTERM)
    answer = call.get(timeout=10)
    assert (answer.status, answer.problem["type"]) == (502, "urn:caregate:problem:unit-disconnected")
    assert answer.problem["delivery"] == "dispatched"

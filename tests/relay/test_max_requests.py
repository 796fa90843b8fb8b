"""Real workers that leave after as many requests as they may serve, with a unit connected."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gevent
import psutil
import pytest

from tests.worker.conftest import Server

HERE = Path(__file__).parent
WORKERS, MOST = 3, 40


@pytest.fixture
def server(rig: Any) -> Iterator[Server]:
    options = ("-w", str(WORKERS), "--max-requests", str(MOST), "--max-requests-jitter", "0", "--chdir", str(HERE))
    environ = {"TEST_RUN_DIR": str(rig.run_dir), "PYTHONPATH": f"{HERE.parent.parent}:{HERE}"}
    running = Server(rig.run_dir / "notes", *options, application="front:app", **environ)
    yield running
    running.stop()


def workers(server: Server) -> set[int]:
    return {child.pid for child in psutil.Process(server.process.pid).children()}


def answered(rig: Any, server: Server) -> Any:
    return rig.fetch(server.address[1], "GET", "/units/hospital/a")


def keep(rig: Any, server: Server, index: int) -> None:
    """A unit's connection, dialled again before it ends if the gateway asks for that."""
    place = SimpleNamespace(port=server.address[1])
    while True:
        unit = rig.unit(place, index=index, wait=False)
        rig.until(lambda unit=unit: unit.status != 101 or unit.goaway or unit.over.is_set(), 30)
        gevent.sleep(0.01)


def test_they_are_replaced_and_no_request_fails(rig: Any, server: Server) -> None:
    answers: Counter[Any] = Counter()
    stop = gevent.event.Event()

    def ask() -> None:
        while not stop.is_set():
            answer = answered(rig, server)
            answers[answer.status, answer.body] += 1
            gevent.sleep(0.005)

    unit = [gevent.spawn(keep, rig, server, index) for index in range(2)]
    rig.until(lambda: len(workers(server)) == WORKERS, 10)
    first = workers(server)
    # All of them know the unit, as far as nine requests in a row can tell.
    rig.until(lambda: all(answered(rig, server).status == 200 for _ in range(9)), 10)
    callers = [gevent.spawn(ask) for _ in range(3)]
    try:
        rig.until(lambda: not first & workers(server), 20)
    finally:
        stop.set()
        gevent.joinall(callers, timeout=5, raise_error=True)
        gevent.killall(unit)
    assert answers == {(200, b"/a"): answers.total()}

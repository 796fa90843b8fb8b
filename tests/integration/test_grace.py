"""A request that still runs at the end of the drain grace: its caller, the log and the audit trail are told."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from gateway.demo import story
from gateway.demo.platform import Platform

pytestmark = pytest.mark.integration
LOOKUP = "/terminology/v1/lookup?code=2160-0&system=http%3A%2F%2Floinc.org"


class QuietPlatform(Platform):
    """The gateway with a short grace, and a cloud service that takes requests and never answers."""

    def start(self) -> None:
        self._env.update(CAREGATE_DRAIN_GRACE_S="3")
        self.silent = socket.create_server(("127.0.0.1", self.ports.upstream))
        self._issue_tokens(self.start_gateway())

    def audited(self) -> list[tuple[Any, ...]]:
        assert self._postgres is not None
        with psycopg.connect(self._postgres.admin_dsn) as connection:
            return connection.execute("SELECT route, status FROM audit.event WHERE status = 503").fetchall()


@pytest.fixture
def quiet(tmp_path: Path, base_port: Callable[[], int]) -> Any:
    platform = QuietPlatform(tmp_path, base_port(), workers=1, tell=lambda text: None)
    try:
        platform.start()
        yield platform
    finally:
        platform.stop()
        platform.silent.close()


def test_a_call_that_hangs_is_answered_logged_and_audited(quiet: QuietPlatform) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", quiet.ports.gateway, timeout=20)
    connection.request("GET", LOOKUP, headers={"Authorization": f"Bearer {quiet.tokens[story.PATIENT]}"})
    upstream, _ = quiet.silent.accept()
    assert upstream.recv(1000)
    gateway = quiet.children["gateway"]
    timer = threading.Timer(0.01, gateway.signal, (15,))
    timer.start()
    answer = connection.getresponse()
    problem = json.loads(answer.read())
    assert (answer.status, problem["type"]) == (503, "urn:caregate:problem:grace-ended")
    assert problem["delivery"] == "unknown"
    assert gateway.process is not None
    assert gateway.process.wait(15) == 0
    request_id = answer.headers["X-Request-Id"]
    lines = [json.loads(line) for line in gateway.log.read_text().splitlines() if request_id in line]
    assert [line["status"] for line in lines] == [503]
    assert [status for _, status in quiet.audited()] == [503]

"""Nothing that was answered is missing from the trail, whatever died meanwhile."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections import Counter

import psycopg
import pytest

from gateway.demo import story

pytestmark = pytest.mark.integration

PHI = f"/portal/v1/patients/{story.OWN}/appointments"
RELAYED = f"/units/v1/{story.HOSPITAL}/patients/{story.OWN}/lab-results"
REFUSED = f"/portal/v1/patients/{story.OTHER}/appointments"
PLAIN = "/terminology/v1/lookup?code=2160-0&system=http%3A%2F%2Floinc.org"


class Callers:
    """Threads that ask and remember what they were answered: request id -> status."""

    def __init__(self, call) -> None:
        self._call = call
        self._stop = threading.Event()
        self.answered: dict[str, int] = {}
        self._threads = [threading.Thread(target=self._ask, args=(path,)) for path in (PHI, RELAYED, REFUSED, PLAIN)]
        for thread in self._threads:
            thread.start()

    def _ask(self, path: str) -> None:
        while not self._stop.is_set():
            try:
                answer = self._call("GET", path, "PATIENT")
            except OSError:
                continue  # a killed worker's own callers see the connection break
            if answer.status != 429:  # a flood from an address leaves no events
                self.answered[answer.headers["X-Request-Id"]] = answer.status

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def outcomes(platform, answered) -> Counter[tuple[str, int]]:
    with psycopg.connect(platform._postgres.admin_dsn) as connection:
        return Counter(
            connection.execute(
                "SELECT request_id, status FROM audit.event WHERE phase = 'outcome' AND request_id = ANY(%s)",
                (list(answered),),
            ).fetchall()
        )


def test_nothing_that_was_answered_is_missing(platform, call, worker_pids, kill, wait) -> None:
    """Workers are killed, PostgreSQL is stopped, a worker is killed while it is: then all of it is there, once."""
    wait(lambda: call("GET", RELAYED, "PATIENT").status == 200)
    callers = Callers(call)
    try:
        time.sleep(0.5)
        kill(worker_pids()[0])
        time.sleep(0.5)
        platform._postgres.stop()
        try:
            time.sleep(1)
            kill(worker_pids()[-1])
            time.sleep(1.5)
        finally:
            platform._postgres.start()
        time.sleep(0.5)
    finally:
        callers.stop()
    assert Counter(callers.answered.values()).keys() >= {200, 404}
    expected = Counter(callers.answered.items())
    wait(lambda: sum(outcomes(platform, callers.answered).values()) >= len(expected), 60)
    assert outcomes(platform, callers.answered) == expected


def test_the_chains_are_whole(platform) -> None:
    """After all that was done to this platform."""
    argv = [sys.executable, "-m", "gateway.cli.main", "audit", "verify", "--dsn", platform._postgres.admin_dsn]
    result = subprocess.run(argv, capture_output=True, text=True, check=False, env=platform._env)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "verify: ok" in result.stdout


@pytest.mark.parametrize("token", ["", "a.b.c"], ids=["no token", "a bad token"])
def test_a_refused_dial_of_a_unit_is_in_the_trail(platform, call, wait, token) -> None:
    answer = call(
        "GET", "/relay/v1/connect", token, Upgrade="websocket", Connection="Upgrade", Sec_WebSocket_Version="13",
        Sec_WebSocket_Key="dGhlIHNhbXBsZSBub25jZQ==", Sec_WebSocket_Protocol="caregate.relay.v1",
    )  # fmt: skip
    assert answer.status == 401
    query = "SELECT outcome, rule, status, client_address FROM audit.event WHERE request_id = %s"

    def kept() -> list[tuple[object, ...]]:
        with psycopg.connect(platform._postgres.admin_dsn) as connection:
            return connection.execute(query, (answer.headers["X-Request-Id"],)).fetchall()

    assert wait(kept) == [("refused", "token:unit", 401, "127.0.0.1")]


def events(platform, kind: str) -> list[dict[str, object]]:
    with psycopg.connect(platform._postgres.admin_dsn) as connection:
        query = "SELECT canonical FROM audit.event WHERE kind = %s ORDER BY occurred_at"
        return [json.loads(text) for (text,) in connection.execute(query, (kind,))]


def test_what_happens_beside_accesses_is_in_the_trail(platform, wait) -> None:
    """Workers, units that come and go, a configuration with the digest before."""
    argv = [sys.executable, "-m", "gateway.cli.main", "config", "reload", "--run-dir", str(platform.directory / "run")]
    result = subprocess.run(argv, capture_output=True, text=True, check=False, env=platform._env)
    assert result.returncode == 0, result.stderr
    changes = wait(lambda: (found := events(platform, "config")) and len(found) >= 4 and found)
    assert {change["detail"]["source"] for change in changes} == {"file"}
    assert all(len(change["detail"]["before"]) == len(change["detail"]["digest"]) == 64 for change in changes)
    wait(lambda: len({event["detail"]["worker"] for event in events(platform, "worker.started")}) >= 5, 30)
    assert {event["unit"] for event in events(platform, "unit.up")} >= {story.HOSPITAL}
    assert all(event["detail"]["conn"] for event in events(platform, "unit.up"))
    assert {event.get("client_address") for event in events(platform, "unit.up")} == {"127.0.0.1"}

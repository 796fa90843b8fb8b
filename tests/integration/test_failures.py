"""What callers see when a part of the platform dies, and that it comes back."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import psycopg
import pytest

from gateway.demo import story

pytestmark = pytest.mark.integration

LAB = f"/units/v1/{story.HOSPITAL}/patients/{story.OWN}/lab-results"
APPOINTMENTS = f"/portal/v1/patients/{story.OWN}/appointments"


def reload_configuration(platform):
    argv = [sys.executable, "-m", "gateway.cli.main", "config", "reload"]
    argv += ["--run-dir", str(platform.directory / "run")]
    return subprocess.run(argv, capture_output=True, text=True, check=False, env=platform._env)


def test_unit_is_reached_through_every_worker(call, worker_pids):
    assert len(worker_pids()) == 4
    answers = [call("GET", LAB, "PATIENT") for _ in range(60)]
    assert {a.status for a in answers} == {200}
    assert {a.headers["Relay-Source"] for a in answers} == {"unit"}


def test_killed_worker(call, worker_pids, kill, wait):
    before = set(worker_pids())
    for pid in before:
        kill(pid)
        allowed = {200, 502, 503}
        until = time.monotonic() + 30
        back = None
        while time.monotonic() < until:
            try:
                answer = call("GET", LAB, "PATIENT")
            except OSError:
                continue  # its own callers see the connection break
            assert answer.status in allowed, answer.body
            if answer.status == 502:
                assert answer.json["type"].endswith("unit-disconnected")
                assert answer.json["delivery"] in ("unknown", "dispatched", "not_dispatched")
            if answer.status == 200 and pid not in worker_pids():
                back = time.monotonic()
                break
            time.sleep(0.02)
        assert back is not None, "the unit was not back within 30 s"
    wait(lambda: len(worker_pids()) == 4 and not before & set(worker_pids()))
    wait(lambda: all(call("GET", LAB, "PATIENT").status == 200 for _ in range(12)))


def test_postgresql_stopped_and_started(platform, call, wait):
    postgres = platform._postgres
    assert call("GET", APPOINTMENTS, "PATIENT").status == 200
    postgres.stop()
    try:
        started = time.monotonic()
        answer = call("GET", APPOINTMENTS, "PATIENT")
        assert answer.status == 503
        assert answer.headers["Retry-After"]
        assert time.monotonic() - started < 8
        lab = call("GET", LAB, "PATIENT")
        assert lab.status == 200, "the audit trail waits on the disk, units need no database"
    finally:
        postgres.start()
    wait(lambda: call("GET", APPOINTMENTS, "PATIENT").status == 200, 5)
    wait(lambda: all(call("GET", APPOINTMENTS, "PATIENT").status == 200 for _ in range(12)), 10)


def test_reload_under_load_fails_no_request(platform, call, wait):
    stop = threading.Event()
    seen: list[int] = []

    def load() -> None:
        while not stop.is_set():
            seen.append(call("GET", APPOINTMENTS, "PATIENT").status)

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    versions = []
    try:
        for _ in range(5):
            result = reload_configuration(platform)
            assert result.returncode == 0, result.stderr + result.stdout
            versions.append(call.ops("/status")["config"]["version"])
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert len(seen) > 50
    assert set(seen) == {200}
    assert versions == sorted(set(versions)), "each reload is a new version"


def test_refused_reload_changes_nothing(platform, call):
    path = Path(platform._env["CAREGATE_CONFIG_PATH"])
    good = path.read_text()
    before = call.ops("/status")["config"]
    try:
        # Of a controller: apps name roles too.
        of_a_route = "audiences: [patient-app]\n    roles: [patient]"
        path.write_text(good.replace(of_a_route, of_a_route.replace("[patient]", "[nobody]"), 1))
        result = reload_configuration(platform)
        assert result.returncode == 1
        assert "nobody" in result.stdout + result.stderr
        assert "controllers." in result.stdout + result.stderr
    finally:
        path.write_text(good)
    assert call.ops("/status")["config"] == before
    assert call("GET", APPOINTMENTS, "PATIENT").status == 200


def test_audit_has_a_row_for_every_access(platform, call, wait):
    allowed = call("GET", APPOINTMENTS, "PATIENT").headers["X-Request-Id"]
    refused = call("GET", f"/portal/v1/patients/{story.OTHER}/appointments", "PATIENT").headers["X-Request-Id"]

    def rows():
        with psycopg.connect(platform._postgres.admin_dsn) as connection:
            return connection.execute(
                "SELECT request_id, phase, status FROM audit.event WHERE request_id = ANY(%s)", ([allowed, refused],)
            ).fetchall()

    wait(lambda: len(rows()) >= 4)
    assert sorted(rows()) == sorted(
        [(allowed, "completion", 200), (allowed, "intent", 0), (allowed, "outcome", 200), (refused, "outcome", 404)]
    )


def test_metrics_are_of_all_workers(call):
    def total() -> float:
        lines = call.ops("/metrics").splitlines()
        return sum(float(x.split()[-1]) for x in lines if x.startswith("caregate_requests_total{"))

    before = total()
    for _ in range(40):
        call("GET", "/nowhere")
    assert total() - before == 40

"""The access log of a real platform: whose time a request took, and how much is logged while it runs."""

from __future__ import annotations

import json
import subprocess
import sys

import psycopg
import pytest

from gateway.demo import story

pytestmark = pytest.mark.integration

PORTAL = f"/portal/v1/patients/{story.OWN}/appointments"
RELAYED = f"/units/v1/{story.HOSPITAL}/patients/{story.OWN}/lab-results"
CLOUD = "/terminology/v1/lookup?code=2160-0&system=http%3A%2F%2Floinc.org"


def line_of(platform, request_id: str) -> dict[str, object] | None:
    for line in (platform.logs / "gateway.log").read_text().splitlines():
        if request_id in line and '"event":"request"' in line:
            return json.loads(line)
    return None


@pytest.mark.parametrize(
    ("path", "parts"),
    [
        pytest.param(PORTAL, {"gateway_ms", "upstream_ms"}, id="portal"),
        pytest.param(CLOUD, {"gateway_ms", "upstream_ms"}, id="cloud service"),
        pytest.param(RELAYED, {"gateway_ms", "queue_ms", "relay_ms", "unit_ms"}, id="unit"),
    ],
)
def test_a_request_s_time_is_split(platform, call, wait, path, parts):
    answer = wait(lambda: (found := call("GET", path, "PATIENT")).status == 200 and found)
    line = wait(lambda: line_of(platform, answer.headers["X-Request-Id"]))
    assert parts <= line.keys() <= parts | line.keys()
    found = sum(value for name, value in line.items() if name.endswith("_ms"))
    assert found == pytest.approx(line["ms"], abs=1.01), "the agent says whole milliseconds"
    assert line["level"] == "info"


def caregate(platform, *argv: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "gateway.cli.main", "workers", "log-level", *argv, "--run-dir",
         str(platform.directory / "run")],
        capture_output=True, text=True, check=False, env=platform._env,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_level_changes_while_it_runs(platform, call, wait):
    try:
        changed = caregate(platform, "warning").splitlines()
        assert len(changed) >= 4
        assert all(line.endswith(": warning") for line in changed)
        quiet = [call("GET", CLOUD, "PATIENT").headers["X-Request-Id"] for _ in range(8)]
    finally:
        caregate(platform, "info")
    assert all(line.endswith(": info") for line in caregate(platform).splitlines())
    loud = call("GET", CLOUD, "PATIENT").headers["X-Request-Id"]
    wait(lambda: line_of(platform, loud))
    assert not [request for request in quiet if line_of(platform, request)]
    wait(lambda: changes(platform) >= {("info", "warning"), ("warning", "info")})


def changes(platform) -> set[tuple[str, str]]:
    """Of log levels, as the trail has them: (before, after)."""
    with psycopg.connect(platform._postgres.admin_dsn) as connection:
        query = "SELECT canonical::json -> 'detail' FROM audit.event WHERE kind = 'admin'"
        details = [detail for (detail,) in connection.execute(query)]
    return {(one["before"], one["target"]) for one in details if one["what"] == "log-level"}

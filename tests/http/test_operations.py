"""What /status says of the process."""

from __future__ import annotations

import re
from pathlib import Path

import falcon.testing
import gevent
import pytest

from gateway.http.operations import count_greenlets


def test_greenlets_that_have_not_ended_are_counted():
    for _ in range(20):
        gevent.idle()  # the hub is one itself
        before = count_greenlets()
        waiting = [gevent.spawn(gevent.sleep, 60) for _ in range(7)]
        gevent.idle()
        during = count_greenlets()
        gevent.killall(waiting)
        after = count_greenlets()
        # What else the process has may have come or gone meanwhile.
        if before == after:
            break
    assert (before, during, after) == (before, before + 7, before)


@pytest.fixture
def operations(gateway):
    return falcon.testing.TestClient(gateway.operations)


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        pytest.param("GET", "/nothing", 404, "not-found", id="no such page"),
        pytest.param("POST", "/metrics", 405, "method-not-allowed", id="method"),
        pytest.param("FOO", "/metrics", 400, "bad-request", id="no method Falcon knows"),
    ],
)
def test_refusals_are_problems_here_too(operations, method, path, status, code):
    answer = operations.simulate_request(method, path)
    assert answer.status_code == status
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.json["type"] == f"urn:caregate:problem:{code}"
    assert answer.json["request_id"] == answer.headers["X-Request-Id"]
    assert ("Allow" in answer.headers) == (status == 405)


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/status", "/metrics"])
def test_every_answer_has_a_request_id(operations, path):
    assert operations.simulate_get(path).headers["X-Request-Id"]


def test_a_failure_says_nothing(gateway, operations, monkeypatch):
    def fail():
        raise RuntimeError("host=db.internal")

    monkeypatch.setattr(gateway.metrics, "render", fail)
    answer = operations.simulate_get("/metrics")
    assert answer.status_code == 500
    assert answer.json["type"] == "urn:caregate:problem:internal"
    assert "db.internal" not in answer.text


def test_ready_names_what_is_away_since_when(gateway, operations):
    found = operations.simulate_get("/readyz")
    assert found.status_code == 200
    assert set(found.json["dependencies"]) == {"configuration", "audit", "database"}
    assert all(set(one) == {"status", "since", "required"} for one in found.json["dependencies"].values())


def test_without_room_for_the_trail_nothing_is_ready(gateway, operations, monkeypatch):
    monkeypatch.setattr(gateway.audit, "ready", False)
    found = operations.simulate_get("/readyz")
    assert found.status_code == 503
    assert found.json["dependencies"]["audit"]["status"] == "down"


def test_what_an_alert_waits_for_is_scraped_before_it_happens(operations):
    """An increase from a series that is not there yet is none."""
    alerts = (Path(__file__).parents[2] / "docs" / "monitoring" / "alerts.yaml").read_text()
    waited = {one for found in re.findall(r'caregate_audit_events_total{outcome=~"(.+?)"}', alerts)
              for one in found.split("|")}  # fmt: skip
    assert waited > {"damaged", "unsealed"}
    scraped = operations.simulate_get("/metrics").text
    assert all(f'caregate_audit_events_total{{outcome="{one}"}} 0.0' in scraped for one in waited)

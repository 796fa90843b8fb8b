"""The demo story, line by line, against real gunicorn, PostgreSQL, units and agents."""

from __future__ import annotations

import pytest

from gateway.demo import story

pytestmark = pytest.mark.integration


def test_story(platform, call):
    outcomes = story.play(platform.ports.gateway, platform.tokens, platform.act, lambda outcome: None)
    assert [(o.step.title, o.status, o.ok) for o in outcomes] == [(o.step.title, o.step.expect, True) for o in outcomes]


def test_limited_partner_is_told_when_to_come_back(call, wait):
    answers = [call("GET", "/partner/v1/units", "PARTNER") for _ in range(40)]
    limited = [a for a in answers if a.status == 429]
    assert limited
    assert int(limited[0].headers["Retry-After"]) >= 1
    assert limited[0].headers["RateLimit"]
    assert limited[0].headers["RateLimit-Policy"]
    assert limited[0].json["type"] == "urn:caregate:problem:rate-limited"
    good = wait(lambda: (a := call("GET", "/partner/v1/units", "PARTNER")).status == 200 and a)
    assert good.headers["RateLimit-Policy"]


def test_stopped_unit_is_told_at_once(platform, call):
    platform.stop_agent(story.CLINIC)
    try:
        answer = call("GET", f"/units/v1/{story.CLINIC}/patients/{story.OWN}/lab-results", "PATIENT")
        document = answer.json
        assert (answer.status, document["title"]) == (503, "client not connected")
        assert document["type"] == "urn:caregate:problem:unit-not-connected"
        assert document["delivery"] == "not_dispatched"
        assert document["unit"] == story.CLINIC
        assert document["retryable"] is True
        assert document["last_seen"]
        assert answer.headers["Retry-After"]
        assert answer.headers["Relay-Source"] == "gateway"
    finally:
        platform.act("start", story.CLINIC)


@pytest.mark.parametrize(
    ("path", "token", "status"),
    [
        pytest.param("/portal/v1/patients/pat-0001/appointments", None, 401, id="no token"),
        pytest.param("/nowhere", "PATIENT", 404, id="no such route"),
        pytest.param("/units/v1/no-such-unit/patients/pat-0001/lab-results", "PATIENT", 404, id="unknown unit"),
    ],
)
def test_refusals(call, path, token, status):
    answer = call("GET", path, token)
    assert answer.status == status
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.headers["X-Request-Id"] == answer.json["request_id"]
    assert answer.json["instance"] == "urn:uuid:" + answer.json["request_id"]


def test_another_patient_looks_as_if_nothing_were_there(call):
    other = call("GET", f"/portal/v1/patients/{story.OTHER}/appointments", "PATIENT").json
    nothing = call("GET", "/nowhere", "PATIENT").json
    for document in (other, nothing):
        del document["request_id"], document["instance"]
    assert other == nothing

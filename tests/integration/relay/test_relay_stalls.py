"""Callers that stop in the middle of their upload, at the worker that holds the unit and through another."""

from __future__ import annotations

import time

import pytest

pytestmark = pytest.mark.integration

HOPS = pytest.mark.parametrize("hops", ["held", "mesh"])
LENGTH = 500_000
DEADLINE_S = 1.2
"""Of the route `probe`."""


def ack_only(unit, request):
    unit.ack(request.stream)


def refuse_early(unit, request):
    unit.ack(request.stream)
    unit.answer(request.stream, 413, b"no more")


def leave(unit, request):
    unit.ack(request.stream)
    time.sleep(0.05)
    unit.cut()


def stall(caller, path):
    """Sends the beginning of a body; what is answered, and the seconds that took."""
    started_s = time.monotonic()
    connection = caller.connection
    connection.putrequest("POST", path)
    connection.putheader("Authorization", f"Bearer {caller.rig.platform.tokens['PRACTITIONER']}")
    connection.putheader("Content-Length", str(LENGTH))
    connection.endheaders(b"x" * 1_000)
    response = connection.getresponse()
    return response, response.read(), time.monotonic() - started_s


@HOPS
@pytest.mark.parametrize(
    ("route", "script", "expected"),
    [
        pytest.param("probe", ack_only, (504, b"unit-response-timeout"), id="deadline"),
        pytest.param("bulk", leave, (502, b"unit-disconnected"), id="cut"),
        pytest.param("bulk", refuse_early, (413, b"no more"), id="early answer"),
    ],
)
def test_a_caller_that_stalls_is_told(rig, wait, hops, route, script, expected):
    unit = rig.unit(script)
    caller = rig.caller(rig.routes_to(unit)[hops])
    response, body, took_s = stall(caller, f"/{route}/v1/{rig.UNIT}/a")
    assert response.status == expected[0]
    assert expected[1] in body
    assert took_s < DEADLINE_S + 1
    if response.status != 413:
        assert b'"delivery":"dispatched"' in body
    # The rest of the body is no request.
    assert response.headers["Connection"] == "close"
    caller.connection.sock = None
    wait(lambda: rig.open_streams() == 0)

"""A caller who stops in the middle of its upload learns what becomes of its request no later than others do."""

from __future__ import annotations

import http.client
import json
from typing import Any

import pytest
from gevent import socket

STREAMED, HELD = 500_000, 100_000
"""Announced lengths: sent to the unit as it comes, and kept from its service until it is whole."""
SHORT_MS, LONG_MS = 800, 20_000


class Caller:
    """Sends a head and `sent` bytes of a body of `length`, and stops."""

    def __init__(self, port: int, length: int, sent: int = 1_000) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port))
        head = f"POST /units/hospital/a HTTP/1.1\r\nHost: test\r\nContent-Length: {length}\r\n\r\n"
        self.sock.sendall(head.encode() + b"x" * sent)

    def answer(self, limit_s: float = 3.0) -> tuple[int, str, Any]:
        """Status, problem type's last word or the body, delivery."""
        self.sock.settimeout(limit_s)
        response = http.client.HTTPResponse(self.sock)
        response.begin()
        body = response.read()
        self.sock.close()
        if response.getheader("content-type") != "application/problem+json":
            return response.status, body.decode(), None
        problem = json.loads(body)
        return response.status, problem["type"].rpartition(":")[2], problem["delivery"]


def two_places(rig: Any, where: str, deadline_ms: int) -> tuple[Any, Any]:
    """The caller's worker and the unit's."""
    front = rig.worker({"deadline_ms": deadline_ms})
    return front, front if where == "here" else rig.worker({"deadline_ms": deadline_ms})


def connected(rig: Any, front: Any, holder: Any, script: Any) -> Any:
    unit = rig.unit(holder, script)
    rig.until(lambda: front.relay.registry.connected("hospital"))
    return unit


def silent(unit: Any, event: Any) -> None:
    """Takes the request and says nothing."""


def acknowledging(unit: Any, event: Any) -> None:
    unit.ack(event.stream)


def answering(unit: Any, event: Any) -> None:
    unit.ack(event.stream)
    unit.answer(event.stream, 413, b"too much")


WHERE = pytest.mark.parametrize("where", ["here", "at-a-sibling"])


@WHERE
@pytest.mark.parametrize(
    ("length", "script", "expected"),
    [
        pytest.param(STREAMED, silent, (504, "unit-accept-timeout", "unknown"), id="sent"),
        pytest.param(STREAMED, acknowledging, (504, "unit-response-timeout", "dispatched"), id="acknowledged"),
        pytest.param(HELD, silent, (504, "unit-queue-timeout", "not_dispatched"), id="held"),
    ],
)
def test_the_deadline(rig: Any, where: str, length: int, script: Any, expected: tuple[Any, ...]) -> None:
    front, holder = two_places(rig, where, SHORT_MS)
    unit = connected(rig, front, holder, script)
    assert Caller(front.port, length).answer() == expected
    rig.until(lambda: unit.aborted)
    assert rig.states() == set()


def test_the_deadline_before_the_first_byte_of_the_body(rig: Any) -> None:
    front, holder = two_places(rig, "here", SHORT_MS)
    unit = connected(rig, front, holder, silent)
    assert Caller(front.port, STREAMED, sent=0).answer() == (504, "unit-queue-timeout", "not_dispatched")
    assert not unit.bodies


@WHERE
def test_an_early_answer(rig: Any, where: str) -> None:
    front, holder = two_places(rig, where, LONG_MS)
    unit = connected(rig, front, holder, answering)
    assert Caller(front.port, STREAMED).answer() == (413, "too much", None)
    rig.until(lambda: rig.states() == set() and not unit.session.streams)


@WHERE
@pytest.mark.parametrize(
    ("length", "script", "expected"),
    [
        pytest.param(STREAMED, silent, (502, "unit-disconnected", "unknown"), id="sent"),
        pytest.param(STREAMED, acknowledging, (502, "unit-disconnected", "dispatched"), id="acknowledged"),
        pytest.param(HELD, silent, (502, "unit-disconnected", "not_dispatched"), id="held"),
    ],
)
def test_a_cut_link(rig: Any, where: str, length: int, script: Any, expected: tuple[Any, ...]) -> None:
    front, holder = two_places(rig, where, LONG_MS)
    unit = connected(rig, front, holder, script)
    caller = Caller(front.port, length)
    wanted = {"accepted"} if script is acknowledging else {"sent"}
    rig.until(lambda: unit.bodies and rig.states() == wanted)
    unit.cut()
    assert caller.answer() == expected
    assert rig.states() == set()


@WHERE
def test_a_held_upload_goes_on_over_another_connection(rig: Any, where: str) -> None:
    front, holder = two_places(rig, where, LONG_MS)
    first = connected(rig, front, holder, silent)
    caller = Caller(front.port, HELD)
    rig.until(lambda: first.bodies)
    second = rig.unit(holder, rig.echo, index=1)
    first.cut()
    rig.until(lambda: second.bodies)
    caller.sock.sendall(b"x" * (HELD - 1_000))
    assert caller.answer() == (200, "x" * HELD, None)

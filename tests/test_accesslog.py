"""One JSON line a request, made when lines are written, with the time at which the request ended."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastpath.books import Lines
from fastpath.lane import Grant
from gateway import accesslog
from gateway.accesslog import AccessLog
from gateway.context import RequestContext
from gateway.errors import TokenMissing
from gateway.routing.model import LEVELS, Logging


@pytest.fixture
def lines(tmp_path):
    """An access log, and what it has written so far."""
    path = tmp_path / "log"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    yield AccessLog(descriptor, 41), lambda: [json.loads(line) for line in path.read_text().splitlines()]
    os.close(descriptor)


def test_a_line_says_when_the_request_ended(lines):
    log, written = lines
    before = datetime.now(UTC)
    log.write(RequestContext(id="r-1", started_ns=0, method="GET", rule="allowed"), 200, 12_345_678)
    after = datetime.now(UTC)
    assert written() == []
    log.flush()
    (line,) = written()
    assert before <= datetime.fromisoformat(line.pop("time")) <= after
    assert line == {
        "event": "request", "level": "info", "request_id": "r-1", "method": "GET", "route": None, "template": None,
        "status": 200, "ms": 12.345, "worker": 41, "rule": "allowed",
    }  # fmt: skip


def test_an_error_is_named(lines):
    log, written = lines
    log.write(RequestContext(id="r-1", started_ns=0, method="M" * 17, error=TokenMissing()), 401, 0)
    log.stop()
    (line,) = written()
    assert (line["method"], line["error"], line["origin"]) == ("other", "token-missing", "client")


def test_many_lines_are_written_without_waiting(lines):
    log, written = lines
    for n in range(2000):
        log.write(RequestContext(id=str(n), started_ns=0, method="GET"), 200, 0)
    assert 500 < len(written()) < 2000
    log.flush()
    assert [line["request_id"] for line in written()] == [str(n) for n in range(2000)]


def context(**more) -> RequestContext:
    return RequestContext(id="r", started_ns=0, method="GET", **more)


@pytest.mark.parametrize(
    ("more", "split"),
    [
        pytest.param({}, {}, id="answered by the gateway"),
        pytest.param({"upstream_ns": 8_000_000}, {"gateway_ms": 2.0, "upstream_ms": 8.0}, id="upstream"),
        pytest.param({"upstream_ns": 8_000_000, "queue_ns": 3_000_000},
                     {"gateway_ms": 2.0, "queue_ms": 3.0, "upstream_ms": 5.0}, id="upstream, after a wait"),
        pytest.param({"upstream_ns": 8_000_000, "unit_ns": 7_000_000, "unit": "u"},
                     {"gateway_ms": 2.0, "relay_ms": 1.0, "unit_ms": 7.0}, id="unit"),
        pytest.param({"upstream_ns": 8_000_000, "queue_ns": 3_000_000, "unit_ns": 4_000_000, "unit": "u"},
                     {"gateway_ms": 2.0, "queue_ms": 3.0, "relay_ms": 1.0, "unit_ms": 4.0}, id="unit, after a wait"),
        pytest.param({"upstream_ns": 8_000_000, "unit_ns": 9_000_000, "unit": "u"},
                     {"gateway_ms": 2.0, "relay_ms": 0.0, "unit_ms": 9.0}, id="a unit whose clock is coarse"),
    ],
)  # fmt: skip
def test_whose_time_it_was(lines, more, split):
    log, written = lines
    log.write(context(**more), 200, 10_000_000)
    log.flush()
    (line,) = written()
    assert {name: value for name, value in line.items() if name.endswith("_ms")} == split


@pytest.mark.parametrize(
    ("status", "more", "origin"),
    [
        pytest.param(200, {"relay_source": "unit"}, None, id="no error"),
        pytest.param(404, {"relay_source": "unit"}, "unit", id="a unit's own"),
        pytest.param(500, {"relay_source": "upstream"}, "upstream", id="an upstream's own"),
        pytest.param(401, {"error": TokenMissing(), "relay_source": "gateway"}, "client", id="the caller's"),
    ],
)
def test_whose_an_error_is(lines, status, more, origin):
    log, written = lines
    log.write(context(**more), status, 0)
    log.flush()
    (line,) = written()
    assert line.get("origin") == origin


def route(level: str, sample: int = 1):
    return SimpleNamespace(name="r", template="/r", logging=Logging(level.encode(), LEVELS[level], sample))


@pytest.mark.parametrize(
    ("least", "of", "status", "level"),
    [
        pytest.param("info", None, 200, "info", id="no route"),
        pytest.param("warning", None, 404, None, id="no route, warnings only"),
        pytest.param("warning", None, 500, "error", id="a failure without a route"),
        pytest.param("info", "debug", 200, None, id="a quiet route"),
        pytest.param("debug", "debug", 200, "debug", id="a quiet route, listened to"),
        pytest.param("info", "debug", 503, "error", id="a quiet route's failure"),
        pytest.param("error", "warning", 200, None, id="errors only"),
        pytest.param("warning", "warning", 200, "warning", id="a loud route"),
    ],
)
def test_levels(lines, least, of, status, level):
    log, written = lines
    log.least = LEVELS[least]
    log.write(context(route=route(of) if of else None), status, 0)
    log.flush()
    assert [line["level"] for line in written()] == ([level] if level else [])


def test_one_of_so_many_and_every_failure(lines):
    log, written = lines
    for status in [200] * 7 + [502, 502] + [200] * 3:
        log.write(context(route=route("info", 5)), status, 0)
    log.flush()
    found = written()
    assert [line["status"] for line in found] == [200, 200, 502, 502]
    assert [line.get("sample") for line in found] == [5, 5, None, None]


@pytest.mark.parametrize(
    ("moment_s", "text"),
    [
        pytest.param(0.0, "1970-01-01T00:00:00.000000Z", id="the first"),
        pytest.param(1_700_000_000.000001, "2023-11-14T22:13:20.000001Z", id="a microsecond"),
        pytest.param(1_700_000_000.999999, "2023-11-14T22:13:20.999999Z", id="the last of the same second"),
        pytest.param(1_700_000_001.5, "2023-11-14T22:13:21.500000Z", id="the next second"),
    ],
)
def test_timestamp(moment_s, text):
    made = Lines(1, accesslog.second)
    made.add(RequestContext(id="r", started_ns=0), 200, 0, moment_s)
    assert json.loads(made.take())["time"] == text


TEXTS = st.text(st.characters(), max_size=20)


@given(TEXTS, TEXTS, TEXTS, TEXTS, st.none() | TEXTS, st.integers(0, 10**12), st.booleans())
def test_every_text_is_a_json_string(route, role, rule, unit, delivery, took_us, granted):
    """Whatever callers and configurations write, a line is one object with those texts in it."""
    ctx = RequestContext(
        id="r", started_ns=0, method="GET", rule=rule, unit=unit, delivery=delivery,
        route=SimpleNamespace(name=route, template=route),
        principal=SimpleNamespace(role=role, audience=role, token_id=role),
    )  # fmt: skip
    ctx.grant = Grant(ctx.route, None) if granted else None
    made = Lines(7, accesslog.second)
    for _ in range(2):
        made.add(ctx, 503, took_us, 1.0)
    first, second, rest = made.take().split(b"\n")
    assert (first, rest) == (second, b"")
    line = json.loads(first)
    written = [line["route"], line["template"], line["role"], line["jti"], line.get("rule", ""), line["unit"]]
    assert written == [_replaced(text) for text in (route, route, role, role, rule, unit)]
    assert line["delivery"] == (None if delivery is None else _replaced(delivery))
    assert round(line["ms"] * 1000) == took_us


def _replaced(text):
    return text.encode("utf-8", "replace").decode()

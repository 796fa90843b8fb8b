"""Gauges of state: what each look finds, and that one which fails stops no other."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from gateway.gauges import AuditLook, Gauges, UnitsLook, UpstreamsLook
from gateway.health import Dependency, Health
from gateway.metrics import Metrics
from gateway.upstream.breaker import FAILURES_TO_OPEN, Breaker
from tests.test_metrics import regions, samples


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(regions(1)[0])


def value(metrics: Metrics, name: str, **labels: str) -> float:
    return samples(metrics)[name, tuple(sorted(labels.items()))]


class Audit:
    def __init__(self, *steps: tuple[int, int]) -> None:
        self._steps = iter(steps)

    def progress(self) -> tuple[int, int, float]:
        return *next(self._steps), 0.25


@pytest.mark.parametrize(
    ("steps", "lag_s"),
    [
        pytest.param([(0, 0)], 0, id="nothing yet"),
        pytest.param([(9, 9), (12, 12)], 0, id="all there"),
        pytest.param([(9, 0), (12, 0), (12, 0)], 10, id="nothing arrives"),
        pytest.param([(9, 0), (12, 9), (20, 9)], 5, id="the first have arrived, later ones have not"),
        pytest.param([(9, 0), (90, 9), (900, 90)], 0, id="a steady stream"),
        pytest.param([(9, 0), (9, 0), (9, 9)], 0, id="caught up"),
    ],
)
def test_audit_lag(metrics, steps, lag_s):
    clock = iter(range(0, 100, 5))
    look = AuditLook(Audit(*steps), lambda: next(clock))
    for _ in steps:
        look(metrics)
    # What was appended since the look before is at most one look old.
    assert value(metrics, "caregate_audit_lag_seconds") == lag_s
    assert value(metrics, "caregate_audit_spool_ratio") == 0.25


def test_units_that_are_away(metrics):
    registry = SimpleNamespace(is_connected=lambda unit: unit == "here", buffers=SimpleNamespace(held_bytes=lambda: 25))
    units = [SimpleNamespace(id=name, enabled=name != "off") for name in ("here", "away", "off")]
    look = UnitsLook(
        SimpleNamespace(registry=registry, known=lambda: units), SimpleNamespace(oldest_key_age_s=lambda: 70.0), 100
    )
    look(metrics)
    assert value(metrics, "caregate_units") == 2
    assert value(metrics, "caregate_units_away") == 1
    assert value(metrics, "caregate_relay_buffer_ratio") == 0.25
    assert value(metrics, "caregate_unit_key_oldest_age_seconds") == 70


def test_breakers(metrics):
    breaker = Breaker()
    for _ in range(FAILURES_TO_OPEN):
        assert not breaker.is_open
        breaker.failed(1)
    configured = {"labs"}
    look = UpstreamsLook(SimpleNamespace(breakers=lambda: [("labs", breaker.is_open)]), lambda: configured)
    look(metrics)
    assert value(metrics, "caregate_upstream_breaker_open", upstream="labs") == 1
    breaker.succeeded()
    look(metrics)
    assert value(metrics, "caregate_upstream_breaker_open", upstream="labs") == 0
    breaker.failed(1)
    configured.clear()
    look(metrics)
    assert value(metrics, "caregate_upstream_breaker_open", upstream="labs") == 0, "an upstream that is gone"


def test_a_look_that_fails_stops_no_other(metrics, caplog):
    def fail(metrics: Metrics) -> None:
        raise RuntimeError("broken")

    Gauges(metrics, [fail, lambda m: m.set("caregate_units", (), 5)]).look()
    assert value(metrics, "caregate_units") == 5
    assert "a gauge could not be set" in caplog.text


def test_dependencies_say_since_when():
    up = {"database": True, "audit": True}
    now_s = [1_000.0]
    health = Health(
        [
            Dependency("database", lambda: up["database"], required=False),
            Dependency("audit", lambda: up["audit"], required=True),
        ],
        lambda: now_s[0],
    )
    assert health.ready()
    now_s[0], up["database"] = 1_060.0, False
    assert health.ready(), "what is not required does not make it unready"
    now_s[0] = 1_120.0
    assert health.describe()["database"] == {"status": "down", "since": "1970-01-01T00:17:40Z", "required": False}
    assert health.describe()["audit"] == {"status": "up", "since": "1970-01-01T00:16:40Z", "required": True}
    up["audit"] = False
    assert not health.ready()

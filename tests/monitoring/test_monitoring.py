"""What is shipped for monitoring: a page that names every metric, alerts and a dashboard that ask only for those."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from gateway import errors
from gateway.metrics import DECLARATIONS

DOCS = Path(__file__).parents[2] / "docs"
ALERTS = DOCS / "monitoring" / "alerts.yaml"
DASHBOARD = DOCS / "monitoring" / "dashboard.json"
SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}

WELL = {
    'up{job="caregate"}': "1x60",
    "caregate_workers": "4x60",
    "caregate_units": "500x60",
    "caregate_units_away": "3x60",
    "caregate_config_version": "7x60",
    "caregate_config_version_lowest": "7x60",
    "caregate_audit_lag_seconds": "1x60",
    "caregate_audit_spool_ratio": "0.1x60",
    "caregate_audit_unfinished_intents": "0x60",
    "caregate_relay_buffer_ratio": "0.1x60",
    "caregate_metric_series_dropped": "0x60",
    "caregate_log_lines_lost_total": "0x60",
    "caregate_unit_key_oldest_age_seconds": "86400x60",
    'caregate_upstream_breaker_open{upstream="terminology"}': "0x60",
    'caregate_audit_events_total{outcome="written"}': "0+600x60",
    'caregate_audit_events_total{outcome="damaged"}': "0x60",
    'caregate_audit_events_total{outcome="unsealed"}': "0x60",
    'caregate_limit_refusals_total{limit="per-caller"}': "0+60x60",
    'caregate_trace_spans_total{outcome="exported"}': "0+600x60",
    'caregate_trace_spans_total{outcome="dropped"}': "7x60",
    'caregate_trace_spans_total{outcome="failed"}': "0x60",
    'caregate_refusals_total{origin="client", code="role-refused"}': "0+6x120",
    'caregate_requests_total{status="200"}': "0+600x60",
    'caregate_requests_total{status="503"}': "0+6x60",
}
FIRING = {
    "CaregateDown": {"caregate_workers": "0x60"},
    "CaregateUnitsDown": {"caregate_units_away": "3x10 30x60"},
    "CaregateManyUnitsDown": {"caregate_units_away": "3x57 300x3"},
    "CaregateDenialBurst": {'caregate_refusals_total{origin="client", code="role-refused"}': "0+6x45 300+1200x20"},
    "CaregateAuditChainBroken": {'caregate_audit_events_total{outcome="damaged"}': "0x50 1x10"},
    "CaregateAuditUnsealed": {'caregate_audit_events_total{outcome="unsealed"}': "0x40 0+1x20"},
    "CaregateAuditLag": {"caregate_audit_lag_seconds": "0x30 0+60x30"},
    "CaregateAuditSpoolFull": {"caregate_audit_spool_ratio": "0.9x60"},
    "CaregateAuditUnfinished": {"caregate_audit_unfinished_intents": "0x50 1x10"},
    "CaregateUnitKeyOld": {"caregate_unit_key_oldest_age_seconds": "9000000x60"},
    "CaregateLimiterRefusals": {'caregate_limit_refusals_total{limit="per-caller"}': "0+1200x60"},
    "CaregateBreakerOpen": {'caregate_upstream_breaker_open{upstream="terminology"}': "2x60"},
    "CaregateConfigurationSkew": {"caregate_config_version": "8x60"},
    "CaregateQueueNearFull": {"caregate_relay_buffer_ratio": "0.75x60"},
    "CaregateErrors": {'caregate_requests_total{status="503"}': "0+60x60"},
    "CaregateSpansLost": {'caregate_trace_spans_total{outcome="failed"}': "0+30x60"},
    "CaregateLogLinesLost": {"caregate_log_lines_lost_total": "0x40 0+60x20"},
    "CaregateMetricSeriesDropped": {"caregate_metric_series_dropped": "4x60"},
}


def series() -> set[str]:
    """Every name under which a declared metric is scraped."""
    return {d.name + end for d in DECLARATIONS for end in SUFFIXES.get(d.kind, ("",))}


def asked(text: str) -> set[str]:
    return set(re.findall(r"\bcaregate_\w+", text))


def expressions() -> Iterator[tuple[str, str]]:
    for group in yaml.safe_load(ALERTS.read_text())["groups"]:
        for rule in group["rules"]:
            yield rule["alert"], rule["expr"]
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]


def test_every_metric_is_on_the_page():
    rows = re.findall(r"^\| `(caregate_\w+)` \| (\w+) \| (.*?) \| (.+) \|$", (DOCS / "monitoring.md").read_text(), re.M)
    declared = [
        (
            d.name + ("_total" if d.kind == "counter" else ""),
            d.kind,
            ", ".join(f"`{label}`" for label in d.labels),
            d.help,
        )
        for d in DECLARATIONS
    ]
    assert sorted((name, kind, labels.strip(), text) for name, kind, labels, text in rows) == sorted(declared)


@pytest.mark.parametrize(("where", "expression"), [pytest.param(w, e, id=w) for w, e in expressions()])
def test_only_metrics_that_are_there_are_asked_for(where, expression):
    assert asked(expression), where
    assert asked(expression) <= series(), where


def test_every_alert_is_tried():
    assert [alert for alert, _ in expressions() if alert.startswith("Caregate")] == list(FIRING)


@pytest.mark.parametrize(
    "error",
    [
        "TokenInvalid", "Forbidden", "RoleRefused", "PermissionRefused", "ScopeRefused", "BindingRefused",
        "ConsentRefused", "PurposeRefused", "SearchRefused", "EnrolmentRefused", "ClientUnauthenticated",
        "TokenRequestRefused",
    ],
)  # fmt: skip
def test_a_burst_is_of_whatever_refuses_access(error):
    expression = dict(expressions())["CaregateDenialBurst"]
    patterns = set(re.findall(r'code=~"(.+?)"', expression))
    assert len(patterns) == 1
    assert re.fullmatch(patterns.pop(), getattr(errors, error).code)


def test_every_alert_says_what_to_do():
    for group in yaml.safe_load(ALERTS.read_text())["groups"]:
        for rule in group["rules"]:
            assert set(rule["annotations"]) == {"summary", "action"}, rule["alert"]
            assert rule["labels"]["severity"] in ("warning", "critical")


@pytest.fixture(scope="module")
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("promtool is not installed (Debian: prometheus)")
    return found


def test_promtool_accepts_the_rules(promtool):
    subprocess.run([promtool, "check", "rules", str(ALERTS)], check=True, capture_output=True)


@pytest.mark.parametrize("alert", [pytest.param(None, id="all is well"), *FIRING])
def test_alerts_fire_when_they_should_and_only_then(promtool, tmp_path, alert):
    found = {**WELL, **(FIRING[alert] if alert else {})}
    fired = [] if alert is None else [{"labels": f'{{alertname="{alert}"}}', "value": 1}]
    case = {
        "rule_files": [str(ALERTS)],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": name, "values": values} for name, values in found.items()],
                "promql_expr_test": [
                    {
                        "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
                        "eval_time": "60m",
                        "exp_samples": fired,
                    }
                ],
            }
        ],
    }
    path = tmp_path / "case.yaml"
    path.write_text(yaml.safe_dump(case))
    done = subprocess.run([promtool, "test", "rules", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr

"""Broken documents of identity providers: refused, with the exact path, the reason and a line; and a good one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from gateway.config.fault import Fault
from gateway.config.snapshot import Snapshot

VALID = (Path(__file__).parent / "providers.yaml").read_text()
TABLE = yaml.safe_load((Path(__file__).parent / "refused_providers.yaml").read_text())
Faults = Callable[[str | bytes], list[Fault]]


def test_a_good_one(load: Callable[[str], Snapshot]) -> None:
    snapshot = load(VALID)
    clinic = snapshot.providers["https://login.clinic.example"]
    assert (clinic.name, clinic.aud, clinic.jwks_url, clinic.max_lifetime_s) == ("clinic", "caregate-api", None, 3_600)
    assert (clinic.unknown_kid_burst, clinic.unknown_kid_period_s, clinic.allow_http) == (5, 30, False)
    assert snapshot.providers["https://lab.example/"].aud == "staff"
    assert "caregate-api" in snapshot.verifier.known_audiences
    assert len(snapshot.thumbprints) == 1


@pytest.mark.parametrize("case", [pytest.param(case, id=case["id"]) for case in TABLE])
def test_refused(faults_of: Faults, case: dict[str, str]) -> None:
    assert VALID.count(case["old"]) == 1
    faults = faults_of(VALID.replace(case["old"], case["new"]))
    if case.get("also"):  # the same mistake shows in what refers to it too
        faults = [fault for fault in faults if fault.path == case["path"]]
    assert [fault.path for fault in faults] == [case["path"]], [str(fault) for fault in faults]
    assert case["reason"] in faults[0].reason
    assert faults[0].line is not None


def test_http_for_tests_is_possible_on_loopback(faults_of: Faults) -> None:
    text = VALID.replace("https://keys.lab.example", "http://127.0.0.1:81").replace(
        "    jwks_url:", "    allow_http: true\n    allowed_networks: [127.0.0.0/8]\n    jwks_url:"
    )
    assert faults_of(text) == []


def test_the_table_is_complete() -> None:
    assert len({case["id"] for case in TABLE}) == len(TABLE) >= 30

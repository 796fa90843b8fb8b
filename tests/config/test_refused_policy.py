"""Broken documents of the policy's finer rules, one fault each: refused, with the exact path, the reason and a line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from gateway.config.fault import Fault

VALID = (Path(__file__).parent / "policy.yaml").read_text()
TABLE = yaml.safe_load((Path(__file__).parent / "refused_policy.yaml").read_text())
Faults = Callable[[str | bytes], list[Fault]]


def test_the_valid_document_is_valid(faults_of: Faults) -> None:
    assert faults_of(VALID) == []


@pytest.mark.parametrize("case", [pytest.param(case, id=case["id"]) for case in TABLE])
def test_refused(faults_of: Faults, case: dict[str, str]) -> None:
    assert VALID.count(case["old"]) == 1
    faults = faults_of(VALID.replace(case["old"], case["new"]))
    assert [fault.path for fault in faults] == [case["path"]], [str(fault) for fault in faults]
    assert case["reason"] in faults[0].reason
    assert faults[0].line is not None


def test_the_table_is_complete() -> None:
    assert len({case["id"] for case in TABLE}) == len(TABLE) >= 70

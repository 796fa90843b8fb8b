"""Parameters of a query whose names are a bound parameter's in another case of letters."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from gateway.context import Principal
from gateway.rbac.decide import ALLOWED, SEARCH_REFUSED
from gateway.rbac.search import decide_search, patients_searched, read_search
from gateway.routing.model import Binding

OWN = Binding(
    "query:patient|subject", "patient", frozenset(), hidden=True, source="query", names=("patient", "subject"),
    reference="Patient",
)  # fmt: skip
OTHER_CASE = ["Patient=p-2", "PATIENT=p-1", "sUbject:Patient=p-2", "Subject.name=x", "%50atient=p-2", "+Patient=p-2"]


def decided(query: str):
    principal = Principal("u", "https://id", "app", "member", frozenset(), "j", "k", 9e9, {"patient": "p-1"})
    route = SimpleNamespace(bindings=(OWN,), searched=frozenset(), scope=None)
    return decide_search(principal, route, read_search(query), (), [])


def test_the_name_as_it_is() -> None:
    assert decided("patient=p-1&code=Patient") is ALLOWED


@pytest.mark.parametrize("disguised", OTHER_CASE)
def test_in_another_case_it_is_refused_beside_the_right_one(disguised) -> None:
    query = f"patient=p-1&{disguised}"
    assert decided(query) is SEARCH_REFUSED
    assert patients_searched(OWN, read_search(query), ()) is None

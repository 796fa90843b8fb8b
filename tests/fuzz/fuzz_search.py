#!/usr/bin/env python3
"""Fuzz target: the query of a caller who is bound to a patient. `tests/fuzz/fuzz_search.py [corpus]` needs atheris."""

from __future__ import annotations

import inspect
import sys
from urllib.parse import parse_qsl

from gateway.context import Principal
from gateway.errors import QueryRefused
from gateway.rbac.search import decide_search, read_search
from gateway.routing.model import Binding, Route, RouteKind, UpstreamAction

BASE = "https://api.test/fhir/"
WHO = Principal("s", "i", "app", "patient", frozenset(), "j", "k", 0.0, {"patient": "p-1"})
ROUTE = Route(
    name="r", template="/r", methods=("GET",), kind=RouteKind.UPSTREAM, action=UpstreamAction("u", "/fhir/Observation"),
    audiences=frozenset({"app"}), roles=frozenset({"patient"}), permission=None, searched=frozenset({"patient"}),
    bindings=(Binding("query:patient|subject", "patient", frozenset(), True, source="query",
                      names=("patient", "subject"), reference="Patient"),),
)  # fmt: skip
OWN = {"p-1", "Patient/p-1", f"{BASE}Patient/p-1"}

# As indexes of these, inputs get past the first check.
PIECES = (
    b"patient subject :Patient :not :missing .name _include _has: _revinclude code = & , p-1 p-2 Patient/ Group/ "
    b"https://api.test/fhir/ https://evil.test/ %70 %2C %26 %3D %3a %2e %5f + ; %zz %ff %00 \\ | # /_history/1"
).split()


def one_input(data: bytes) -> None:
    """Check the input as a query, and as the recipe of one."""
    check(data.decode("latin-1"))
    check(b"".join(PIECES[byte % len(PIECES)] for byte in data).decode())
    check(b"patient=p-1&".decode() + b"".join(PIECES[byte % len(PIECES)] for byte in data).decode())


def check(query: str) -> None:
    """A query that passes names the caller's own record, and nobody else's, as another reader reads it."""
    try:
        pairs = read_search(query)
    except QueryRefused:
        return
    assert ";" not in query
    # The standard library's reader sees the same, so nothing is hidden between two readers.
    assert pairs == parse_qsl(query, keep_blank_values=True, errors="strict", max_num_fields=None)
    if not decide_search(WHO, ROUTE, pairs, (BASE,), []).allowed:
        return
    # A reader that does not look at the case of names finds no more of them.
    bound = [(n, value) for n, value in pairs if n.partition(":")[0].strip().casefold() in ("patient", "subject")]
    assert bound
    for name, value in bound:
        assert name in ("patient", "subject", "patient:Patient", "subject:Patient")
        assert set(value.split(",")) <= OWN, value
    for name, _ in pairs:
        assert "." not in name
        assert name.lower().partition(":")[0] not in ("_has", "_include", "_revinclude")


def main() -> None:
    import atheris

    # NOTE: the policy is plain Python, which gives coverage only so; to instrument everything takes 15 s.
    for function in vars(sys.modules[read_search.__module__]).values():
        if inspect.isfunction(function):
            atheris.instrument_func(function)
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()

"""The plain model of a document, and the tokens that are made for it."""

from __future__ import annotations

import copy

import pytest

from gateway.auth.keys import load_secret
from gateway.selftest.model import Cell, World, as_expected, cells, reads_records, target, verdict
from gateway.selftest.tokens import Tokens

DOCUMENT = {
    "roles": {
        "patient": {"audience": "app", "permissions": ["read"]},
        "nurse": {"audience": "staff", "permissions": ["read"]},
        "clerk": {"audience": "staff"},
        "scoped": {"audience": "staff", "permissions": ["read"], "scopes": ["user/Observation.rs"]},
    },
    "controllers": {
        "record": {
            "path": "/u/{unit}/p/{patient}", "methods": ["GET"], "audiences": ["app", "staff"],
            "roles": ["patient", "nurse", "scoped"], "permission": "read", "phi": True,
            "audit": {"resource": "Observation"},
            "bind": [
                {"param": "patient", "claim": "patient", "roles": ["patient"], "refuse": "hidden"},
                {"param": "unit", "claim": "units", "roles": ["nurse", "scoped"]},
            ],
        },
        "list": {"path": "/l", "methods": ["GET", "POST"], "audiences": ["staff"], "roles": ["nurse", "clerk"],
                 "permission": "read", "hidden": True, "phi": True},
    },
}  # fmt: skip


def cell(role: str, route: str = "record", *, patient: bool = True, unit: bool = True, state: str = "fresh") -> Cell:
    return Cell(route, "GET", role, patient, unit, state)


@pytest.mark.parametrize(
    ("asked", "wanted"),
    [
        pytest.param(cell("patient"), "passes", id="her own"),
        pytest.param(cell("patient", patient=False), "404", id="another's looks like nothing"),
        pytest.param(cell("patient", unit=False), "passes", id="at any unit"),
        pytest.param(cell("nurse", patient=False), "passes", id="any patient of the own unit"),
        pytest.param(cell("nurse", unit=False), "403", id="another unit"),
        pytest.param(cell("clerk"), "403", id="not his route"),
        pytest.param(cell("patient", state="expired"), "401", id="expired"),
        pytest.param(cell("patient", "list"), "404", id="hidden from her audience"),
        pytest.param(cell("clerk", "list"), "403", id="no permission"),
        pytest.param(cell("nurse", "list"), "passes", id="list"),
        pytest.param(cell("scoped"), "passes", id="its scope"),
    ],
)
def test_verdicts(asked, wanted):
    assert verdict(DOCUMENT, asked) == wanted


def test_what_only_watches_refuses_nothing():
    watching = copy.deepcopy(DOCUMENT)
    watching["controllers"]["list"]["permission"] = {"name": "read", "shadow": True}
    watching["controllers"]["record"]["scope"] = {"need": "Observation.d", "shadow": True}
    assert verdict(watching, cell("clerk", "list")) == "passes"
    assert verdict(watching, cell("scoped")) == "passes"
    watching["controllers"]["record"]["scope"]["shadow"] = False
    assert verdict(watching, cell("scoped")) == "403"


def test_the_matrix_is_whole():
    found = list(cells(DOCUMENT))
    assert len(found) == len(set(found)) == (1 * 4 * 2 * 2 + 2 * 4) * 6


def test_paths_name_what_the_cell_says():
    world = World(("me", "you"), ("here", "there"))
    assert target(DOCUMENT, cell("nurse", patient=False), world) == "/u/here/p/you"
    assert world.claims(DOCUMENT, "record") == {"patient": "me", "units": ["here"]}


def test_what_would_touch_records():
    assert not reads_records(DOCUMENT, cell("nurse")), "its patient is made up"
    assert reads_records(DOCUMENT, cell("nurse", "list")), "a list of whoever is there"


@pytest.mark.parametrize(
    ("wanted", "status", "right"),
    [("passes", 200, True), ("passes", 503, True), ("passes", 403, False), ("404", 404, True), ("401", 403, False)],
)
def test_what_counts_as_expected(wanted, status, right):
    assert as_expected(wanted, status) is right


def test_tokens_of_a_stranger_have_the_same_header_and_another_signature():
    key = load_secret(b"b8Yx3hT9qLw2vRz7mKc5pNd1sFg6jXe4", alg="HS256", kid="k")
    tokens = Tokens({"app": "https://id.test"}, {"patient": "app"}, {"patient": key})
    fresh, strange = (
        tokens.make("patient", state, {"jti": "1", "sub": "s"}, 1_000) for state in ("fresh", "foreign key")
    )
    assert fresh.rpartition(".")[0] == strange.rpartition(".")[0]
    assert fresh != strange
    assert tokens.make("patient", "fresh", {"jti": "1", "sub": "s"}, 1_000) == fresh

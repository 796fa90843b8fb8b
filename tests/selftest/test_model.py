"""The plain model of a document, and the tokens that are made for it."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import yaml

import gateway
from gateway.auth.keys import load_secret
from gateway.selftest.model import Cell, World, as_expected, cells, reads_records, target, verdict
from gateway.selftest.tokens import Tokens
from tests.http.policy_model import standing

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


def in_shadow(document, every):
    """The document with every so-manieth rule in shadow, and scopes for all roles."""
    changed = copy.deepcopy(document)
    for number, controller in enumerate(changed["controllers"].values()):
        watches = number % every == 0
        if "permission" in controller:
            controller["permission"] = {"name": controller["permission"], "shadow": watches}
        controller["scope"] = {"need": controller.get("scope", "Observation.s"), "shadow": number % (every + 1) == 0}
        for bind in controller.get("bind", [])[:: every - 1]:
            bind["shadow"] = watches
    scopes = ["patient/*.read"], ["user/Observation.rs"], ["system/Patient.cruds", "patient/*.*"]
    for number, role in enumerate(changed["roles"].values()):
        role["scopes"] = scopes[(number + every) % 3]
    return changed


@pytest.mark.parametrize("every", [0, 2, 3], ids=["as it is", "every second in shadow", "every third in shadow"])
@pytest.mark.parametrize("name", ["config/default.yaml", "demo/caregate.yaml"])
def test_it_says_what_the_model_of_the_tests_says(name, every):
    """Two readings of the shipped documents that share nothing, for every cell of their matrices."""
    document = yaml.safe_load((Path(gateway.__file__).parent / name).read_text())
    document = in_shadow(document, every) if every else document
    found = {
        each: (verdict(document, each), standing(document, *(getattr(each, name) for name in each.__slots__)))
        for each in cells(document)
    }
    assert len(found) > 1_000
    assert [(str(each), *answers) for each, answers in found.items() if answers[0] != answers[1]] == []
    assert {"passes", "401", "403", "404"} <= {plain for _, plain in found.values()}


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

"""The shipped default document: it loads, has every role, and the demo says the same where both say something."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from gateway.config.load import load_text
from gateway.config.parse import parse
from gateway.config.role_defaults import lifetimes_of
from gateway.context import Principal
from gateway.rbac.decide import decide
from gateway.rbac.scopes import granted
from gateway.selftest.model import World, cells
from tests.config.conftest import write_pair
from tests.http.policy_model import standing

ROOT = Path(__file__).resolve().parents[2] / "gateway"
DEFAULT = ROOT / "config" / "default.yaml"
ROLES = {
    "patient", "practitioner", "hcu_clerk", "hcu_admin", "partner", "unit_agent", "platform_admin", "auditor",
    "support",
}  # fmt: skip
WORLD = ("pat-1", "pat-2"), ("north", "south")


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """With a key pair for each role."""
    directory = tmp_path_factory.mktemp("default")
    (directory / "keys").mkdir()
    for name, role in yaml.safe_load(DEFAULT.read_text())["roles"].items():
        elliptic = role["keys"][0]["alg"] == "ES256"
        made = ec.generate_private_key(ec.SECP256R1()) if elliptic else ed25519.Ed25519PrivateKey.generate()
        write_pair(directory / "keys", name, made)
        (directory / "keys" / f"{name}.key").chmod(0o600)
    return directory


@pytest.fixture(scope="module")
def loaded(directory):
    return load_text(DEFAULT.read_bytes(), directory, {}).snapshot


def document(path):
    parsed = parse(path.read_bytes())
    assert parsed.faults == []
    return parsed.document


def test_it_loads_with_every_role(loaded):
    assert set(loaded.roles) == ROLES
    served = {role for route in loaded.controllers.values() for role in route.roles}
    assert served == ROLES, "each role has at least one controller"


def test_the_demo_says_the_same():
    default, demo = document(DEFAULT), document(ROOT / "demo" / "caregate.yaml")
    for name in demo.roles.keys() & default.roles.keys():
        one, other = default.roles[name], demo.roles[name]
        assert lifetimes_of(name, one) == lifetimes_of(name, other)
        for field in ("audience", "permissions", "limits", "max_lifetime_s", "scopes"):
            assert getattr(one, field) == getattr(other, field), (name, field)
    shared = demo.controllers.keys() & default.controllers.keys()
    assert {name for name in shared if demo.controllers[name] != default.controllers[name]} == set()
    assert len(shared) >= 15
    assert default.audit == demo.audit


def test_health_data_of_a_patient_is_audited_and_bound(loaded):
    """Whatever a patient can call is hers alone: bound, below /me, or without a patient in it."""
    for route in loaded.controllers.values():
        if "patient" in route.roles and route.phi:
            assert "patient" in route.own_roles, route.name
            assert all(binding.hidden for binding in route.bindings if binding.claim == "patient"), route.name


@pytest.mark.parametrize("role", sorted(ROLES))
def test_a_role_sees_nothing_of_other_audiences(loaded, role, principal_of):
    who = principal_of(loaded, role)
    for route in loaded.controllers.values():
        decision = decide(who, route, {}, "GET")
        if who.audience not in route.audiences or role not in route.roles:
            assert not decision.allowed, route.name


def watching(text):
    """Every second controller asks for what nobody has, and what needs a scope for another one, but both only watch."""
    found = yaml.safe_load(text)
    for number, controller in enumerate(found["controllers"].values()):
        if number % 2:
            controller["permission"] = {"name": "nobody.has", "shadow": True}
        if "unit_agent" in controller["roles"]:
            controller["scope"] = {"need": "Patient.d", "shadow": True}
    return yaml.safe_dump(found)


@pytest.mark.parametrize("change", [str, watching], ids=["as it is", "with rules in shadow"])
def test_each_decision_is_the_plain_models(directory, change):
    """Role x route x own or other patient x own or other unit, by the policy itself, without a platform."""
    text = change(DEFAULT.read_text())
    snapshot, read, world = load_text(text.encode(), directory, {}).snapshot, yaml.safe_load(text), World(*WORLD)
    answers = Counter()
    for cell in cells(read):
        if cell.state != "fresh":
            continue
        role, route = snapshot.roles[cell.role], snapshot.controllers[cell.route]
        scopes = None if role.scopes is None else granted(role.scopes, tuple(read["roles"][cell.role]["scopes"]))
        claims = world.claims(read, cell.route)
        who = Principal("s", "i", role.audience, cell.role, role.permissions, "j", "k", 0.0, claims, scopes=scopes)
        names = re.findall(r"{(\w+)", route.template)
        decision = decide(who, route, {name: world.value(name, cell) for name in names}, cell.method)
        refused = "404" if decision.hidden else "401" if decision.rule == "audience" else "403"
        wanted = standing(read, *(getattr(cell, name) for name in cell.__slots__))
        assert ("passes" if decision.allowed else refused) == (wanted or "passes"), (str(cell), decision)
        answers[wanted] += 1
    assert min(answers[one] for one in ("passes", "401", "403", "404")) > 5, answers


@pytest.fixture
def principal_of():
    def make(snapshot, name):
        role = snapshot.roles[name]
        return Principal("s", "i", role.audience, name, role.permissions, "j", "k", 0.0, {})

    return make

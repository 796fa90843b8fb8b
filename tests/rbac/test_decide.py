"""Access decisions: tables, and a plain model of the rules over a generated matrix."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.context import Principal
from gateway.errors import BindingRefused, NotFound, PermissionRefused, RoleRefused, TokenInvalid
from gateway.rbac.decide import Decision, decide
from gateway.routing.model import Binding, FunctionAction, Route, RouteKind

OWN_RECORD = Binding("patient", "patient", frozenset({"patient"}), hidden=True)
SHADOW = Binding("unit", "units", frozenset(), hidden=False, shadow=True)
OWN_UNIT = Binding("unit", "units", frozenset({"practitioner", "clerk"}), hidden=False)


def principal(role: str = "patient", audience: str = "app", permissions: tuple[str, ...] = ("read",), **claims: Any):
    return Principal("s", "i", audience, role, frozenset(permissions), "j", "k", 0.0, claims)


def route(**changes: Any) -> Route:
    fields: dict[str, Any] = {
        "name": "r", "template": "/{unit}/{patient}", "methods": ("GET",), "kind": RouteKind.FUNCTION,
        "action": FunctionAction("s.f", (), 200), "audiences": frozenset({"app"}), "roles": frozenset({"patient"}),
        "permission": "read",
    }  # fmt: skip
    return Route(**{**fields, **changes})


@pytest.mark.parametrize(
    ("who", "changes", "rule", "error"),
    [
        pytest.param(principal(), {}, "allowed", None, id="allowed"),
        pytest.param(principal(), {"permission": None}, "allowed", None, id="no permission asked"),
        pytest.param(principal(audience="staff"), {}, "audience", TokenInvalid, id="wrong audience"),
        pytest.param(principal(audience="staff"), {"hidden": True}, "audience", NotFound, id="hidden route"),
        pytest.param(principal("clerk"), {}, "role", RoleRefused, id="wrong role"),
        pytest.param(principal("clerk"), {"hidden": True}, "role", RoleRefused, id="wrong role on a hidden route"),
        pytest.param(principal(permissions=()), {}, "permission", PermissionRefused, id="no permission"),
        pytest.param(principal(permissions=("rea", "read2")), {}, "permission", PermissionRefused, id="alike"),
        pytest.param(principal(), {"audiences": frozenset()}, "audience", TokenInvalid, id="route for nobody"),
        pytest.param(principal(), {"roles": frozenset()}, "role", RoleRefused, id="route without roles"),
    ],
)  # fmt: skip
def test_rules(who: Principal, changes: dict[str, Any], rule: str, error: type | None) -> None:
    decision = decide(who, route(**changes), {"unit": "u", "patient": "p"})
    assert (decision.rule, decision.error, decision.allowed) == (rule, error, error is None)
    assert decision.hidden is (error is NotFound)


@pytest.mark.parametrize(
    ("claim", "value", "allowed"),
    [
        pytest.param("p1", "p1", True, id="equal"),
        pytest.param("p1", "p10", False, id="longer"),
        pytest.param("p10", "p1", False, id="substring of the claim"),
        pytest.param("P1", "p1", False, id="other case"),
        pytest.param("p1 ", "p1", False, id="trailing space"),
        pytest.param("e\u0301", "\u00e9", False, id="other normal form"),
        pytest.param(["p0", "p1"], "p1", True, id="member"),
        pytest.param(["p10"], "p1", False, id="substring of a member"),
        pytest.param([], "p1", False, id="empty list"),
        pytest.param([["p1"]], "p1", False, id="nested list"),
        pytest.param([{"p1": 1}], "p1", False, id="object in a list"),
        pytest.param({"p1": "p1"}, "p1", False, id="object"),
        pytest.param(1, "1", False, id="number"),
        pytest.param([1], "1", False, id="number in a list"),
        pytest.param(True, "True", False, id="boolean"),
        pytest.param(None, "None", False, id="null"),
        pytest.param("", "", False, id="empty"),
        pytest.param([""], "", False, id="empty member"),
        pytest.param("*", "p1", False, id="no wildcard"),
    ],
)
def test_binding_compares_strings_and_nothing_else(claim: object, value: str, allowed: bool) -> None:
    bound = route(bindings=(OWN_RECORD,))
    assert decide(principal(patient=claim), bound, {"patient": value}).allowed is allowed


@pytest.mark.parametrize(
    ("who", "params", "error"),
    [
        pytest.param(principal(), {"patient": "p1"}, NotFound, id="claim missing, hidden"),
        pytest.param(principal(patient="p1"), {}, NotFound, id="parameter missing"),
        pytest.param(principal("practitioner"), {"unit": "u"}, BindingRefused, id="claim missing, forbidden"),
        pytest.param(principal("practitioner", units="u"), {"unit": "v"}, BindingRefused, id="other unit"),
        pytest.param(principal("admin", units="u"), {"unit": "u"}, BindingRefused, id="role nobody bound"),
        pytest.param(principal("auditor"), {"unit": "u"}, None, id="role left out on purpose"),
    ],
)  # fmt: skip
def test_bindings_fail_closed(who: Principal, params: dict[str, str], error: type | None) -> None:
    bound = route(
        roles=frozenset({"patient", "practitioner", "admin", "auditor"}),
        bindings=(OWN_RECORD, OWN_UNIT),
        unbound_roles=frozenset({"auditor"}),
    )
    assert decide(who, bound, params).error is error


# --- the matrix, against the rules as the answers page states them


def expected(who: Principal, to: Route, params: dict[str, str]) -> tuple[bool, type | None]:
    """The plain model: what the rules say, without a thought for speed."""
    if who.audience not in to.audiences:
        return False, NotFound if to.hidden else TokenInvalid
    if who.role not in to.roles:
        return False, RoleRefused
    if to.permission is not None and to.permission not in who.permissions:
        return False, PermissionRefused
    mine = [b for b in to.bindings if not b.roles or who.role in b.roles]
    for binding in mine:
        claim = who.claims.get(binding.claim, [])
        values = [claim] if type(claim) is str else claim if type(claim) is list else []
        if params.get(binding.param, "") in ("", None) or params[binding.param] not in [
            v for v in values if type(v) is str
        ]:
            return False, NotFound if binding.hidden else BindingRefused
    if to.bindings and not mine and who.role not in to.unbound_roles:
        return False, BindingRefused
    return True, None


ROLES = {
    "patient": "app",
    "guardian": "app",
    "practitioner": "staff",
    "clerk": "staff",
    "partner": "api",
    "auditor": "ops",
}
ROUTES = [
    route(audiences=frozenset(a), roles=frozenset(r), permission=p, bindings=b, unbound_roles=frozenset(u), hidden=h)
    for a, r, p, b, u, h in itertools.product(
        [("app",), ("app", "staff"), ("ops",)],
        [("patient",), ("patient", "practitioner"), tuple(ROLES)],
        [None, "read", "write"],
        [(), (OWN_RECORD,), (OWN_RECORD, OWN_UNIT), (Binding("patient", "patients", frozenset(), False),)],
        [(), ("auditor", "guardian")],
        [False, True],
    )
]
CLAIMS: list[dict[str, Any]] = [
    {},
    {"patient": "own", "units": ["own"], "patients": ["own", "ward"]},
    {"patient": "other", "units": ["other"], "patients": []},
    {"patient": ["own"], "units": "own", "patients": {"own": 1}},
]
PARAMS = [{"patient": p, "unit": u} for p in ("own", "other", "ow") for u in ("own", "other")]


@pytest.mark.parametrize("role", ROLES)
def test_matrix(role: str) -> None:
    cells = 0
    allowed = 0
    for audience, permissions, claims in itertools.product(
        {ROLES[role], "app", "ops"}, [(), ("read",), ("read", "write")], CLAIMS
    ):
        who = principal(role, audience, permissions, **claims)
        for to, params in itertools.product(ROUTES, PARAMS):
            decision = decide(who, to, params)
            assert (decision.allowed, decision.error) == expected(who, to, params), (who, to, params)
            cells += 1
            allowed += decision.allowed
    assert 0 < allowed < cells


VALUES = st.sampled_from(["a", "b", "", "ab"])
CLAIM = st.one_of(
    VALUES, st.lists(st.one_of(VALUES, st.integers(0, 2), st.none())), st.integers(), st.none(), st.booleans()
)
BINDINGS = st.builds(Binding, VALUES, VALUES, st.frozensets(st.sampled_from(sorted(ROLES))), st.booleans())


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(sorted(ROLES)), st.sampled_from(["app", "staff", "ops"]), st.dictionaries(VALUES, CLAIM),
    st.lists(BINDINGS, max_size=3),
    st.dictionaries(VALUES, VALUES), st.frozensets(st.sampled_from(sorted(ROLES))), st.booleans(),
)  # fmt: skip
def test_generated(role, audience, claims, bindings, params, unbound, hidden) -> None:
    to = route(
        audiences=frozenset({"app", "staff"}), roles=frozenset(set(ROLES) - {"clerk"}), bindings=tuple(bindings),
        unbound_roles=unbound, hidden=hidden,
    )  # fmt: skip
    who = Principal("s", "i", audience, role, frozenset({"read"}), "j", "k", 0.0, claims)
    decision = decide(who, to, params)
    assert (decision.allowed, decision.error) == expected(who, to, params)
    assert isinstance(decision, Decision)


@pytest.mark.parametrize(
    ("bindings", "unbound", "rule"),
    [
        ((SHADOW,), frozenset(), "binding-uncovered"),
        ((SHADOW,), frozenset({"patient"}), "allowed"),
        ((SHADOW, OWN_RECORD), frozenset(), "allowed"),
    ],
    ids=["covers nobody", "refuses nobody", "beside one in force"],
)
def test_a_shadow_binding_decides_nothing(bindings, unbound, rule) -> None:
    watched = route(bindings=bindings, unbound_roles=unbound)
    assert decide(principal(patient="p", units=["u2"]), watched, {"unit": "u", "patient": "p"}).rule == rule

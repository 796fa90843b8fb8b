"""SMART scopes: how each is read, and the bits against a plain model of sets."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.rbac.fhir import RESOURCE_TYPES, interaction_of
from gateway.rbac.scopes import Ceiling, claimed, covers, granted, mask_of, named, read_ceiling, read_need, read_scope

RS, ALL = "rs", "cruds"


@pytest.mark.parametrize(
    ("text", "context", "resource", "letters"),
    [
        ("patient/Observation.rs", "patient", "Observation", "rs"),
        ("user/*.cruds", "user", "*", ALL),
        ("system/Patient.d", "system", "Patient", "d"),
        ("patient/Observation.cd", "patient", "Observation", "cd"),
        ("patient/Observation.read", "patient", "Observation", "rs"),
        ("user/Observation.write", "user", "Observation", "cud"),
        ("user/*.*", "user", "*", ALL),
    ],
)
def test_read(text: str, context: str, resource: str, letters: str) -> None:
    assert read_scope(text) == (context, mask_of(resource, letters))
    assert mask_of(resource, letters) != 0


@pytest.mark.parametrize(
    "text",
    [
        "", "openid", "launch/patient", "patient", "patient/", "patient/Observation", "patient/Observation.",
        "patient/Observation.sr", "patient/Observation.rr", "patient/Observation.rx", "patient/Observation.RS",
        "patient/observation.rs", "patient/Observations.rs", "Patient/Observation.rs", "patients/Observation.rs",
        "patient/Obs*.rs", "patient/*Observation.rs", "patient/**.rs", "*/Observation.rs", "patient/Observation.rs ",
        " patient/Observation.rs", "patient/Observation.rs\n", "patient/Observation.rs?category=laboratory",
        "patient/Observation.rs?", "patient/Observation.read?x=y", "patient/Observation.rs patient/Patient.rs",
        "patient/Observation.readwrite", "patient/Observation.r.s", "patient//Observation.rs", "user/Observation.*s",
    ],
)  # fmt: skip
def test_no_scope(text: str) -> None:
    assert read_scope(text) is None


@pytest.mark.parametrize(
    ("claims", "texts"),
    [
        ({}, ()),
        ({"scope": "a b"}, ("a", "b")),
        ({"scope": ["a", "b"]}, ("a", "b")),
        ({"scp": "a b"}, ("a", "b")),
        ({"scp": ["a"]}, ("a",)),
        ({"scope": "", "scp": "a"}, ("",)),
        ({"scope": ["a b"]}, ("a b",)),
        ({"scope": "a\tb"}, ("a\tb",)),
    ],
    ids=["none", "text", "list", "scp", "scp list", "scope before scp", "a space in a member", "tab"],
)
def test_claimed(claims: dict[str, object], texts: tuple[str, ...]) -> None:
    assert claimed(claims) == texts


@pytest.mark.parametrize(
    ("method", "path", "found"),
    [
        ("GET", "Observation", ("Observation", "s")),
        ("HEAD", "Observation", ("Observation", "s")),
        ("GET", "Observation/7", ("Observation", "r")),
        ("GET", "Observation/7/_history", ("Observation", "r")),
        ("GET", "Observation/7/_history/2", ("Observation", "r")),
        ("GET", "Observation/_history", ("Observation", "s")),
        ("POST", "Observation", ("Observation", "c")),
        ("POST", "Observation/_search", ("Observation", "s")),
        ("GET", "Observation/_search", ("Observation", "s")),
        ("PUT", "Observation/7", ("Observation", "u")),
        ("PUT", "Observation", ("Observation", "cu")),
        ("PATCH", "Observation/7", ("Observation", "u")),
        ("DELETE", "Observation/7", ("Observation", "d")),
        ("DELETE", "Observation", ("Observation", "d")),
        ("GET", "Patient/7/Observation", ("Observation", "s")),
        ("GET", "Patient/7/*", ("*", "s")),
        ("GET", "", ("*", "s")),
        ("GET", "_history", ("*", "s")),
        ("GET", "metadata", ("CapabilityStatement", "r")),
        ("POST", "", None),
        ("POST", "Observation/7", None),
        ("GET", "Patient/7/$everything", None),
        ("POST", "$process-message", None),
        ("GET", "Observation/$lastn", None),
        ("GET", "observation/7", None),
        ("GET", "Nothing/7", None),
        ("GET", "Patient/7/Nothing", None),
        ("DELETE", "Patient/7/Observation", None),
        ("GET", "Patient/7/_history/2/x", None),
        ("GET", "Patient/", None),
        ("GET", "Patient/a b", None),
        ("PUT", "Observation/_search", None),
        ("OPTIONS", "Observation", None),
        ("", "Observation", None),
    ],
)
def test_interaction(method: str, path: str, found: tuple[str, str] | None) -> None:
    assert interaction_of(method, path) == found


def test_every_type_has_bits_of_its_own() -> None:
    masks = [mask_of(name, letter) for name in RESOURCE_TYPES for letter in ALL]
    assert len(set(masks)) == len(masks)
    assert all(mask.bit_count() == 1 for mask in masks)
    assert mask_of("*", ALL) == sum(masks) | 31, "and `*` has one of each, and those of types to come"


# --- the model: sets of (context, type, letter), `*` written out

TYPES = ("Observation", "Patient", "Task", "*")
SCOPE = st.builds(
    "{}/{}.{}{}".format,
    st.sampled_from(["patient", "user", "system", "admin"]),
    st.sampled_from([*TYPES, "Nothing"]),
    st.sampled_from(["r", "s", "rs", "cud", "cruds", "read", "write", "*", "sr", ""]),
    st.sampled_from(["", "", "", "?category=x"]),
)
LETTERS = {"read": "rs", "write": "cud", "*": "cruds"}


def allowed(texts: tuple[str, ...]) -> set[tuple[str, str, str]]:
    """What scopes allow, one triple each, the plain way."""
    out = set()
    for text in texts:
        context, _, rest = text.partition("/")
        resource, _, letters = rest.partition(".")
        letters = LETTERS.get(letters, letters)
        if context in ("patient", "user", "system") and resource in TYPES and re.fullmatch("c?r?u?d?s?", letters):
            names = (*TYPES, "Account") if resource == "*" else (resource,)
            out |= set(itertools.product([context], names, letters))
    return out


@settings(max_examples=1_500, deadline=None)
@given(
    st.lists(SCOPE, max_size=5).map(tuple),
    st.lists(SCOPE, max_size=4).map(tuple),
    st.sampled_from([*TYPES, "Account"]),
    st.sampled_from(["r", "s", "c", "rs", "cu", "cruds"]),
    st.booleans(),
)
def test_grants_what_the_model_grants(token, ceiling, resource, letters, own) -> None:
    declared = tuple(text for text in ceiling if read_scope(text) is not None)
    scopes = granted(read_ceiling(declared), token)
    have = allowed(token) & allowed(declared)
    wanted = {(resource, letter) for letter in letters}
    counted = {(r, letter) for context, r, letter in have if context != "patient" or own}
    need = read_need(f"{resource}.{letters}")
    assert covers(scopes, need, own=own) == (wanted <= counted)
    assert covers(scopes, 0, own=own) == bool(counted)
    assert bool(scopes) == bool(have)


def test_what_to_ask_for() -> None:
    both = granted(read_ceiling(("patient/*.rs", "system/*.rs")), ())
    assert [named(both, "Observation.s", own=own) for own in (True, False)] == [
        "patient/Observation.s",
        "system/Observation.s",
    ]
    assert named(granted(read_ceiling(("patient/*.rs",)), ()), "Observation.s", own=False) == ""
    assert read_ceiling(("patient/*.rs",)) == Ceiling(mask_of("*", RS), 0, 0)
    with pytest.raises(ValueError, match="not a scope"):
        read_ceiling(("openid",))

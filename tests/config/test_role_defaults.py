"""How long logins last when the document does not say, and what it takes to change that."""

from __future__ import annotations

import pytest

from gateway.config.model import Key, Role
from gateway.config.role_defaults import Lifetimes, lifetimes_of

MINUTE, HOUR, DAY = 60, 3_600, 86_400


def role(**fields):
    return Role(audience="app", keys=(Key(kid="k", alg="HS256"),), **fields)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("patient", Lifetimes(15 * MINUTE, 14 * DAY, 0, 30 * DAY, False)),
        ("practitioner", Lifetimes(10 * MINUTE, 12 * HOUR, 30 * MINUTE, 12 * HOUR, False)),
        ("hcu_clerk", Lifetimes(10 * MINUTE, 12 * HOUR, 30 * MINUTE, 12 * HOUR, False)),
        ("hcu_admin", Lifetimes(10 * MINUTE, 8 * HOUR, 0, 8 * HOUR, False)),
        ("partner", Lifetimes(5 * MINUTE, 0, 0, 5 * MINUTE, False)),
        ("platform_admin", Lifetimes(5 * MINUTE, 4 * HOUR, 0, 4 * HOUR, True)),
        ("auditor", Lifetimes(5 * MINUTE, 4 * HOUR, 0, 4 * HOUR, True)),
        ("anyone", Lifetimes(15 * MINUTE, 0, 0, 15 * MINUTE, False)),
    ],
)
def test_defaults(name, expected):
    assert lifetimes_of(name, role()) == expected


@pytest.mark.parametrize(
    ("name", "fields", "expected"),
    [
        ("patient", {"access_lifetime_s": 60}, Lifetimes(60, 14 * DAY, 0, 30 * DAY)),
        ("patient", {"session_absolute_s": DAY}, Lifetimes(900, DAY, 0, DAY)),
        ("practitioner", {"session_absolute_s": 900}, Lifetimes(600, 900, 900, 900)),
        ("practitioner", {"session_idle_s": 0}, Lifetimes(600, 12 * HOUR, 0, 12 * HOUR)),
        ("anyone", {"refresh_lifetime_s": DAY}, Lifetimes(900, DAY, 0, DAY)),
        ("anyone", {"access_lifetime_s": 7_200}, Lifetimes(7_200, 0, 0, 7_200)),
        ("auditor", {"second_factor": False}, Lifetimes(300, 4 * HOUR, 0, 4 * HOUR, False)),
        ("patient", {"refresh_lifetime_s": 0}, Lifetimes(900, 0, 0, 30 * DAY)),
    ],
)
def test_what_the_document_says_counts(name, fields, expected):
    assert lifetimes_of(name, role(**fields)) == expected

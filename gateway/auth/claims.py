"""Checks of claims beyond those of every token (RFC 7519), which `fastpath.token` has compiled in: one row each.

A row is run once, when a token is first seen, and only if the claim is there; it keeps bindings and controllers from
meeting a type they do not expect.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

ClaimCheck = tuple[str, Callable[[Any], bool], str]
"""Shape: (claim, whether its value is good, what it must be)."""


def is_name(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= 256


def is_name_or_names(value: Any) -> bool:
    return is_name(value) or (isinstance(value, list) and all(map(is_name, value)))


CHECKS: tuple[ClaimCheck, ...] = (
    ("patient", is_name, "a name"),
    ("units", is_name_or_names, "a name or an array of names"),
    ("org", is_name, "a name"),
    ("purpose", is_name, "a name"),
    ("client_id", is_name, "a name"),
    ("azp", is_name, "a name"),
    ("sid", is_name, "a name"),
)

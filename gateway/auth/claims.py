"""Checks of claims beyond those of every token (RFC 7519), which `fastpath.token` has compiled in: one row each.

A row is run once, when a token is first seen, and only if the claim is there; it keeps bindings and controllers from
meeting a type they do not expect.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastpath.strict import is_name, is_name_or_names

ClaimCheck = tuple[str, Callable[[Any], bool], str]
"""Shape: (claim, whether its value is good, what it must be)."""


CHECKS: tuple[ClaimCheck, ...] = (
    ("patient", is_name, "a name"),
    ("units", is_name_or_names, "a name or an array of names"),
    ("org", is_name, "a name"),
    ("purpose", is_name, "a name"),
    ("client_id", is_name, "a name"),
    ("azp", is_name, "a name"),
    ("sid", is_name, "a name"),
)

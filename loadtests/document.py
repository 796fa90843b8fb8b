"""The load's configuration document: the demo's, with a fleet of units and with limits that no load reaches."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

UNREACHED = 1_000_000
"""Requests a second and a burst that a load on one machine does not reach."""
TOKEN_MARGIN_S = 3_600
"""How long the callers' tokens outlive the load."""


def unit_ids(count: int) -> list[str]:
    return [f"load-unit-{number:04d}" for number in range(1, count + 1)]


def token_lifetime_s(seconds: int) -> int:
    return seconds + TOKEN_MARGIN_S


def for_load(demo: dict[str, Any], units: Iterable[str], seconds: int) -> dict[str, Any]:
    """The demo's document, changed where a load needs it; the policy itself stays.

    Shapes: of each unit the public key is expected in `keys/UNIT.pub` beside the document.
    """
    document = copy.deepcopy(demo)
    for limit in document.get("limits", {}).values():
        limit.update(rate=UNREACHED, burst=UNREACHED)
    for role in document["roles"].values():
        role["max_lifetime_s"] = max(role.get("max_lifetime_s", 0), token_lifetime_s(seconds))
    document.setdefault("units", {}).update({unit: _unit(unit) for unit in units})
    return document


def _unit(unit: str) -> dict[str, Any]:
    key = {"kid": unit, "alg": "EdDSA", "public_key": f"file:keys/{unit}.pub"}
    return {"name": unit.replace("-", " "), "keys": [key], "max_connections": 4}

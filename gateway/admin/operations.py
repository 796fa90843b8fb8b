"""Every operation of the Admin API."""

from __future__ import annotations

from typing import Any

from gateway.admin import access, explain, limits, units, versions
from gateway.admin.desk import Desk
from gateway.admin.openapi import document
from gateway.admin.operation import Call, Operation, Reply


def _describe(desk: Desk, call: Call) -> Reply:
    return Reply(describe())


def describe() -> dict[str, Any]:
    """The API's OpenAPI document."""
    return document(OPERATIONS)


OPERATIONS: tuple[Operation, ...] = (
    *units.OPERATIONS,
    *versions.OPERATIONS,
    *access.OPERATIONS,
    *limits.OPERATIONS,
    *explain.OPERATIONS,
    Operation(
        name="openapi", method="GET", path="/openapi.json", permission=None, answer=dict, run=_describe,
        summary="This document",
    ),
)  # fmt: skip

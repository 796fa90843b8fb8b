"""A relayed or proxied request stays HTTP: another protocol on its connection is refused, not ignored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.errors import NotImplementedHere

_OFFERS = frozenset({"h2c"})
"""What some HTTP clients offer with every request; to go on in HTTP/1.1 is a full answer (RFC 9113, 3.1)."""


def refuse_upgrade(env: Mapping[str, Any]) -> None:
    """Refuse a request that asks for another protocol.

    Raises: NotImplementedHere.
    Source: RFC 9110, 7.8: only what `Connection` names too is asked for.
    """
    if "upgrade" in _members(env.get("HTTP_CONNECTION", "")) and _members(env["HTTP_UPGRADE"]) - _OFFERS:
        raise NotImplementedHere("This route is not upgraded to another protocol")


def _members(value: str) -> set[str]:
    return {member.strip().lower() for member in value.split(",")} - {""}

"""The table that the rules enter themselves into."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from gateway.conformance.kit import Kit
from gateway.conformance.peer import Broken

Look = Callable[[Kit], None]


@dataclass(frozen=True, slots=True)
class Rule:
    """`look` raises Broken. `slow`: it takes a minute or more."""

    text: str
    look: Look
    slow: bool = False


ENTERED: Final[dict[str, Rule]] = {}
"""By id, as their modules are imported."""


def rule(name: str, text: str, slow: bool = False) -> Callable[[Look], Look]:
    """Enter a function as a rule."""

    def add(look: Look) -> Look:
        ENTERED[name] = Rule(text, look, slow)
        return look

    return add


def need(condition: object, text: str) -> None:
    """Raises: Broken with the text unless it is so."""
    if not condition:
        raise Broken(text)

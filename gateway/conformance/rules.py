"""All rules, in the order of docs/relay-protocol.md, which says the same in sentences."""

from __future__ import annotations

from typing import Final

from gateway.conformance import certainty, greetings, life, limits, requests, violations
from gateway.conformance.registry import ENTERED, Rule

_PARTS: Final = [part.__name__ for part in (greetings, requests, limits, certainty, violations, life)]
RULES: Final[dict[str, Rule]] = dict(sorted(ENTERED.items(), key=lambda entry: _PARTS.index(entry[1].look.__module__)))
"""By id."""

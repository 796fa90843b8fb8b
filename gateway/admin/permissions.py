"""What a role may be allowed to do at the Admin API."""

from __future__ import annotations

from typing import Final

PREFIX: Final = "admin."
UNITS_READ: Final = "admin.units.read"
UNITS_WRITE: Final = "admin.units.write"
CONFIG_READ: Final = "admin.config.read"
CONFIG_WRITE: Final = "admin.config.write"
KEYS: Final = "admin.keys"
REVOKE: Final = "admin.revoke"
SESSIONS: Final = "admin.sessions"
LIMITS_READ: Final = "admin.limits.read"
EXPLAIN: Final = "admin.explain"
ALL: Final = frozenset(
    {UNITS_READ, UNITS_WRITE, CONFIG_READ, CONFIG_WRITE, KEYS, REVOKE, SESSIONS, LIMITS_READ, EXPLAIN}
)

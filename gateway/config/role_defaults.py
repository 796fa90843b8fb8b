"""How long logins of a role last, and if they need a second factor: by what the document says, else by its name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from gateway.config.model import Role

_MINUTE_S = 60
_HOUR_S = 3_600
_DAY_S = 86_400


@dataclass(frozen=True, slots=True)
class Lifetimes:
    """Units: seconds. Shapes: `refresh_s` 0: no refresh tokens; `idle_s` 0: no such limit."""

    access_s: int
    refresh_s: int
    idle_s: int
    absolute_s: int
    second_factor: bool = False


_STAFF = Lifetimes(10 * _MINUTE_S, 12 * _HOUR_S, 30 * _MINUTE_S, 12 * _HOUR_S)
_OPERATIONS = Lifetimes(5 * _MINUTE_S, 4 * _HOUR_S, 0, 4 * _HOUR_S, second_factor=True)

BY_NAME: Final[dict[str, Lifetimes]] = {
    "patient": Lifetimes(15 * _MINUTE_S, 14 * _DAY_S, 0, 30 * _DAY_S),
    "practitioner": _STAFF,
    "hcu_clerk": _STAFF,
    "hcu_admin": Lifetimes(10 * _MINUTE_S, 8 * _HOUR_S, 0, 8 * _HOUR_S),
    "partner": Lifetimes(5 * _MINUTE_S, 0, 0, 5 * _MINUTE_S),
    "platform_admin": _OPERATIONS,
    "auditor": _OPERATIONS,
}
OTHERS: Final = Lifetimes(15 * _MINUTE_S, 0, 0, 15 * _MINUTE_S)


def lifetimes_of(name: str, role: Role) -> Lifetimes:
    """What holds for a role. A limit of the session that the document does not set gives way to what it does set."""
    default = BY_NAME.get(name, OTHERS)
    access_s = _or(role.access_lifetime_s, default.access_s)
    refresh_s = _or(role.refresh_lifetime_s, default.refresh_s)
    absolute_s = _or(role.session_absolute_s, max(default.absolute_s, access_s, role.refresh_lifetime_s or 0))
    return Lifetimes(
        access_s,
        # NOTE: a shorter session than the default one shortens the defaults of what lies within it.
        refresh_s if role.refresh_lifetime_s is not None else min(refresh_s, absolute_s),
        _or(role.session_idle_s, min(default.idle_s, absolute_s)),
        absolute_s,
        default.second_factor if role.second_factor is None else role.second_factor,
    )


def _or(given: int | None, default: int) -> int:
    return default if given is None else given

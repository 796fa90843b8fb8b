"""What a worker depends on, whether it is there, and since when: for /readyz, /status and operators."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime


@dataclass(slots=True)
class Dependency:
    """One of them. Without a `required` one the worker is not ready; without another it serves what it can.

    Units: `since_s` seconds since 1970 when `up` became what it is; noticed at a look, so up to five seconds late.
    """

    name: str
    check: Callable[[], bool]
    required: bool
    up: bool = True
    since_s: float = 0.0


@dataclass(slots=True)
class Health:
    """All dependencies of a worker."""

    dependencies: list[Dependency]
    now_s: Callable[[], float] = time.time
    began_s: float = field(init=False)

    def __post_init__(self) -> None:
        self.began_s = self.now_s()
        for one in self.dependencies:
            one.since_s, one.up = self.began_s, one.check()

    def look(self) -> None:
        """Note what has changed."""
        now_s = self.now_s()
        for one in self.dependencies:
            up = one.check()
            if up != one.up:
                one.up, one.since_s = up, now_s

    def ready(self) -> bool:
        """Is everything there that a request needs? Looks anew."""
        self.look()
        return all(one.up for one in self.dependencies if one.required)

    def describe(self) -> dict[str, dict[str, object]]:
        """Each dependency by its name: {status: up | down, since, required}."""
        self.look()
        return {
            one.name: {"status": "up" if one.up else "down", "since": _utc(one.since_s), "required": one.required}
            for one in self.dependencies
        }


def _utc(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")

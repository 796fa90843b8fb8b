"""Who asks whom in a load: written by the rig before the load begins, read by the callers and the fleet."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson


@dataclass(frozen=True, slots=True)
class Caller:
    """Someone with a token; `subject` is the patient's id, or the unit's for its staff."""

    subject: str
    token: str


@dataclass(frozen=True, slots=True)
class Unit:
    """Shapes: `key` is the path of its private key in PEM."""

    id: str
    key: str


@dataclass(frozen=True, slots=True)
class Plan:
    """Shapes: `booking_unit` is the portal's unit that appointments are made at."""

    gateway: str
    patients: list[Caller]
    staff: list[Caller]
    units: list[Unit]
    booking_unit: str


def write_plan(plan: Plan, path: Path) -> None:
    """SEC: the tokens in it are as good as passwords, so only the owner reads the file."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(orjson.dumps(asdict(plan)))


def read_plan(path: Path) -> Plan:
    """Raises: OSError, ValueError, KeyError or TypeError if it is not a plan."""
    raw: dict[str, Any] = orjson.loads(path.read_bytes())
    return Plan(
        gateway=raw["gateway"],
        patients=[Caller(**caller) for caller in raw["patients"]],
        staff=[Caller(**caller) for caller in raw["staff"]],
        units=[Unit(**unit) for unit in raw["units"]],
        booking_unit=raw["booking_unit"],
    )

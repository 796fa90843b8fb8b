"""A fault of the configuration document: where it is and why it is refused."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

_PLAIN_KEY = re.compile(r"[A-Za-z0-9_-]+\Z")
_LAST_STEP = re.compile(r'(\[\d+\]|\["(?:[^"\\]|\\.)*"\]|\.?[A-Za-z0-9_-]+)\Z')

WHOLE = "document"
"""Path of a fault that belongs to no single place."""


@dataclass(frozen=True, slots=True)
class Fault:
    """`path` as in `controllers.lab-results.roles[1]`; the reason never contains a secret's value.

    Units: `line` counts from 1.
    """

    path: str
    reason: str
    line: int | None = None

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def step(path: str, key: str | int) -> str:
    """The path one step further down; a key that is not a plain word is quoted."""
    if isinstance(key, int):
        return f"{path}[{key}]"
    if not _PLAIN_KEY.match(key):
        quoted = key.encode("ascii", "backslashreplace").decode().replace('"', '\\"')
        return f'{path}["{quoted}"]'
    return key if path == WHOLE else f"{path}.{key}"


def line_of(path: str, lines: Mapping[str, int]) -> int | None:
    """The line of a path, or of the nearest one around it that the text has."""
    while path not in lines:
        last = _LAST_STEP.search(path)
        if last is None or last.start() == 0:
            return lines.get(WHOLE)
        path = path[: last.start()]
    return lines[path]


def located(faults: Iterable[Fault], lines: Mapping[str, int]) -> list[Fault]:
    """The faults with their lines, in the order of the text."""
    placed = [f if f.line is not None else replace(f, line=line_of(f.path, lines)) for f in faults]
    return sorted(placed, key=lambda f: (f.line or 0, f.path, f.reason))

"""One TOML document read strictly: values by kind, unknown keys refused, every fault with its line and path."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from gateway.agent.toml_lines import Path as KeyPath
from gateway.agent.toml_lines import key_lines

_Value = TypeVar("_Value")


class BadConfig(ValueError):
    """A file the agent cannot start with; `faults` are "line N: path: what is wrong", in the file's order."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


class Reader:
    """Takes values out of the document and gathers what is wrong with them. Paths are relative to `base`."""

    def __init__(self, text: str, base: Path) -> None:
        self.base = base
        self._lines = key_lines(text)
        self._faults: list[tuple[int, str]] = []

    def fault(self, path: KeyPath, text: str) -> None:
        line, shown = 0, path
        while path not in self._lines and path:
            path = path[:-1]
        line = self._lines.get(path, 1)
        self._faults.append((line, f"line {line}: {_shown(shown)}: {text}"))

    def finish(self) -> None:
        """Raises: BadConfig."""
        if self._faults:
            raise BadConfig([text for _, text in sorted(self._faults, key=lambda fault: fault[0])])

    def table(self, parent: dict[str, Any], path: KeyPath) -> Table:
        value = parent.get(str(path[-1]), {})
        if not isinstance(value, dict):
            self.fault(path, "must be a table")
            value = {}
        return Table(self, value, path)

    def file(self, path: KeyPath, name: str) -> Path | None:
        found = self.base / name
        if not found.is_file():
            self.fault(path, f"no such file: {found}")
            return None
        return found


class Table:
    """One table of the document; what is never asked for is unknown."""

    def __init__(self, reader: Reader, values: dict[str, Any], path: KeyPath) -> None:
        self._reader = reader
        self._values = values
        self._known: set[str] = set()
        self.path = path

    def fault(self, key: str, text: str) -> None:
        self._reader.fault((*self.path, key), text)

    def _take(self, key: str, kinds: tuple[type, ...], name: str) -> Any:
        self._known.add(key)
        value = self._values.get(key)
        if value is None:
            return None
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            self.fault(key, f"must be {name}")
            return None
        return value

    def text(self, key: str, *, needed: bool = False) -> str | None:
        value: str | None = self._take(key, (str,), "a string")
        if value is None and needed and key not in self._values:
            self.fault(key, "is missing")
        return value

    def flag(self, key: str) -> bool:
        return bool(self._take(key, (bool,), "true or false"))

    def number(self, key: str, default: float, low: float, high: float) -> float:
        value = self._take(key, (int, float), "a number")
        return self._in_range(key, value, default, low, high)

    def whole(self, key: str, default: int, low: int, high: int) -> int:
        value = self._take(key, (int,), "a whole number")
        return int(self._in_range(key, value, default, low, high))

    def _in_range(self, key: str, value: float | None, default: float, low: float, high: float) -> float:
        if value is None:
            return default
        if not low <= value <= high:
            self.fault(key, f"must be {low:g} to {high:g}")
            return default
        return value

    def texts(self, key: str) -> list[str] | None:
        value = self._take(key, (list,), "a list of strings")
        if value is None:
            return None
        for place, item in enumerate(value):
            if not isinstance(item, str):
                self._reader.fault((*self.path, key, place), "must be a string")
        return [item for item in value if isinstance(item, str)]

    def parsed(self, key: str, read: Callable[[str], _Value], *, needed: bool = False) -> _Value | None:
        """A string that `read` turns into something, or refuses with ValueError."""
        value = self.text(key, needed=needed)
        if value is None:
            return None
        try:
            return read(value)
        except ValueError as error:
            self.fault(key, str(error))
            return None

    def file(self, key: str) -> Path | None:
        value = self.text(key)
        return None if value is None else self._reader.file((*self.path, key), value)

    def place(self, key: str) -> Path | None:
        """A path that need not exist."""
        value = self.text(key)
        return None if value is None else self._reader.base / value

    def inner(self, key: str) -> Table:
        self._known.add(key)
        return self._reader.table(self._values, (*self.path, key))

    def has(self, key: str) -> bool:
        return key in self._values

    def tables(self, key: str) -> list[Table]:
        self._known.add(key)
        value = self._values.get(key, [])
        if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
            self.fault(key, f"must be tables, written as [[{key}]]")
            return []
        return [Table(self._reader, one, (*self.path, key, place)) for place, one in enumerate(value)]

    def close(self) -> None:
        for key in self._values:
            if key not in self._known:
                self.fault(key, "is not known here")


def _shown(path: KeyPath) -> str:
    """As in `service[1].allow[0]`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")

"""YAML text -> plain data with line numbers; a small, unsurprising part of YAML 1.2.

Anchors, aliases, tags, merge keys, duplicate keys, directives and a second document are refused, each with its place.
Plain scalars are resolved by the YAML 1.2 core schema, so `no`, `on`, `1:30` and dates are strings.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeGuard

import yaml

from gateway.config.fault import WHOLE, Fault, step

MAX_BYTES = 4 * 1024 * 1024
MAX_DEPTH = 32

_NULL = frozenset(("", "~", "null", "Null", "NULL"))
_BOOL = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_NO_STRINGS = frozenset("0123456789+-.~nNtTfF")
"""What a plain scalar begins with that may be something else than a string.

PERF: a worker that starts with 5,000 units reads 60,000 scalars: 0.36 s of CPU time; looking at all, 0.45."""
_DECIMAL = re.compile(r"[-+]?[0-9]{1,18}\Z")
_DIGITS = re.compile(r"[-+]?[0-9]+\Z")
_LEADING_ZERO = re.compile(r"[-+]?0[0-9]+\Z")
_OCTAL = re.compile(r"0o[0-7]{1,20}\Z")
_HEX = re.compile(r"0x[0-9a-fA-F]{1,15}\Z")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?\Z")
_SPECIAL_FLOAT = re.compile(r"([-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))\Z")

# NOTE: the parser of libyaml, where PyYAML has it, only for its speed on large documents; both yield the same events.
_LOADER: type[yaml.SafeLoader] | type[yaml.CSafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(slots=True)
class Source:
    """Shapes: `data` is dict, list, str, int, float, bool or None, as nested; `lines` maps each path to its line."""

    data: object = None
    lines: dict[str, int] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)


class _Unreadable(Exception):
    """The text cannot be followed past this place."""


def read(raw: bytes) -> Source:
    """Decode a document; what is wrong with it stands in `faults`, and `data` is whole only without any."""
    source = Source()
    if len(raw) > MAX_BYTES:
        source.faults.append(Fault(WHOLE, f"is larger than {MAX_BYTES} bytes"))
        return source
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        source.faults.append(Fault(WHOLE, "is not UTF-8", line))
        return source
    _compose(text, source)
    return source


def _compose(text: str, source: Source) -> None:
    events = yaml.parse(text, Loader=_LOADER)
    try:
        _Composer(events, source).compose()
    except _Unreadable:
        pass
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark is not None else None
        source.faults.append(Fault(WHOLE, f"is not YAML: {error.problem or error.context}", line))
    except yaml.reader.ReaderError as error:
        before = text[: error.position] if isinstance(error.position, int) else ""
        source.faults.append(Fault(WHOLE, "holds a character YAML does not allow", before.count("\n") + 1))
    except yaml.YAMLError:
        source.faults.append(Fault(WHOLE, "is not YAML"))


class _Composer:
    """Follows the parser's events; a fault is noted and reading goes on."""

    def __init__(self, events: Iterator[yaml.Event], source: Source) -> None:
        self._events = events
        self._source = source

    def compose(self) -> None:
        self._next()
        start = self._next()
        if isinstance(start, yaml.StreamEndEvent):
            self._fault(WHOLE, "is empty", start)
            return
        if isinstance(start, yaml.DocumentStartEvent) and (start.version or start.tags):
            self._fault(WHOLE, "has a directive: directives are refused", start)
        self._source.data = self._value(self._next(), WHOLE, 0)
        self._next()
        after = self._next()
        if not isinstance(after, yaml.StreamEndEvent):
            self._fault(WHOLE, "a second document begins here: one file is one document", after)

    def _next(self) -> yaml.Event:
        return next(self._events)

    def _fault(self, path: str, reason: str, event: yaml.Event) -> None:
        self._source.faults.append(Fault(path, reason, _line(event)))

    def _value(self, event: yaml.Event, path: str, depth: int) -> object:
        self._source.lines.setdefault(path, _line(event))
        if depth > MAX_DEPTH:
            self._fault(path, f"is nested deeper than {MAX_DEPTH} levels", event)
            raise _Unreadable
        if isinstance(event, yaml.AliasEvent):
            self._fault(path, f"*{event.anchor}: aliases are refused", event)
            return None
        if anchor := getattr(event, "anchor", None):
            self._fault(path, f"&{anchor}: anchors are refused", event)
        if getattr(event, "tag", None):
            self._fault(path, "has an explicit tag: tags are refused", event)
        if isinstance(event, yaml.MappingStartEvent):
            return self._mapping(path, depth)
        if isinstance(event, yaml.SequenceStartEvent):
            return self._sequence(path, depth)
        return self._scalar(event, path)

    def _sequence(self, path: str, depth: int) -> list[object]:
        items: list[object] = []
        while not isinstance(event := self._next(), yaml.SequenceEndEvent):
            items.append(self._value(event, step(path, len(items)), depth + 1))
        return items

    def _mapping(self, path: str, depth: int) -> dict[str, object]:
        members: dict[str, object] = {}
        while not isinstance(event := self._next(), yaml.MappingEndEvent):
            key = self._key(event, path, depth)
            if key is None:
                self._value(self._next(), path, depth + 1)
                continue
            below = step(path, key)
            if key in members:
                first = self._source.lines[below]
                self._fault(below, f"is a duplicate key, first given on line {first}", event)
                self._value(self._next(), below, depth + 1)
                continue
            self._source.lines[below] = _line(event)
            members[key] = self._value(self._next(), below, depth + 1)
        return members

    def _key(self, event: yaml.Event, path: str, depth: int) -> str | None:
        """The key as a string; None, with the fault noted, for anything else."""
        value = self._value(event, path, depth + 1)
        if isinstance(event, yaml.AliasEvent):
            return None
        if isinstance(event, yaml.ScalarEvent) and value == "<<" and event.implicit[0]:
            self._fault(path, "has a merge key (<<): merge keys are refused", event)
            return None
        if not isinstance(value, str):
            self._fault(path, f"has a key that is not a string: it reads as {_kind(value)}, quote it", event)
            return None
        return value

    def _scalar(self, event: yaml.Event, path: str) -> object:
        assert isinstance(event, yaml.ScalarEvent)  # noqa: S101
        if not event.implicit[0] or (event.value and event.value[0] not in _NO_STRINGS):
            return event.value
        if _LEADING_ZERO.match(event.value):
            self._fault(path, "is a number with a leading zero, which readers take differently", event)
            return None
        if _DIGITS.match(event.value) and not _DECIMAL.match(event.value):
            self._fault(path, "is a number of more than 18 digits", event)
            return None
        if _SPECIAL_FLOAT.match(event.value):
            self._fault(path, "is not a finite number", event)
            return None
        return _resolve(event.value)


def _line(event: yaml.Event) -> int:
    mark = event.start_mark
    return mark.line + 1 if mark is not None else 1


def _resolve(text: str) -> object:
    """A plain scalar by the core schema.

    Source: YAML 1.2.2, section 10.3.2.
    """
    if text in _NULL:
        return None
    if text in _BOOL:
        return _BOOL[text]
    if _DECIMAL.match(text):
        return int(text)
    if _OCTAL.match(text):
        return int(text[2:], 8)
    if _HEX.match(text):
        return int(text[2:], 16)
    if _FLOAT.match(text):
        return float(text)
    return text


def _kind(value: object) -> str:
    if value is None:
        return "null"
    return {bool: "a boolean", int: "a number", float: "a number", list: "a list", dict: "a mapping"}[type(value)]


def is_mapping(value: object) -> TypeGuard[dict[str, object]]:
    return isinstance(value, dict)

"""Text -> Document, strictly, naming every fault and not only the first.

The struct types of `gateway.config.model` are walked field by field. What is faulty is left out (an unknown field, an
optional scalar) or takes its whole entry with it, so that the sound rest can still be cross-checked in the same run.
"""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec
from msgspec import UNSET, Struct

from gateway.config.fault import WHOLE, Fault, located, step
from gateway.config.model import Document
from gateway.config.source import Source, is_mapping, read

SECTIONS = (
    "audiences",
    "roles",
    "limits",
    "upstreams",
    "units",
    "controllers",
    "clients",
    "apps",
    "identity_providers",
)

_AT = re.compile(r" - at `[^`]*`\Z")
_TYPES = re.compile(r"Expected `([^`]+)`, got `([^`]+)`\Z")
_KINDS = {
    "str": "text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "object": "a mapping",
    "array": "a list",
    "null": "null",
}


@dataclass(frozen=True, slots=True)
class Parsed:
    """Shapes: `document` holds the sound entries, and is the whole document only if `faults` is empty.

    `dropped` are the names of the entries, by section, that are in the text and not in `document`; `lines` maps paths
    to line numbers.
    """

    document: Document | None
    faults: list[Fault]
    lines: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, frozenset[str]] = field(default_factory=dict)


def parse(text: str | bytes, reads: Callable[[bytes], Source] = read) -> Parsed:
    """Decode a document. Pure: reads no file, no environment; `reads` makes plain data of the text."""
    source = reads(text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text)
    if not is_mapping(source.data):
        unread = source.faults or [Fault(WHOLE, "must be a mapping")]
        return Parsed(None, located(unread, source.lines), source.lines)
    faults: list[Fault] = []
    document = _document(source.data, faults)
    faults = without_echoes(source.faults, faults)
    dropped = {name: _dropped(source.data.get(name), getattr(document, name)) for name in SECTIONS}
    return Parsed(document, located(faults, source.lines), source.lines, dropped)


def without_echoes(faults: list[Fault], later: list[Fault]) -> list[Fault]:
    """All faults, except later ones at a place that is known to be faulty: they are about what is left of it."""
    known = {fault.path for fault in faults}
    return [*faults, *(fault for fault in later if fault.path not in known)]


def canonical(document: Document) -> bytes:
    """The one spelling of a document: JSON with sorted keys and every default written out."""
    return msgspec.json.encode(document, order="deterministic")


def _dropped(given: object, kept: dict[str, Any]) -> frozenset[str]:
    return frozenset(given) - frozenset(kept) if is_mapping(given) else frozenset()


def _document(data: dict[str, object], faults: list[Fault]) -> Document:
    fields, _ = _fields(data, Document, WHOLE, faults)
    fields.setdefault("version", 1)
    fields.setdefault("audiences", {})
    fields.setdefault("roles", {})
    return Document(**fields)


def _fields(data: dict[str, object], cls: type[Struct], path: str, faults: list[Fault]) -> tuple[dict[str, Any], bool]:
    """The sound fields of a struct, and whether the struct can stand without the others."""
    declared = {info.name: info for info in msgspec.structs.fields(cls)}
    faults.extend(Fault(step(path, name), _unknown(name, declared)) for name in data if name not in declared)
    values: dict[str, Any] = {}
    stands = True
    for name, info in declared.items():
        if name not in data:
            if info.required:
                faults.append(Fault(step(path, name), "is required"))
                stands = False
            continue
        value = _convert(data[name], info.type, step(path, name), faults)
        if value is not UNSET:
            values[name] = value
        elif info.required or not _is_scalar(info.type):
            stands = False
    return values, stands


def _unknown(name: str, declared: dict[str, Any]) -> str:
    near = difflib.get_close_matches(name, declared, n=1)
    return f"is not a known field; did you mean {near[0]}?" if near else "is not a known field"


def _convert(value: object, declared: Any, path: str, faults: list[Fault]) -> Any:
    """The value as its declared type, or UNSET with the faults noted."""
    try:
        return msgspec.convert(value, declared, strict=True)
    except msgspec.ValidationError as error:
        before = len(faults)
        kept = _descend(value, declared, path, faults)
        if len(faults) == before:
            faults.append(Fault(path, _reason(declared, str(error))))
            return UNSET
        return kept


def _descend(value: object, declared: Any, path: str, faults: list[Fault]) -> Any:
    """Look for the fault in what a container holds; UNSET unless it can stand without the faulty part."""
    cls = _bare(declared)
    if _is_struct(cls) and is_mapping(value):
        values, stands = _fields(value, cls, path, faults)
        return cls(**values) if stands else UNSET
    if get_origin(cls) is dict and is_mapping(value):
        return _entries(value, cls, path, faults)
    if get_origin(cls) is tuple and isinstance(value, list):
        member = get_args(cls)[0]
        converted = [_convert(item, member, step(path, index), faults) for index, item in enumerate(value)]
        return UNSET if UNSET in converted else tuple(converted)
    return UNSET


def _entries(value: dict[str, object], declared: Any, path: str, faults: list[Fault]) -> dict[str, Any]:
    named, member = get_args(declared)
    entries = {}
    for name, item in value.items():
        below = step(path, name)
        named_well = _convert(name, named, below, faults) is not UNSET
        converted = _convert(item, member, below, faults)
        if named_well and converted is not UNSET:
            entries[name] = converted
    return entries


def _is_struct(declared: Any) -> bool:
    return isinstance(declared, type) and issubclass(declared, Struct)


def _is_scalar(declared: Any) -> bool:
    cls = _bare(declared)
    if get_origin(cls) is Literal:
        return True
    return isinstance(cls, type) and not _is_struct(cls) and get_origin(cls) is None


def _alternatives(declared: Any) -> Iterator[Any]:
    """The members of a union, without None and without the constraints around them."""
    while get_origin(declared) is Annotated:
        declared = get_args(declared)[0]
    if get_origin(declared) in (Union, types.UnionType):
        for member in get_args(declared):
            yield from _alternatives(member)
    elif declared is not types.NoneType:
        yield declared


def _bare(declared: Any) -> Any:
    """The one type that can hold something: `Cors | None` is Cors, `tuple[str, ...] | Literal["any"]` the tuple."""
    alternatives = list(_alternatives(declared))
    containers = [a for a in alternatives if get_origin(a) in (tuple, dict) or _is_struct(a)]
    return containers[0] if containers else alternatives[0]


def _choices(declared: Any) -> list[str]:
    return [str(choice) for a in _alternatives(declared) if get_origin(a) is Literal for choice in get_args(a)]


def _reason(declared: Any, message: str) -> str:
    """What msgspec says, without its own path and never with the value itself."""
    message = _AT.sub("", message)
    choices = _choices(declared)
    if choices and len(list(_alternatives(declared))) > 1:
        return f"must be a list of names, or {choices[0]}"
    if message.startswith(("Invalid enum value", "Expected `")) and choices:
        return f"must be one of {', '.join(choices)}" if len(choices) > 1 else f"must be {choices[0]}"
    expected = _TYPES.match(message)
    if expected is not None:
        wanted = " or ".join(_KINDS.get(kind, kind) for kind in expected[1].split(" | "))
        return f"must be {wanted}, is {_KINDS.get(expected[2], expected[2])}"
    return _constraint(declared, message)


def _constraint(declared: Any, message: str) -> str:
    if "matching regex" in message:
        described = _description(declared)
        if described:
            return f"must be written as: {described}"
    message = message.replace("Expected", "must be", 1).replace("`", "")
    for kind, words in (
        ("be int ", "be "),
        ("be array ", "be a list "),
        ("be str ", "be text "),
        ("be object ", "be a mapping "),
    ):
        message = message.replace(kind, words, 1)
    return message


def _description(declared: Any) -> str | None:
    if get_origin(declared) is Annotated:
        for note in get_args(declared)[1:]:
            if isinstance(note, msgspec.Meta) and note.description:
                return note.description
        return _description(get_args(declared)[0])
    if get_origin(declared) in (Union, types.UnionType):
        return next((text for member in get_args(declared) if (text := _description(member))), None)
    return None

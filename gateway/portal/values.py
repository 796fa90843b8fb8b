"""Values of callers as PostgreSQL reads them: checked by the type of the parameter before the database is asked."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any


class ValueRefused(ValueError):
    """A value that does not fit its parameter; the message says what would, and never repeats the value."""


@dataclass(frozen=True, slots=True)
class Kind:
    """How one PostgreSQL type is read.

    Shapes: `from_text` takes a decoded path segment, query value or JSON string; `json_types` are the types its JSON
    form may have, other than a string read by `from_text` where `json_text` is set.
    """

    expects: str
    from_text: Callable[[str], str]
    json_types: tuple[type, ...] = ()
    json_text: bool = True


def text_value(kind: Kind, text: str) -> bytes:
    """A path segment or query value in PostgreSQL's text form.

    Raises: ValueRefused.
    """
    return _encoded(kind.from_text(_without_nul(text)))


def json_value(kind: Kind, value: object) -> bytes:
    """A member of a JSON body, or a claim, in PostgreSQL's text form; null is the caller's to treat.

    Raises: ValueRefused.
    """
    if kind is JSON:
        return _encoded(_json_text(value))
    if isinstance(value, str) and kind.json_text:
        return text_value(kind, value)
    if type(value) not in kind.json_types:
        raise ValueRefused(f"must be {kind.expects}")
    return _encoded(kind.from_text(_number_text(kind, value)))


def json_array(kind: Kind, value: object) -> bytes:
    """A JSON array in PostgreSQL's array form; one level deep.

    Raises: ValueRefused.
    """
    if not isinstance(value, list):
        raise ValueRefused(f"must be an array, each member {kind.expects}")
    return b"{" + b",".join(_element(kind, member) for member in value) + b"}"


def _element(kind: Kind, member: object) -> bytes:
    if member is None:
        return b"NULL"
    text = json_value(kind, member)
    return b'"' + text.replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"'


def _without_nul(text: str) -> str:
    if "\0" in text:
        # SEC: libpq hands text over as a C string: what follows a NUL would be silently cut off.
        raise ValueRefused("must not contain U+0000")
    return text


def _encoded(text: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueRefused("must not contain unpaired surrogates") from None


def _json_text(value: object) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except (ValueError, RecursionError):
        raise ValueRefused("must be JSON") from None
    if "\\u0000" in text.replace("\\\\", ""):
        raise ValueRefused("must not contain U+0000")
    return text


def _number_text(kind: Kind, value: Any) -> str:
    if type(value) is bool:
        return "true" if value else "false"
    if type(value) is float and not math.isfinite(value):
        raise ValueRefused(f"must be {kind.expects}")
    return repr(value)


# --- the types


def _any_text(text: str) -> str:
    return text


def _integer(low: int, high: int) -> Callable[[str], str]:
    def read(text: str) -> str:
        if not _INTEGER.fullmatch(text) or not low <= int(text) <= high:
            raise ValueRefused(f"must be a whole number from {low} to {high}")
        return text

    return read


def _matching(pattern: re.Pattern[str], expects: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if not pattern.fullmatch(text):
            raise ValueRefused(f"must be {expects}")
        return text

    return read


def _parsed(pattern: re.Pattern[str], parse: Callable[[str], object], expects: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        try:
            if not pattern.fullmatch(text):
                raise ValueError
            parse(text)
        except ValueError:
            raise ValueRefused(f"must be {expects}") from None
        return text

    return read


_INTEGER = re.compile(r"-?[0-9]{1,19}")
_DECIMAL = re.compile(r"-?[0-9]{1,100}(\.[0-9]{1,100})?([eE][+-]?[0-9]{1,3})?")
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_TIME_PART = r"[0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]{1,6})?)?"
_LOCAL_MOMENT = re.compile(rf"[0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}}[Tt ]{_TIME_PART}")
_MOMENT = re.compile(rf"{_LOCAL_MOMENT.pattern}([Zz]|[+-][0-9]{{2}}:[0-9]{{2}})")
_BOOLEAN = re.compile(r"true|false")


def _moment(text: str) -> object:
    return datetime.fromisoformat(text.upper())


def _kind_integer(low: int, high: int) -> Kind:
    return Kind(f"a whole number from {low} to {high}", _integer(low, high), (int,), json_text=False)


_NUMBER = Kind("a number", _matching(_DECIMAL, "a number"), (int, float), json_text=False)
_A_DATE = "a date such as 2031-01-31"
_A_MOMENT = "a time with its offset such as 2031-01-31T09:30:00Z"
_A_LOCAL_MOMENT = "a time without offset such as 2031-01-31T09:30:00"
_TEXT = Kind("text", _any_text)
JSON = Kind("JSON", _any_text)

KINDS: dict[str, Kind] = {
    "text": _TEXT,
    "varchar": _TEXT,
    "bpchar": _TEXT,
    "int2": _kind_integer(-(2**15), 2**15 - 1),
    "int4": _kind_integer(-(2**31), 2**31 - 1),
    "int8": _kind_integer(-(2**63), 2**63 - 1),
    "numeric": _NUMBER,
    "float4": _NUMBER,
    "float8": _NUMBER,
    "bool": Kind("true or false", _matching(_BOOLEAN, "true or false"), (bool,), json_text=False),
    "uuid": Kind("a UUID", _matching(_UUID, "a UUID")),
    "date": Kind(_A_DATE, _parsed(_DATE, date.fromisoformat, _A_DATE)),
    "timestamptz": Kind(_A_MOMENT, _parsed(_MOMENT, _moment, _A_MOMENT)),
    "timestamp": Kind(_A_LOCAL_MOMENT, _parsed(_LOCAL_MOMENT, _moment, _A_LOCAL_MOMENT)),
    "json": JSON,
    "jsonb": JSON,
}
"""PostgreSQL's name of a type -> how it is read; any other type is read as text and the database decides."""


def kind_of(type_name: str) -> Kind:
    """The kind of a type by its `pg_type.typname`."""
    return KINDS.get(type_name, _TEXT)


# --- JSON bodies


class BodyRefused(ValueError):
    """Not strict JSON: RFC 8259 in UTF-8, no member twice, no NaN."""


def parse_json(raw: bytes) -> Any:
    """A request body, strictly.

    Raises: BodyRefused.
    """
    try:
        return json.loads(raw.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise BodyRefused("The body must be JSON in UTF-8, with no member given twice") from None


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError
    return members


def _no_constant(name: str) -> Any:
    raise ValueError

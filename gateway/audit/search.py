"""A search of the trail, as FHIR writes one: parameters -> conditions, pages by the last event of the one before. Pure.

Source: FHIR R4, search; IHE ITI-81. Names are FHIR's where it has one, beside ours.
"""

from __future__ import annotations

import base64
import binascii
import calendar
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, urlencode

MAX_VALUES = 20
_MAX_VALUE_CHARS = 256
_MAX_MS = 253_402_300_799_999
"""The end of the year 9999."""
_MAX_OFFSET_S = 14 * 3600
"""The widest zone there is, and XML Schema's limit, which FHIR's dates have."""

FIELDS: dict[str, str] = {
    "patient": "patient",
    "user": "subject",
    "agent": "subject",
    "issuer": "issuer",
    "role": "role",
    "agent-role": "role",
    "organisation": "organisation",
    "unit": "unit",
    "client": "client",
    "action": "action",
    "outcome": "outcome",
    "purpose": "purpose",
    "entity": "resource_id",
    "entity-type": "resource_type",
    "request": "request_id",
    "address": "client_address",
    "route": "route",
    "kind": "kind",
    "subtype": "kind",
    "phase": "phase",
    "rule": "rule",
    "node": "node",
}
"""Parameter -> column."""
_OWN = ("date", "_count", "_cursor", "_sort", "_format")
_OUTCOMES = {"0": ("allowed", "complete"), "4": ("refused",), "8": ("failed", "cut"), "12": ("12",)}
"""Of FHIR; what it calls a major failure no event has."""
_ENDINGS = frozenset({"complete", "cut"})
_WORDS = {
    "action": frozenset("CRUDE"),
    "outcome": frozenset({"pending", "allowed", "refused", "failed", "complete", "cut"}),
    "phase": frozenset({"intent", "outcome", "completion"}),
}
_DATE = re.compile(
    r"(eq|ge|gt|le|lt|sa|eb)?(\d{4})(?:-(\d\d)(?:-(\d\d)(?:T(\d\d):(\d\d)(?::(\d\d)(?:\.(\d{1,9}))?)?"
    r"(Z|[+-]\d\d:\d\d)?)?)?)?\Z"
)
_CURSOR = re.compile(r"(\d{1,15})\.([0-9a-z]{1,64})\.(\d{1,18})\Z")


class SearchRefused(ValueError):
    """A parameter that cannot be used; the message names it and what it takes, not what was sent."""


@dataclass(frozen=True, slots=True)
class Place:
    """An event's place in the order of a search: newest first, then by chain and number."""

    at_ms: int
    chain: str
    sequence: int

    def encode(self) -> str:
        text = f"{self.at_ms}.{self.chain}.{self.sequence}"
        return base64.urlsafe_b64encode(text.encode()).rstrip(b"=").decode()


@dataclass(frozen=True, slots=True)
class Scope:
    """What a reader may see: everything, what belongs to units, or what belongs to a patient (under all its names)."""

    everything: bool = False
    units: tuple[str, ...] = ()
    patients: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Search:
    """Shapes: `where` column -> values, one of which it must have; `after` the last event of the page before.
    Units: ms since 1970, from inclusive, to exclusive.
    """

    from_ms: int
    to_ms: int
    count: int
    where: dict[str, tuple[str, ...]] = field(default_factory=dict)
    after: Place | None = None
    parameters: tuple[tuple[str, str], ...] = ()
    """As they were sent, without the cursor."""

    def link(self, path: str, after: Place | None = None) -> str:
        """The address of this page, or of the one behind `after`."""
        pairs = list(self.parameters)
        if after is not None:
            pairs.append(("_cursor", after.encode()))
        return f"{path}?{urlencode(pairs)}" if pairs else path

    @property
    def described(self) -> str:
        """The parameters for the trail, without ids of patients: whose they are stands in a member of its own."""
        return urlencode([(name, _told(FIELDS.get(name, ""), text)) for name, text in self.parameters])


def _told(column: str, text: str) -> str:
    if column == "patient":
        return "*"
    return ",".join(map(_told_entity, text.split(","))) if column == "resource_id" else text


def _told_entity(text: str) -> str:
    kind = text.rpartition("/")[0]
    return text if kind not in ("", "Patient") else f"{kind}/*" if kind else "*"


def parse(query: str, *, count: int, most: int, names: Iterable[str] = FIELDS, needs_dates: bool = True) -> Search:
    """A query string as a search; `names` are the parameters it may have beside dates and paging.

    Raises: SearchRefused.
    """
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query), max_num_fields=40)
        for name, text in pairs:
            (name + text).encode()
    except ValueError:
        raise SearchRefused("the query is not name=value&name=value in UTF-8") from None
    allowed = frozenset(names) & FIELDS.keys()
    where: dict[str, tuple[str, ...]] = {}
    dates: list[str] = []
    own: dict[str, str] = {}
    for name, text in pairs:
        if name == "date":
            dates.append(text)
        elif name in _OWN:
            if name in own:
                raise SearchRefused(f"{name} comes twice")
            own[name] = text
        elif name in allowed:
            _add(where, name, text)
        else:
            known = ", ".join(sorted({*allowed, *_OWN}))
            raise SearchRefused(f"a parameter is not known; there are {known}")
    sent = {word for name, text in pairs if name == "outcome" for word in text.split(",")}
    _name_phase(where, bool(sent & _ENDINGS))
    from_ms, to_ms = _span(dates)
    if needs_dates and not (from_ms and to_ms < _MAX_MS):
        raise SearchRefused("date: a range is required, such as date=ge2026-05-01&date=lt2026-06-01")
    if from_ms >= to_ms:
        raise SearchRefused("date: the range is empty")
    if own.get("_sort", "-date") != "-date":
        raise SearchRefused("_sort: the only order is -date, newest first")
    if own.get("_format", "json") not in ("json", "application/json", "application/fhir+json"):
        raise SearchRefused("_format: application/fhir+json is the only one")
    after = _place(own["_cursor"]) if "_cursor" in own else None
    parameters = tuple(pair for pair in pairs if pair[0] != "_cursor")
    return Search(from_ms, to_ms, _count(own.get("_count"), count, most), where, after, parameters)


def _add(where: dict[str, tuple[str, ...]], name: str, text: str) -> None:
    column = FIELDS[name]
    if column in where:
        raise SearchRefused(f"{name} comes twice: separate values by commas")
    values = tuple(dict.fromkeys(text.split(",")))
    if column == "patient":
        values = (text.removeprefix("Patient/"),)
    if not all(values) or len(values) > MAX_VALUES or any(len(value) > _MAX_VALUE_CHARS for value in values):
        most = f"of at most {_MAX_VALUE_CHARS} characters"
        raise SearchRefused(f"{name}: 1 to {MAX_VALUES} values, separated by commas, {most}")
    if any("\0" in value for value in values):
        raise SearchRefused(f"{name}: has a NUL")
    words = _WORDS.get(column)
    if words is not None and not set(values) <= words | (_OUTCOMES.keys() if column == "outcome" else set()):
        raise SearchRefused(f"{name}: takes {', '.join(sorted(words))}")
    if column == "outcome":
        values = tuple(dict.fromkeys(word for value in values for word in _OUTCOMES.get(value, (value,))))
    if name == "entity" and any("/" in value for value in values):
        kinds, values = zip(*(value.rpartition("/")[::2] for value in values), strict=True)
        if not all(values) or len(set(kinds)) > 1 or not kinds[0] or "resource_type" in where:
            raise SearchRefused("entity: takes ids, or Type/ID, of one type, which entity-type does not name as well")
        where["resource_type"] = kinds[:1]
    where[column] = values


def _name_phase(where: dict[str, tuple[str, ...]], told: bool) -> None:
    """A completion is asked for by its outcome: without a phase it would never be found.

    `told`: the parameter says so itself, and does not merely stand for it as FHIR's codes do.
    """
    ended = set(where.get("outcome", ())) & _ENDINGS
    if not ended or not told or "phase" in where:
        return
    if set(where["outcome"]) - _ENDINGS:
        raise SearchRefused("outcome: complete and cut are of completions, and not to be asked for with the others")
    where["phase"] = ("completion",)


def _count(text: str | None, count: int, most: int) -> int:
    if text is None:
        return min(count, most)
    if not text.isascii() or not text.isdigit() or len(text) > 9 or int(text) < 1:
        raise SearchRefused("_count: a whole number from 1")
    return min(int(text), most)


def _place(text: str) -> Place:
    try:
        decoded = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode("ascii")
    except (ValueError, binascii.Error):
        decoded = ""
    found = _CURSOR.match(decoded)
    if found is None:
        raise SearchRefused("_cursor: take it from the link to the next page")
    return Place(int(found[1]), found[2], int(found[3]))


def _span(dates: list[str]) -> tuple[int, int]:
    """The moments that all of the dates allow."""
    from_ms, to_ms = 0, _MAX_MS
    for text in dates:
        prefix, begin_ms, end_ms = _moment(text)
        if prefix in ("ge", "eq"):
            from_ms = max(from_ms, begin_ms)
        if prefix in ("gt", "sa"):
            from_ms = max(from_ms, end_ms)
        if prefix in ("le", "eq"):
            to_ms = min(to_ms, end_ms)
        if prefix in ("lt", "eb"):
            to_ms = min(to_ms, begin_ms)
    return from_ms, to_ms


def _moment(text: str) -> tuple[str, int, int]:
    """A FHIR date with its prefix. Shapes: prefix, its first ms, the first ms behind it."""
    found = _DATE.match(text)
    if found is None:
        raise SearchRefused("date: takes ge, gt, le or lt and a time such as 2026-05-01 or 2026-05-01T12:00:00Z")
    prefix, year, month, day, hour, minute, second, fraction, zone = found.groups()
    offset_s = 0
    if zone not in (None, "Z"):
        offset_s = (int(zone[1:3]) * 60 + int(zone[4:6])) * 60 * (-1 if zone[0] == "-" else 1)
        if abs(offset_s) > _MAX_OFFSET_S or int(zone[4:6]) > 59:
            raise SearchRefused("date: there is no such zone")
    y, m, d = int(year), int(month or 1), int(day or 1)
    if not (1970 <= y <= 9999 and 1 <= m <= 12 and 1 <= d <= calendar.monthrange(y, m)[1]):
        raise SearchRefused("date: there is no such day")
    if int(hour or 0) > 23 or int(minute or 0) > 59 or int(second or 0) > 59:
        raise SearchRefused("date: there is no such time")
    begin_s = calendar.timegm((y, m, d, int(hour or 0), int(minute or 0), int(second or 0))) - offset_s
    if month is None:
        length_ms = (366 if calendar.isleap(y) else 365) * 86_400_000
    elif day is None:
        length_ms = calendar.monthrange(y, m)[1] * 86_400_000
    elif hour is None:
        length_ms = 86_400_000
    elif second is None:
        length_ms = 60_000
    else:
        length_ms = 1000 if fraction is None else 1
    begin_ms = max(0, begin_s * 1000 + int(((fraction or "") + "000")[:3]))
    return prefix or "eq", begin_ms, begin_ms + length_ms

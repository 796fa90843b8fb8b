"""What a caller sent -> the declared structs, with every fault by its JSON pointer or its parameter."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar
from urllib.parse import parse_qsl

import msgspec

from gateway.admin.operation import Body
from gateway.errors import BadJson, NotFound, QueryRefused, Unprocessable
from gateway.portal.values import BodyRefused, parse_json

_AT = re.compile(r" - at `\$(.*)`\Z")
_STEPS = re.compile(r"\.([^.\[]+)|\[(\d+)\]")
B = TypeVar("B", bound=Body)
Fault = dict[str, str]


def decode_body(raw: bytes, kind: type[B]) -> B:
    """Raises: BadJson, Unprocessable with every fault."""
    try:
        document = parse_json(raw)
    except BodyRefused as error:
        raise BadJson(str(error)) from None
    if not isinstance(document, dict):
        raise Unprocessable("The body is not as declared", errors=[{"pointer": "", "detail": "must be an object"}])
    faults: list[Fault] = []
    values = _members(document, kind, faults)
    if faults:
        raise Unprocessable("The body is not as declared", errors=faults)
    return kind(**values)


def decode_query(query: str, kind: type[B]) -> B:
    """Raises: QueryRefused."""
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query), errors="strict")
    except ValueError:
        raise QueryRefused("The query cannot be read") from None
    given = dict(pairs)
    if len(given) != len(pairs):
        raise QueryRefused("A query parameter is given twice")
    declared = {info.name for info in msgspec.structs.fields(kind)}
    if not given.keys() <= declared:
        raise QueryRefused("A query parameter is not declared here")
    return _converted(given, kind, QueryRefused("A query parameter is not as declared"))


def decode_params(params: Mapping[str, str], kind: type[B]) -> B:
    """What a path names; what cannot be a name of anything is not there.

    Raises: NotFound.
    """
    return _converted(dict(params), kind, NotFound())


def _converted(given: dict[str, str], kind: type[B], refusal: QueryRefused | NotFound) -> B:
    try:
        return msgspec.convert(given, kind, strict=False)
    except msgspec.ValidationError as error:
        if isinstance(refusal, QueryRefused):
            pointer, detail = _split(str(error), "")
            refusal.members["errors"] = [{"parameter": pointer.lstrip("/"), "detail": detail}]
        raise refusal from None


def _members(document: dict[str, Any], kind: type[Body], faults: list[Fault]) -> dict[str, Any]:
    declared = {info.name: info for info in msgspec.structs.fields(kind)}
    # NOTE: a pointer ends at the last declared member: what the caller invented is not echoed.
    if document.keys() - declared.keys():
        faults.append({"pointer": "", "detail": "has a member that is not declared"})
    values: dict[str, Any] = {}
    for name, info in declared.items():
        if name not in document:
            if info.required:
                faults.append({"pointer": f"/{name}", "detail": "is required"})
            continue
        if not _is_encodable(document[name]):
            faults.append({"pointer": f"/{name}", "detail": "must not contain unpaired surrogates"})
            continue
        try:
            values[name] = msgspec.convert(document[name], info.type, strict=True)
        except msgspec.ValidationError as error:
            pointer, detail = _split(str(error), f"/{name}")
            faults.append({"pointer": pointer, "detail": detail})
    return values


def _is_encodable(value: Any) -> bool:
    """Could it be written in UTF-8? JSON's escapes can name half a character, which no file and no database takes."""
    try:
        msgspec.json.encode(value)
    except UnicodeEncodeError:
        return False
    return True


def _split(message: str, prefix: str) -> tuple[str, str]:
    """Where and what, of msgspec's words, which never hold the value itself."""
    found = _AT.search(message)
    if found is None:
        return prefix, _plain(message)
    steps = ["/" + (name or index) for name, index in _STEPS.findall(found[1])]
    return prefix + "".join(steps), _plain(message[: found.start()])


def _plain(message: str) -> str:
    return message.replace("Expected", "must be", 1).replace("`", "")

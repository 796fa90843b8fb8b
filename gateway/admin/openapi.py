"""The OpenAPI 3.1 document of the Admin API, made of the declarations that route and decode."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import msgspec

from gateway import __version__
from gateway.admin.operation import Operation
from gateway.errors import (
    AuditUnavailable,
    BadJson,
    BadRequest,
    BodyTooLarge,
    ConfigUnavailable,
    DatabaseUnavailable,
    GatewayError,
    InternalError,
    MediaTypeRefused,
    NotFound,
    OperatorUnavailable,
    Overloaded,
    PermissionRefused,
    QueryRefused,
    RateLimited,
    RoleRefused,
    TokenAmbiguous,
    TokenInvalid,
    TokenMissing,
    Unprocessable,
)
from gateway.http import problems

_REF: Final = "#/components/schemas/{name}"
_ALWAYS: Final = (
    TokenMissing, TokenInvalid, TokenAmbiguous, RoleRefused, PermissionRefused, RateLimited, NotFound, BadRequest,
    AuditUnavailable, ConfigUnavailable, DatabaseUnavailable, OperatorUnavailable, Overloaded, InternalError,
)  # fmt: skip


class Fault(msgspec.Struct, omit_defaults=True):
    """Where a request is not as declared: a JSON pointer into the body, or a query parameter."""

    detail: str
    pointer: str = ""
    parameter: str = ""


class Problem(msgspec.Struct):
    """RFC 9457. `type` names the error, `origin` whose fault it is, `retryable` whether a repeat can help."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    request_id: str
    origin: str
    retryable: bool
    errors: list[Fault] = []


def document(operations: Iterable[Operation], url: str = "") -> dict[str, Any]:
    """Shapes: `url` is where the operations listener is reached; "": where the document is."""
    every = tuple(operations)
    shown = [kind for one in every for kind in (one.answer, one.body) if kind is not None]
    _, components = msgspec.json.schema_components([*dict.fromkeys(shown), Problem, Fault], ref_template=_REF)
    paths: dict[str, dict[str, Any]] = {}
    for one in every:
        paths.setdefault(one.template, {})[one.method.lower()] = _operation(one)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Caregate Admin API", "version": __version__,
            "description": "Served by the operations listener alone. Every change leaves an event in the audit trail, "
            "with its author and digests of what was before and after.",
        },
        "servers": [{"url": url or "/"}],
        "security": [{"bearer": []}],
        "paths": dict(sorted(paths.items())),
        "components": {
            "schemas": components,
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}},
        },
    }  # fmt: skip


def _operation(one: Operation) -> dict[str, Any]:
    found: dict[str, Any] = {
        "operationId": one.name, "summary": one.summary, "tags": [one.name.partition(".")[0]],
        "parameters": _parameters(one), "responses": _responses(one),
    }  # fmt: skip
    if one.permission is not None:
        found["x-permission"] = one.permission
    if one.body is not None:
        schema = {"$ref": _REF.format(name=one.body.__name__)}
        found["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    return found


def _parameters(one: Operation) -> list[dict[str, Any]]:
    found = _fields(one.params, "path") + _fields(one.query, "query")
    if one.conditional:
        found.append(_header("If-Match", "The tag of the version that the change was made from", r'^"[0-9]{1,15}"$'))
    if one.keyed:
        found.append(_header("Idempotency-Key", "The same for a repeat of this request", r"^[!-~]{1,255}$"))
    if one.method == "GET":
        found.append(_header("If-None-Match", "Tags of what is known: 304 if it is still so", None))
    return found


def _fields(kind: Any, where: str) -> list[dict[str, Any]]:
    _, components = msgspec.json.schema_components([kind], ref_template=_REF)
    schema = components[kind.__name__]
    required = set(schema["required"])
    return [
        {"name": name, "in": where, "required": name in required, "schema": _plain(about)}
        for name, about in schema["properties"].items()
    ]


def _plain(schema: dict[str, Any]) -> dict[str, Any]:
    """A parameter's schema: one that may be left out is not one that may be null."""
    choices = [one for one in schema.get("anyOf", ()) if one.get("type") != "null"]
    if len(choices) == 1:
        return choices[0]  # type: ignore[no-any-return]
    kept = {name: value for name, value in schema.items() if name != "default" or value is not None}
    if None in kept.get("enum", ()):
        kept["enum"] = [value for value in kept["enum"] if value is not None]
    return kept


def _header(name: str, text: str, pattern: str | None) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"} if pattern is None else {"type": "string", "pattern": pattern}
    return {"name": name, "in": "header", "required": False, "description": text, "schema": schema}


def _responses(one: Operation) -> dict[str, Any]:
    responses: dict[str, Any] = {}
    for status in (one.status, *one.also):
        schema = {"$ref": _REF.format(name=one.answer.__name__)} if isinstance(one.answer, type) else {"type": "object"}
        if one.answer is dict:
            schema = {"type": "object"}
        content = {one.media_type: {"schema": schema}}
        headers = {"ETag": {"schema": {"type": "string"}}, "X-Request-Id": {"schema": {"type": "string"}}}
        responses[str(status)] = {"description": "Done", "headers": headers, "content": content}
    if one.method == "GET":
        responses["304"] = {"description": "Still so"}
    by_status: dict[int, list[type[GatewayError]]] = {}
    for error in dict.fromkeys((*_ALWAYS, *_of_parts(one), *one.errors)):
        by_status.setdefault(_status(error), []).append(error)
    for status, errors in sorted(by_status.items()):
        types = sorted({problems.TYPE_PREFIX + error.code for error in errors})
        responses[str(status)] = {
            "description": ", ".join(types),
            "content": {problems.MEDIA_TYPE: {"schema": {"$ref": _REF.format(name="Problem")}}},
        }
    return responses


def _of_parts(one: Operation) -> list[type[GatewayError]]:
    found: list[type[GatewayError]] = [QueryRefused]
    if one.body is not None:
        found += [BadJson, Unprocessable, BodyTooLarge, MediaTypeRefused]
    return found


def _status(error: type[GatewayError]) -> int:
    return next(problems.TABLE[cls].status for cls in error.__mro__ if cls in problems.TABLE)

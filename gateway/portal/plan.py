"""How one route calls its function: prepared once, bound to each request."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_plus

from gateway.context import RequestContext
from gateway.errors import BadJson, BindingRefused, InternalError, NotFound, QueryRefused, Unprocessable
from gateway.portal.catalog import Parameter, Signature
from gateway.portal.values import BodyRefused, ValueRefused, json_array, json_value, parse_json, text_value
from gateway.routing.model import Argument, FunctionAction
from gateway.store.pace import Pace
from gateway.store.pipeline import Statement

Fault = dict[str, str]
_ABSENT = object()
_CLAIMS = "WITH claims AS MATERIALIZED (SELECT set_config('caregate.claims', $1, true))"


@dataclass(frozen=True, slots=True)
class _Input:
    """One argument: where its value comes from and how it is read."""

    argument: Argument
    parameter: Parameter
    steps: tuple[str, ...]
    """Reference tokens of a body argument's JSON pointer (RFC 6901)."""


class CallPlan:
    """Binds requests to calls of one function.

    Holds: one statement for each set of optional arguments seen; at most 2**(optional arguments).
    """

    def __init__(self, action: FunctionAction, signature: Signature) -> None:
        """Raises: InternalError if the function does not take what the route gives it."""
        try:
            inputs = [_Input(a, signature.parameters[a.parameter], _steps(a)) for a in action.arguments]
        except KeyError:
            raise InternalError() from None
        self._function = action.function
        self._inputs = inputs
        self._statements: dict[int, Statement] = {}
        self._readers: dict[str, Callable[[_Input, _Request], bytes | object | None]] = {
            "path": _from_path,
            "query": _from_query,
            "claim": _from_claim,
            "body": _from_body,
        }
        bodies = [i for i in inputs if i.argument.source == "body"]
        self.takes_body = bool(bodies)
        self._needs_body = any(i.argument.required for i in bodies)
        self._takes_query = any(i.argument.source == "query" for i in inputs)
        self._declared = _declared(bodies)
        self._all = (1 << len(inputs)) - 1
        self._quick = signature.changes_nothing and not bodies
        self._path_only = all(i.argument.source == "path" for i in inputs)

    def bind(self, ctx: RequestContext, body: bytes) -> tuple[Statement, list[bytes | None]]:
        """The statement and its values for a request; `body` is empty if the route takes none.

        Raises: NotFound (path), QueryRefused, BindingRefused (claim), BadJson, Unprocessable.
        """
        if self._path_only:
            # PERF: `portal_read` of `make bench`: nothing optional, and the path has no faults to collect.
            params = ctx.params
            return self._statement(self._all), [_path_value(given, params) for given in self._inputs]
        request = _Request(ctx, body)
        if self._takes_query:
            request.query = parse_query(ctx.query)
        if self.takes_body and (body or self._needs_body):
            request.parse_body(self._declared)
        values: list[bytes | None] = []
        present = 0
        for index, given in enumerate(self._inputs):
            value = self._readers[given.argument.source](given, request)
            if value is not _ABSENT:
                present |= 1 << index
                values.append(value)  # type: ignore[arg-type]
        if request.faults:
            raise Unprocessable("The body is not as the route declares", errors=request.faults)
        return self._statement(present), values

    def _statement(self, present: int) -> Statement:
        return self._statements.get(present) or self._write_statement(present)

    def _write_statement(self, present: int) -> Statement:
        """The call, which sets the caller's claims before the function runs.

        SEC: the function is called for the row of `claims`, which is there only once the claims are set; materialized,
        so that the planner does not take the two apart.
        NOTE: names and types come from the catalog and the checked configuration, never from a request.
        PERF: `portal_read` of `make bench`: one statement costs here and in the server less than two.
        """
        given = [i for index, i in enumerate(self._inputs) if present >> index & 1]
        arguments = ", ".join(
            f"{_quoted(i.parameter.name)} => ${n}::{i.parameter.type_name}" for n, i in enumerate(given, start=2)
        )
        sql = f"{_CLAIMS} SELECT {self._function}({arguments}) FROM claims".encode()  # noqa: S608 see NOTE
        statement = Statement(
            b"caregate_" + hashlib.sha256(sql).hexdigest()[:24].encode(),
            sql,
            claims=True,
            pace=Pace() if self._quick else None,
        )
        self._statements[present] = statement
        return statement


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


class _Request:
    """What a plan reads from one request."""

    __slots__ = ("body", "claims", "document", "faults", "params", "query")

    def __init__(self, ctx: RequestContext, body: bytes) -> None:
        self.params = ctx.params
        self.claims: Mapping[str, Any] = ctx.principal.claims if ctx.principal is not None else {}
        self.body = body
        self.document: Any = {}
        self.query: dict[str, str] = {}
        self.faults: list[Fault] = []

    def parse_body(self, declared: dict[str, Any] | None) -> None:
        """Raises: BadJson."""
        try:
            self.document = parse_json(self.body)
        except BodyRefused as refused:
            raise BadJson(str(refused)) from None
        if declared is not None:
            _check_members(self.document, declared, "", self.faults)


def parse_query(query: str) -> dict[str, str]:
    """The parameters of a raw query.

    Raises: QueryRefused for one given twice or not in UTF-8.
    """
    found: dict[str, str] = {}
    for part in query.split("&") if query else ():
        raw_name, _, raw_value = part.partition("=")
        try:
            name, value = unquote_plus(raw_name, errors="strict"), unquote_plus(raw_value, errors="strict")
        except UnicodeDecodeError:
            raise QueryRefused("The query is not UTF-8") from None
        if name in found:
            raise QueryRefused("A query parameter is given more than once")
        found[name] = value
    return found


# --- where values come from


def _from_path(given: _Input, request: _Request) -> bytes:
    return _path_value(given, request.params)


def _path_value(given: _Input, params: Mapping[str, str]) -> bytes:
    try:
        return text_value(given.parameter.kind, params[given.argument.name])
    except ValueRefused:
        raise NotFound() from None
    except KeyError:
        raise InternalError() from None


def _from_query(given: _Input, request: _Request) -> bytes | object:
    text = request.query.get(given.argument.name)
    if text is None:
        if given.argument.required:
            raise QueryRefused(f"The query parameter {given.argument.name} is required")
        return _ABSENT
    try:
        return text_value(given.parameter.kind, text)
    except ValueRefused as refused:
        raise QueryRefused(f"The query parameter {given.argument.name} {refused}") from None


def _from_claim(given: _Input, request: _Request) -> bytes | object:
    value = request.claims.get(given.argument.name)
    if value is None:
        if given.argument.required:
            raise BindingRefused("The token lacks a claim that this route needs")
        return _ABSENT
    try:
        return _json_bytes(given.parameter, value)
    except ValueRefused:
        raise BindingRefused("A claim of the token is not what this route needs") from None


def _from_body(given: _Input, request: _Request) -> bytes | object | None:
    if not given.steps:
        return request.body or _ABSENT
    value = _resolve(request.document, given.steps)
    if value is _ABSENT or value is None:
        if given.argument.required:
            request.faults.append({"pointer": given.argument.name, "detail": "is required"})
        return value
    try:
        return _json_bytes(given.parameter, value)
    except ValueRefused as refused:
        request.faults.append({"pointer": given.argument.name, "detail": str(refused)})
        return None


def _json_bytes(parameter: Parameter, value: object) -> bytes:
    read = json_array if parameter.array else json_value
    return read(parameter.kind, value)


# --- JSON pointers


def _steps(argument: Argument) -> tuple[str, ...]:
    if argument.source != "body" or not argument.name:
        return ()
    return tuple(token.replace("~1", "/").replace("~0", "~") for token in argument.name.split("/")[1:])


def _resolve(document: Any, steps: tuple[str, ...]) -> Any:
    for name in steps:
        if not isinstance(document, dict) or name not in document:
            return _ABSENT
        document = document[name]
    return document


def _declared(bodies: list[_Input]) -> dict[str, Any] | None:
    """The members a body may have, as nested dicts; None where the whole body is taken."""
    if any(not given.steps for given in bodies):
        return None
    tree: dict[str, Any] = {}
    for given in bodies:
        node = tree
        for name in given.steps[:-1]:
            node = node.setdefault(name, {})
        node.setdefault(given.steps[-1], {})
    return tree


def _check_members(document: Any, declared: dict[str, Any], pointer: str, faults: list[Fault]) -> None:
    """NOTE: a pointer ends at the last declared member: what the caller invented is not echoed."""
    if not declared:
        return
    if not isinstance(document, dict):
        faults.append({"pointer": pointer, "detail": "must be an object"})
        return
    if not document.keys() <= declared.keys():
        faults.append({"pointer": pointer, "detail": "has a member that is not declared"})
    for name, below in declared.items():
        if name in document:
            _check_members(document[name], below, f"{pointer}/{name.replace('~', '~0').replace('/', '~1')}", faults)

"""What a caller may write: the JSON body of a request against the bindings of its members. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from gateway.context import Principal
from gateway.errors import BadJson, Unprocessable
from gateway.rbac.decide import ALLOWED, NOT_BOUND, NOT_BOUND_HIDDEN, Decision
from gateway.rbac.reference import applies, claim_of, id_of, is_claimed, record_of
from gateway.routing.model import Binding, Route

EACH = "*"
"""Step of a pointer that stands for every member of an array."""

_JSON_TYPE = re.compile(
    r"application/(?:[a-z0-9.+-]+\+)?json(?:[ \t]*;[ \t]*(?:charset=(?:utf-8|\"utf-8\")|fhirversion=[0-9.]+)){0,2}\Z"
)


class _Missing(Exception):
    """There is nothing of the right kind at a pointer."""


def read_document(raw: bytes, content_type: str, encoding: str = "") -> Any:
    """A body as every reader must read it.

    Raises: BadJson for what is not announced as JSON in UTF-8, is coded, or is not strict JSON. A member given twice,
    also in another case, is refused: some readers take the last, and some do not look at the case.
    """
    # SEC: the bytes go on as they are: another type, charset or coding would make them another document there.
    if _JSON_TYPE.match(content_type.strip().lower()) is None or encoding.strip().lower() not in ("", "identity"):
        raise BadJson("The body must be JSON in UTF-8, announced as such and not compressed")
    try:
        return json.loads(raw.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise BadJson("The body must be JSON in UTF-8, with no member given twice") from None


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    if len({name.casefold() for name, _ in pairs}) != len(pairs):
        raise ValueError
    return dict(pairs)


def _no_constant(name: str) -> Any:
    raise ValueError


def decide_document(
    principal: Principal, route: Route, document: Any, bases: Iterable[str], shadows: list[str], patient: str = ""
) -> Decision:
    """May this principal send this body? `shadows` gets the shadow rules that would have refused it.

    Shapes: `patient` is the one whom an emergency opens, see rbac.reference.claim_of.
    Raises: Unprocessable for a body that has no text where a binding looks for it.
    """
    for binding in route.bindings:
        if binding.source != "body" or not applies(binding, principal.role):
            continue
        try:
            values = list(_texts(document, binding.steps))
        except _Missing:
            if binding.shadow:
                shadows.append(binding.rule)
                continue
            fault = {"pointer": binding.param, "detail": "must be there, as text"}
            raise Unprocessable("The body is not as the route declares", errors=[fault]) from None
        claim = claim_of(principal, route, binding, patient)
        if not all(_is_own(value, binding, claim, bases) for value in values):
            if not binding.shadow:
                return NOT_BOUND_HIDDEN if binding.hidden else NOT_BOUND
            shadows.append(binding.rule)
    return ALLOWED


def patients_written(where: Binding, document: Any, bases: Iterable[str]) -> set[str] | None:
    """Ids of all records that a body names there; None if one is no reference. Raises: Unprocessable."""
    try:
        values = list(_texts(document, where.steps))
    except _Missing:
        fault = {"pointer": where.param, "detail": "must be there, as text"}
        raise Unprocessable("The body is not as the route declares", errors=[fault]) from None
    found = {record_of(value, where, bases) for value in values}
    return None if None in found else {record for record in found if record is not None}


def _texts(node: Any, steps: Sequence[str]) -> Iterable[str]:
    """All texts at a pointer, at least one. Raises: _Missing if one is not there, or not text."""
    if not steps:
        members = node if isinstance(node, list) else [node]
        if not members or not all(isinstance(member, str) for member in members):
            raise _Missing
        yield from members
        return
    step, *rest = steps
    # SEC: an object never stands for an array nor the other way round: a lenient reader could find other members in it.
    if step == EACH or step.isdecimal():
        if not isinstance(node, list) or not node or (step != EACH and int(step) >= len(node)):
            raise _Missing
        for member in node if step == EACH else [node[int(step)]]:
            yield from _texts(member, rest)
    elif isinstance(node, dict) and step in node:
        yield from _texts(node[step], rest)
    else:
        raise _Missing


def _is_own(value: str, binding: Binding, claim: object, bases: Iterable[str]) -> bool:
    if binding.reference is None:
        return bool(value) and is_claimed(value, claim)
    found = id_of(value, binding.reference, bases)
    return found is not None and is_claimed(found, claim)

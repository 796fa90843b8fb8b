"""What a caller may search for: the query of a request as a FHIR server reads it, against the bindings. Pure.

Decided upon are the very bytes that are forwarded, so what two readers could take for two things is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from urllib.parse import unquote_plus

from gateway.context import Principal
from gateway.errors import QueryRefused
from gateway.rbac.decide import (
    ALLOWED,
    NOT_BOUND,
    NOT_BOUND_HIDDEN,
    SCOPE,
    SEARCH_ABSENT,
    SEARCH_REFUSED,
    Decision,
    is_scope_watched,
)
from gateway.rbac.reference import applies, claim_of, id_of, is_claimed, record_of
from gateway.rbac.scopes import covers, mask_of
from gateway.routing.model import Binding, Route

Pairs = Sequence[tuple[str, str]]

WIDE = frozenset({"_has", "_include", "_revinclude", "_filter", "_query"})
"""Parameters that look into, or bring along, records that are not what is searched for."""

OF_PATIENT = frozenset({"patient", "subject"})
"""Parameters in which FHIR names a patient."""
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_EVERY_READ = mask_of("*", "rs")


def read_search(query: str) -> list[tuple[str, str]]:
    """Names and values of a raw query, decoded once.

    Raises: QueryRefused for what readers read in more than one way: `;` (a separator to some), a broken escape, bytes
    that are not UTF-8, control characters, a value without a name.
    """
    if ";" in query or _BAD_ESCAPE.search(query):
        raise QueryRefused("The query must be escaped: a broken escape or a semicolon is in it")
    try:
        pairs = [_pair(part) for part in query.split("&") if part]
    except UnicodeDecodeError:
        raise QueryRefused("The query is not UTF-8") from None
    if any(not name or _CONTROL.search(name) or _CONTROL.search(value) for name, value in pairs):
        raise QueryRefused("The query has a control character, or a value without a name")
    return pairs


def _pair(part: str) -> tuple[str, str]:
    name, _, value = part.partition("=")
    return unquote_plus(name, errors="strict"), unquote_plus(value, errors="strict")


def is_wide(name: str) -> bool:
    """Does a parameter reach beyond the records it searches: chained, reverse chained, including?"""
    base = name.partition(":")[0].strip()
    return base.casefold() in WIDE or "." in name


def decide_search(
    principal: Principal, route: Route, pairs: Pairs, bases: Iterable[str], shadows: list[str], patient: str = ""
) -> Decision:
    """May this principal send this query? `shadows` gets the shadow rules that would have refused it.

    Shapes: `bases` are our own FHIR bases, see rbac.reference; `patient` is the one whom an emergency opens, see
    rbac.reference.claim_of.
    """
    role = principal.role
    if any(is_wide(name) for name, _ in pairs) and not _may_widen(principal, route):
        if is_strict(principal, route):
            return SEARCH_REFUSED
        shadows.append(SCOPE)
    for binding in route.bindings:
        if binding.source != "query" or not applies(binding, role):
            continue
        decision = _decide_binding(binding, claim_of(principal, route, binding, patient), pairs, bases)
        if not decision.allowed:
            if not binding.shadow:
                return decision
            shadows.append(binding.rule)
    return ALLOWED


def is_strict(principal: Principal, route: Route) -> bool:
    """Does a rule in force care how a query is read, whether anything of it is bound or not?"""
    return principal.role in route.searched or (principal.scopes is not None and not is_scope_watched(route))


def _may_widen(principal: Principal, route: Route) -> bool:
    """SEC: what comes along is of any type, and of anybody."""
    if principal.role in route.searched:
        return False
    return principal.scopes is None or covers(principal.scopes, _EVERY_READ, own=False)


def _decide_binding(binding: Binding, claim: object, pairs: Pairs, bases: Iterable[str]) -> Decision:
    """One of the bound parameters must be there; each that is must refer to what the claim names, and nothing else."""
    found = False
    for name, value in pairs:
        base = re.split(r"[:.]", name, maxsplit=1)[0]
        if base not in binding.names:
            if _is_disguised(base, binding.names):
                return SEARCH_REFUSED
            continue
        if name != base and (binding.reference is None or name != f"{base}:{binding.reference}"):
            return SEARCH_REFUSED  # a chain, or a modifier such as :not, :missing, :identifier
        found = True
        typed = name != base or base == (binding.reference or "").lower()
        if not all(_is_own(member, binding, claim, bases, typed=typed) for member in value.split(",")):
            return NOT_BOUND_HIDDEN if binding.hidden else NOT_BOUND
    return ALLOWED if found else SEARCH_ABSENT


def patients_searched(where: Binding, pairs: Pairs, bases: Iterable[str]) -> set[str] | None:
    """Ids of all records that a query names there; None if it names one in a way that does not say which."""
    found: set[str] = set()
    for name, value in pairs:
        base = re.split(r"[:.]", name, maxsplit=1)[0]
        if base not in where.names:
            if _is_disguised(base, where.names):
                return None
            continue
        if name not in (base, f"{base}:{where.reference}"):
            return None
        typed = name != base or base == (where.reference or "").lower()
        for member in value.split(","):
            record = record_of(member, where, bases, bare=typed)
            if record is None:
                return None
            found.add(record)
    return found


def _is_disguised(base: str, names: Iterable[str]) -> bool:
    """SEC: `Patient=` is no `patient=` to us, but it is to a server that does not look at the case of names."""
    return base.strip().casefold() in {name.casefold() for name in names}


def _is_own(member: str, binding: Binding, claim: object, bases: Iterable[str], *, typed: bool) -> bool:
    """`typed`: the parameter's name says the type, so that an id alone will do."""
    if binding.reference is None:
        return bool(member) and is_claimed(member, claim)
    found = id_of(member, binding.reference, bases, bare=typed)
    return found is not None and is_claimed(found, claim)

"""SMART on FHIR scopes: what they are, and the bits they grant. Pure.

A grant is two integers, one bit for each type of resource and interaction: whether a token may do what a route needs is
one AND. Source: SMART App Launch 2.2, "Scopes and Launch Context"; version 1 is read as that page maps it to version 2.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from gateway.rbac.fhir import ANY_TYPE, RESOURCE_TYPES

INTERACTIONS = "cruds"
CONTEXTS = ("patient", "user", "system")
UNRESTRICTED = 0
"""Mask of a route that needs no scope in particular."""

_TYPES = {name: index for index, name in enumerate([ANY_TYPE, *sorted(RESOURCE_TYPES)])}
_PER_TYPE = len(INTERACTIONS)
_EVERY_TYPE = sum(1 << _PER_TYPE * index for index in range(len(_TYPES)))
_SCOPE = re.compile(r"(patient|user|system)/(\*|[A-Z][A-Za-z]*)\.(read|write|\*|c?r?u?d?s?)\Z")
_NEED = re.compile(r"(\*|[A-Z][A-Za-z]*)\.(c?r?u?d?s?)\Z")
_VERSION_1 = {"read": "rs", "write": "cud", "*": INTERACTIONS}


@dataclass(frozen=True, slots=True)
class Scopes:
    """What a token's scopes grant within what its role may have.

    `own`: of scopes `patient/…`, which count only where the route binds the caller to the patient of its token;
    `any`: of `user/…` and `system/…`. `contexts` are those the role may have at all.
    """

    own: int
    any: int
    contexts: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.own or self.any)


@dataclass(frozen=True, slots=True)
class Ceiling:
    """What a role's tokens may have at most: a mask for each of CONTEXTS."""

    patient: int
    user: int
    system: int

    @property
    def contexts(self) -> tuple[str, ...]:
        return tuple(name for name in CONTEXTS if getattr(self, name))


def read_scope(text: str) -> tuple[str, int] | None:
    """(context, mask) of one scope; None for what is no scope on resources.

    SEC: one with a restriction (`patient/Observation.rs?category=…`) is None too: nobody here would keep it.
    """
    found = _SCOPE.match(text)
    if found is None:
        return None
    mask = mask_of(found[2], _VERSION_1.get(found[3], found[3]))
    return (found[1], mask) if mask else None


def read_need(text: str) -> int:
    """The mask of `TYPE.letters`; 0 if it is none."""
    found = _NEED.match(text)
    return mask_of(found[1], found[2]) if found is not None else 0


def mask_of(resource: str, letters: str) -> int:
    """Bits of these interactions with a type; `*` is every type, those of later versions of FHIR too. 0 for no type."""
    index = _TYPES.get(resource)
    if index is None:
        return 0
    bits = sum(1 << INTERACTIONS.index(letter) for letter in letters)
    return bits * _EVERY_TYPE if resource == ANY_TYPE else bits << _PER_TYPE * index


def read_ceiling(texts: Iterable[str]) -> Ceiling:
    """What a role declares. Raises: ValueError for what is no scope."""
    masks = dict.fromkeys(CONTEXTS, 0)
    for text in texts:
        found = read_scope(text)
        if found is None:
            raise ValueError("not a scope")
        masks[found[0]] |= found[1]
    return Ceiling(**masks)


@lru_cache(maxsize=4096)
def granted(ceiling: Ceiling, texts: tuple[str, ...]) -> Scopes:
    """What these scopes of a token grant to a role; what is no scope on resources (`openid`) grants nothing."""
    masks = dict.fromkeys(CONTEXTS, 0)
    for text in texts:
        found = read_scope(text)
        if found is not None:
            masks[found[0]] |= found[1]
    return Scopes(
        own=masks["patient"] & ceiling.patient,
        any=masks["user"] & ceiling.user | masks["system"] & ceiling.system,
        contexts=ceiling.contexts,
    )


def claimed(claims: dict[str, object]) -> tuple[str, ...]:
    """The scopes that a token's claims name: `scope`, or `scp` where there is none.

    Shapes: text of scopes between single spaces, or a list of scopes; `gateway.auth.claims` has refused anything else.
    """
    value = claims.get("scope", claims.get("scp"))
    if isinstance(value, str):
        return tuple(value.split(" "))
    # SEC: a member with a space in it is one scope that nobody has, and not two.
    return tuple(member for member in value if isinstance(member, str)) if isinstance(value, list) else ()


def covers(scopes: Scopes, need: int, *, own: bool) -> bool:
    """Do they grant all of `need`? `own`: the route binds the caller to the patient of its token."""
    have = scopes.any | scopes.own if own else scopes.any
    return have & need == need if need else bool(have)


def named(scopes: Scopes, need: str, *, own: bool) -> str:
    """The scope that would do, for a caller to ask for; "" if none would."""
    for context in scopes.contexts:
        if context != "patient" or own:
            return f"{context}/{need}"
    return ""

"""References of FHIR to one record, in every spelling a server takes for it. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from gateway.context import Principal
from gateway.rbac.fhir import RESOURCE_ID
from gateway.routing.model import Binding, Route


def id_of(text: str, resource: str, bases: Iterable[str] = (), *, bare: bool = False) -> str | None:
    """The id of the record of this type that a text refers to; None if it refers to anything else.

    `Patient/123`, that below one of our own `bases`, and where the type is known without it (`bare`) `123`. A version
    (`…/_history/2`), a fragment, a query and another server's record are None.
    Source: FHIR, references; search, 3.2.1.5.12.
    """
    for base in bases:
        if text.startswith(base):
            text = text[len(base) :]
            bare = False
            break
    prefix = f"{resource}/"
    if text.startswith(prefix):
        text = text[len(prefix) :]
    elif not bare:
        return None
    return text if RESOURCE_ID.match(text) else None


def bases_of(templates: Iterable[str], unit: str) -> tuple[str, ...]:
    """Our own bases for a request to a unit, each with its last slash.

    SEC: another unit's base is another record's, also where the id is the same.
    """
    return tuple(f"{base.replace('{unit}', unit)}/" for base in templates if unit or "{unit}" not in base)


def is_claimed(value: str, claim: object) -> bool:
    """The value equals the claim, or is one of its members; text only, byte for byte.

    SEC: only strings count: 1 is not "1", and a nested list or an object never matches by its spelling.
    """
    if isinstance(claim, str):
        return claim == value
    return isinstance(claim, list) and any(isinstance(member, str) and member == value for member in claim)


def record_of(text: str, where: Binding, bases: Iterable[str], *, bare: bool = False) -> str | None:
    """The id of the record that a request names there, where it may be text as it is; None if it names none."""
    return (text or None) if where.reference is None else id_of(text, where.reference, bases, bare=bare)


def claim_of(principal: Principal, route: Route, binding: Binding, patient: str) -> object:
    """What a binding compares with: the claim, or, if it is about a patient, whom an emergency opens ("": nobody).

    SEC: what is bound to anything else, such as the caller's organisation, stays bound to it.
    """
    return patient if patient and _is_of_patient(binding, route.break_glass) else principal.claims.get(binding.claim)


def _is_of_patient(binding: Binding, where: Binding | None) -> bool:
    if where is None or binding.reference is not None:
        return binding.reference == "Patient"
    return bool(set(binding.names) & set(where.names)) or bool(binding.steps and binding.steps == where.steps)


def applies(binding: Binding, role: str) -> bool:
    """Does a binding hold for this role?"""
    return not binding.roles or role in binding.roles

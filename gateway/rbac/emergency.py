"""Whose record a request in an emergency is about: one patient, whom everything in it names. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Final

from gateway.rbac.document import patients_written
from gateway.rbac.search import OF_PATIENT, Pairs, is_wide, patients_searched
from gateway.routing.model import Binding

EMERGENCY: Final = "break-glass"
"""The rule by which a record was opened that a binding refused."""


def patient_named(
    where: Binding, params: Mapping[str, str], pairs: Pairs, document: Any, bases: Iterable[str]
) -> str | None:
    """The one patient a request is about; None if it names none, more than one, or could bring along others.

    Raises: Unprocessable for a body without one.
    """
    if where.source == "path":
        found: set[str] | None = {params.get(where.param, "")}
    elif where.source == "query":
        found = patients_searched(where, pairs, bases)
    else:
        found = patients_written(where, document, bases)
    if found is None or len(found) != 1 or "" in found or any(is_wide(name) for name, _ in pairs):
        return None
    # SEC: whatever else of the query names a patient, bound or not, names this one.
    also = patients_searched(replace(where, names=(*where.names, *OF_PATIENT)), pairs, bases)
    return min(found) if also is not None and also <= found else None

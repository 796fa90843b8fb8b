"""Changes of a patient's consent: what a request to a Consent of FHIR does, as an event of its own. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

import orjson

from gateway.audit.event import action_of, action_on, own_bases
from gateway.audit.interaction import about, patient_written
from gateway.context import RequestContext

METHODS: Final = frozenset({"POST", "PUT", "PATCH", "DELETE"})
"""Of requests that may change one."""
CONSENT: Final = "Consent"
_KINDS: Final = {"C": "consent.given", "U": "consent.changed", "D": "consent.withdrawn"}


MOST_BYTES: Final = 65_536
"""Of an answer that is looked into."""


class Change(NamedTuple):
    """Shapes: `id` of the consent and `patient`, as far as the request, or the answer to a create, names them."""

    kind: str
    id: str
    patient: str


def consent_change(ctx: RequestContext) -> Change | None:
    """What a request does to a patient's consent, whether it was let or not; None if it is about none."""
    route = ctx.route
    if route is None:
        return None
    told, (written, patient) = route.metadata, ctx.told or ("", "")
    patient = ctx.params.get("patient", "") or patient
    param = told.get("fhir_param")
    if param is None:
        if told.get("resource_type") != CONSENT:
            return None
        kind = _KINDS.get(action_on(route, ctx.method))
        key = ctx.params.get(told.get("resource_param", ""), "")
    else:
        found = about(ctx.method, ctx.params.get(param, ""), ctx.query, own_bases(route, ctx))
        if found.resource != CONSENT:
            return None
        kind = _KINDS.get(found.action or action_of(ctx.method))
        key, patient = found.id, found.patient or patient
    return Change(kind, key or written, patient) if kind is not None else None


def patient_answered(answer: bytes, bases: Iterable[str]) -> str:
    """The patient of whom a server's answer says that it is about; empty for what is no JSON of a resource."""
    if not 0 < len(answer) <= MOST_BYTES:
        return ""
    try:
        return patient_written(orjson.loads(answer), bases)
    except ValueError:
        return ""

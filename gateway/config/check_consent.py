"""Purpose of use and consent in the document."""

from __future__ import annotations

import difflib
from importlib.metadata import entry_points
from typing import Final

from gateway.config.check_bindings import BODILESS, MAX_READ_BYTES, Bound, read_param
from gateway.config.checking import Checking
from gateway.config.fault import step
from gateway.config.model import Consent, Controller
from gateway.config.template import Template
from gateway.rbac.purpose import CODES

CONSENT_GROUP: Final = "caregate.consent"
CLAIM: Final = "claim:"


def hook_names() -> frozenset[str]:
    """Names of the consent hooks that installed distributions offer."""
    return frozenset(point.name for point in entry_points(group=CONSENT_GROUP))


def check_purpose(checking: Checking, path: str, controller: Controller) -> None:
    """Note every fault of `purpose`."""
    purpose = controller.purpose
    if purpose is None:
        return
    for below, code in checking.each(purpose.required, step(step(path, "purpose"), "required")):
        if code not in CODES:
            near = difflib.get_close_matches(code.upper(), CODES, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            checking.add(below, f"is not a code of HL7's PurposeOfUse, such as TREAT{hint}")
    if controller.audit.purpose is not None:
        checking.add(step(step(path, "audit"), "purpose"), "the purpose is the caller's, see purpose.required")


def check_consent(checking: Checking, path: str, controller: Controller, template: Template) -> None:
    """Note every fault of `consent`."""
    consent = controller.consent
    if consent is None:
        return
    below = step(path, "consent")
    if (consent.hook is None) == (consent.function is None):
        checking.add(below, "needs one of hook and function")
    if consent.hook is not None and consent.hook not in hook_names():
        checking.add(step(below, "hook"), f"no entry point of that name in the group {CONSENT_GROUP}")
    for place, role in checking.each(consent.roles, step(below, "roles")):
        if role not in controller.roles:
            checking.add(place, f"{role} is not a role of the route")
    fault = _patient_fault(consent, controller, template)
    if fault is not None:
        checking.add(step(below, "patient"), fault)


def _patient_fault(consent: Consent, controller: Controller, template: Template) -> str | None:
    if consent.patient.startswith(CLAIM) and len(consent.patient) > len(CLAIM):
        return None
    bound = read_param(consent.patient)
    if bound is None:
        return "must be a parameter of the path, query:NAME, body:/json/pointer or claim:NAME"
    return place_fault(bound, controller, template)


def place_fault(bound: Bound, controller: Controller, template: Template) -> str | None:
    """Why a request does not name its one patient there; None if it does."""
    if bound.source == "path":
        one = bound.param in template.params and not template.params[bound.param]
        return None if one else f"{bound.param} is not a parameter of the path that is one segment"
    if bound.source == "query":
        if controller.query == "any":
            return "the route takes any query: list the parameters"
        missing = [name for name in bound.names if name not in controller.query]
        if missing:
            return f"the route does not take the query parameter {missing[0]}"
        writing = [method for method in controller.methods if method not in ("GET", "HEAD", "DELETE")]
        return f"{writing[0]} has parameters in its body as well" if writing else None
    if BODILESS.intersection(controller.methods) or not 0 < controller.body_max_bytes <= MAX_READ_BYTES:
        return f"every method must have a body, of at most {MAX_READ_BYTES} bytes"
    return None

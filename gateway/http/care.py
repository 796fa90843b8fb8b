"""What a route asks for beside the path: purpose of use, bindings of query and body, consent; and emergencies.

Only requests to routes that ask for any of it come here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

import falcon

from gateway.audit.interaction import PATIENT, patient_written
from gateway.bodies import ReadBody
from gateway.context import Principal, RequestContext, deadline_of, note_shadow
from gateway.errors import (
    BadJson,
    ClientError,
    ConsentUnavailable,
    QueryRefused,
    Unprocessable,
)
from gateway.http.consents import Asking
from gateway.portal.resource import read_body
from gateway.rbac.consent import CONSENT_REFUSED, CONSENT_REFUSED_HIDDEN, Question
from gateway.rbac.decide import NOT_BOUND, SCOPE, SEARCH_ABSENT, SEARCH_REFUSED, Decision, is_read, watched_refusals
from gateway.rbac.document import decide_document, patients_written, read_document
from gateway.rbac.emergency import EMERGENCY, patient_named
from gateway.rbac.purpose import FIELD, decide_purpose
from gateway.rbac.reference import applies, bases_of
from gateway.rbac.search import decide_search, is_strict, patients_searched, read_search
from gateway.routing.model import Binding, Consent, Purpose, Route, UnitAction
from gateway.routing.onward import OVERRIDES
from gateway.routing.query import check_query

Opens = Callable[[RequestContext, Principal, Route, str], bool]
_CONDITIONAL = ("HTTP_IF_NONE_EXIST", *OVERRIDES)
"""Fields with which a request would be another one than was decided upon, or search."""


class Care:
    """The steps between a decision on the path and the resource."""

    def __init__(self, consents: Asking | None = None, opens: Opens = lambda ctx, who, route, patient: False) -> None:
        """Without `consents` nobody is asked, and a route that needs one refuses: it is unavailable.

        Shapes: `opens(ctx, principal, route, patient)`: has the caller an emergency by which he may read this patient's
        record there? See breakglass.service.
        """
        self._consents = consents
        self._opens = opens

    def take(
        self,
        req: falcon.Request,
        ctx: RequestContext,
        principal: Principal,
        route: Route,
        refused: Decision | None = None,
    ) -> None:
        """Let the request pass, or refuse it. `refused`: a binding of the path did, so only an emergency lets it pass.

        Raises: QueryRefused, Forbidden, NotFound, BadJson, Unprocessable, ConsentUnavailable, what `opens` raises, and
        the errors of the caller's body.
        Yields to the hub: while a body that is bound arrives, and until a consent or an emergency is known.
        """
        _Request(req, ctx, principal, route, self._opens, refused).pass_(self._consents)


def may_open(ctx: RequestContext, principal: Principal, route: Route) -> bool:
    """Could an emergency of this caller open what a binding refuses of this request?"""
    rules = ctx.snapshot.document.break_glass if route.break_glass is not None else None
    return rules is not None and principal.role in rules.roles and is_read(route, ctx.params, ctx.method)


class _Request:
    """One request on its way through. Holds: what of it was read, until it has passed."""

    __slots__ = (
        "_bases",
        "_ctx",
        "_document",
        "_opened",
        "_opens",
        "_pairs",
        "_principal",
        "_refused",
        "_req",
        "_role",
        "_route",
    )  # fmt: skip

    def __init__(
        self,
        req: falcon.Request,
        ctx: RequestContext,
        principal: Principal,
        route: Route,
        opens: Opens,
        refused: Decision | None,
    ) -> None:
        self._req, self._ctx, self._principal, self._route = req, ctx, principal, route
        self._opens, self._refused = opens, refused
        self._opened = ""
        """Whom an emergency has opened."""
        self._role = principal.role
        self._bases = bases_of(route.bases, unit_of(ctx, route)) if route.bases else ()
        self._pairs: list[tuple[str, str]] = []
        self._document: Any = None

    def pass_(self, consents: Asking | None) -> None:
        ctx, route = self._ctx, self._route
        if route.purpose is not None:
            self._take_purpose(route.purpose)
        if ctx.query:
            check_query(ctx.query, route.query)
        self._note(watched_refusals(self._principal, route, ctx.params, ctx.method))
        consent = route.consent if route.consent is not None and self._is_asked(route.consent) else None
        self._search(consent)
        if self._role in route.searched and self._is_conditional():
            self._stop(SEARCH_REFUSED)
        self._read(consent)
        if self._refused is not None:
            self._stop(self._refused)
        if consent is not None:
            self._ask(consents, consent)

    def _bindings(self, source: str) -> list[Binding]:
        return [b for b in self._route.bindings if b.source == source and applies(b, self._role)]

    def _is_asked(self, consent: Consent) -> bool:
        return not consent.roles or self._role in consent.roles

    def _stop(self, decision: Decision) -> None:
        """Raises: what the decision says, if it refuses."""
        if not decision.allowed:
            self._ctx.rule = decision.rule
            raise decision.refusal()

    # --- purpose of use

    def _take_purpose(self, purpose: Purpose) -> None:
        env = self._req.env
        found = decide_purpose(
            purpose.required,
            env.get("HTTP_PURPOSE_OF_USE"),
            self._principal.claims.get("purpose"),
            doubled=FIELD.lower() in env.get("caregate.duplicate", ()),
        )
        if isinstance(found, str):
            self._ctx.purpose = found
        elif purpose.shadow:
            note_shadow(self._ctx, found.rule)
        else:
            self._stop(found)

    # --- emergencies

    def _open(self, refused: Decision) -> None:
        """Let an emergency stand in for a claim. Raises: QueryRefused, and the refusal if there is none."""
        ctx, where = self._ctx, self._route.break_glass
        if where is None or not may_open(ctx, self._principal, self._route) or self._is_conditional():
            self._stop(refused)
            return
        pairs = self._pairs or read_search(ctx.query)
        patient = patient_named(where, ctx.params, pairs, self._document, self._bases)
        if patient is None or not self._opens(ctx, self._principal, self._route, patient):
            self._stop(refused)
            return
        self._opened, self._refused, ctx.rule = patient, None, EMERGENCY

    def _is_opened_by(self, source: str) -> bool:
        """Is it known, once this part of the request was read, whom an emergency would have to open?"""
        where = self._route.break_glass
        return where is not None and (where.source == "body") == (source == "body")

    def _is_conditional(self) -> bool:
        return any(name in self._req.env for name in _CONDITIONAL)

    # --- the query

    def _search(self, consent: Consent | None) -> None:
        """Raises: QueryRefused, and what a binding refuses."""
        ctx, route = self._ctx, self._route
        watched = self._bindings("query")
        strict, scoped = is_strict(self._principal, route), self._principal.scopes is not None
        asked = consent is not None and consent.patient.source == "query"
        refused = self._refused if self._is_opened_by("query") else None
        if not watched and not asked and refused is None and not (ctx.query and (strict or scoped)):
            return
        try:
            self._pairs = read_search(ctx.query)
        except QueryRefused:
            in_force = strict or refused is not None or not all(b.shadow for b in watched)
            if in_force or (consent is not None and asked and not consent.shadow):
                ctx.rule = "search"
                raise
            self._note([SCOPE] if scoped else [])
            self._note(binding.rule for binding in watched)
            return
        if refused is not None:
            self._open(refused)
        decision = self._decide_search()
        if decision.rule == NOT_BOUND.rule and not self._opened and self._is_opened_by("query"):
            self._open(decision)
            decision = self._decide_search()
        self._stop(decision)

    def _decide_search(self) -> Decision:
        shadows: list[str] = []
        found = decide_search(self._principal, self._route, self._pairs, self._bases, shadows, self._opened)
        self._note(shadows)
        return found

    # --- the body

    def _read(self, consent: Consent | None) -> None:
        """Raises: BadJson, Unprocessable, what a binding refuses, and the errors of the caller's body."""
        watched = self._bindings("body")
        asked = consent is not None and consent.patient.source == "body"
        if not watched and not asked and self._refused is None:
            return
        req, ctx = self._req, self._ctx
        raw = read_body(req.env, self._route.body_max_bytes, deadline_of(ctx, self._route))
        # SEC: what was decided upon is what is forwarded, byte for byte.
        req.env["wsgi.input"] = req.stream = ReadBody(raw)
        req.env["caregate.content_length"] = len(raw)
        try:
            if "content-type" in req.env.get("caregate.duplicate", ()):
                raise BadJson("Content-Type is given twice")
            self._document = read_document(raw, req.content_type or "", req.env.get("HTTP_CONTENT_ENCODING", ""))
            ctx.told = "", self._patient_written()
            if self._refused is not None:
                self._open(self._refused)
            decision = self._decide_document()
            if decision.rule == NOT_BOUND.rule and not self._opened:
                self._open(decision)
                decision = self._decide_document()
        except (BadJson, Unprocessable):
            in_force = not all(b.shadow for b in watched) or self._refused is not None
            if in_force or (consent is not None and asked and not consent.shadow):
                ctx.rule = NOT_BOUND.rule
                raise
            self._note([binding.rule for binding in watched])
            return
        self._stop(decision)

    def _patient_written(self) -> str:
        """Whom the body names, for the audit trail: where a rule looks for a patient, else as FHIR has it."""
        route = self._route
        looked = [*route.bindings, *(b for b in (route.break_glass, route.consent and route.consent.patient) if b)]
        for where in looked:
            if where.source == "body" and where.reference == PATIENT:
                with suppress(Unprocessable):
                    return min(patients_written(where, self._document, self._bases) or (), default="")
        return patient_written(self._document, self._bases)

    def _decide_document(self) -> Decision:
        """Raises: Unprocessable."""
        shadows: list[str] = []
        found = decide_document(self._principal, self._route, self._document, self._bases, shadows, self._opened)
        self._note(shadows)
        return found

    def _note(self, rules: Iterable[str]) -> None:
        for rule in rules:
            note_shadow(self._ctx, rule)

    # --- consent

    def _ask(self, consents: Asking | None, consent: Consent) -> None:
        """Raises: ConsentUnavailable, and what says that there is none."""
        ctx, principal, rule = self._ctx, self._principal, self._ctx.rule
        try:
            purpose = ctx.purpose or principal.claims.get("purpose", "")
            question = Question(
                unit_of(ctx, self._route), self._patient(consent.patient), principal.subject, self._role, purpose
            )
            deadline_ns = deadline_of(ctx, self._route)
            if consents is None:
                raise ConsentUnavailable()
            if not consents.permits(consent, question, principal, deadline_ns):
                self._stop(CONSENT_REFUSED_HIDDEN if consent.hidden else CONSENT_REFUSED)
        except (ClientError, ConsentUnavailable) as error:
            if not consent.shadow:
                if isinstance(error, ConsentUnavailable):
                    ctx.rule = "consent"
                raise
            ctx.rule = rule
            note_shadow(ctx, "consent")

    def _patient(self, where: Binding) -> str:
        """The one patient whose consent counts. Raises: what says that there is none, or more than one."""
        if where.source == "path":
            return self._ctx.params[where.param]
        if where.source == "claim":
            value = self._principal.claims.get(where.claim)
            if not isinstance(value, str):
                self._stop(NOT_BOUND)
            return str(value)
        if where.source == "query":
            found = patients_searched(where, self._pairs, self._bases)
        else:
            found = patients_written(where, self._document, self._bases)
        if found is None or len(found) > 1:
            self._stop(SEARCH_REFUSED)
        if not found:
            self._stop(SEARCH_ABSENT)
        return min(found or ())


def unit_of(ctx: RequestContext, route: Route) -> str:
    """The unit a request is for; "" for a route without one."""
    action = route.action
    if isinstance(action, UnitAction) and action.unit is not None:
        return action.unit
    name = action.unit_param if isinstance(action, UnitAction) and action.unit_param is not None else "unit"
    return ctx.params.get(name, "")

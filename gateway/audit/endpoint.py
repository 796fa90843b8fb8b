"""The trail over HTTP.

```
GET /audit/v1/AuditEvent        a search, FHIR R4, in the manner of IHE ITI-81; for roles with audit.read
GET /audit/v1/AuditEvent/{id}   one event
GET /me/access-log              who looked at the record of the patient that the token names
```
Each answer is an event of the trail itself before it is given.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

import falcon
import orjson

from gateway.audit.event import AuditEvent, readable
from gateway.audit.fhir import audit_event, bundle
from gateway.audit.kinds import ALSO
from gateway.audit.refusals import noting
from gateway.audit.search import Place, Scope, Search, SearchRefused, parse
from gateway.audit.timestamp import instant
from gateway.context import Principal, RequestContext
from gateway.errors import (
    AuditSearchUnavailable,
    BindingRefused,
    NotFound,
    PermissionRefused,
    QueryRefused,
    TokenMissing,
)

SEARCH_PATH: Final = "/audit/v1/AuditEvent"
ACCESS_LOG_PATH: Final = "/me/access-log"
PERMISSION: Final = "audit.read"
_PAGE: Final = 50
_SHOWN_KINDS: Final = (
    "access", ALSO, "consent.given", "consent.changed", "consent.withdrawn", "break-glass.started", "break-glass.used",
    "break-glass.ended", "break-glass.reviewed",
)  # fmt: skip
"""What a patient is shown of what concerns her record."""

SEARCHED: Final = "audit.searched"
_EVENT_ID = re.compile(r"([0-9a-z]{1,64})-([0-9]{1,18})\Z")
"""Chain and number."""

Note = Callable[..., None]


class Store(Protocol):
    """See store.trail_search.SearchStore."""

    def find(self, search: Search, scope: Scope) -> list[tuple[Place, bytes]]: ...
    def read(self, chain: str, sequence: int, scope: Scope) -> bytes | None: ...


class Patients(Protocol):
    """Under which names the trail knows a patient, and back."""

    def names_of(self, patient: str) -> tuple[str, ...]: ...
    def ids_of(self, names: Sequence[str]) -> dict[str, str]: ...


class PlainPatients:
    """Patients by their ids, where there are no pseudonyms."""

    def names_of(self, patient: str) -> tuple[str, ...]:
        return (patient,)

    def ids_of(self, names: Sequence[str]) -> dict[str, str]:
        return {}


class _Reading:
    """What the resources share."""

    def __init__(
        self,
        store: Store | None,
        note: Note,
        *,
        page_max: int = 200,
        patients: Patients | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Shapes: `note` is AuditTrail.note; without a `store` there is no database to read from."""
        self._store = store
        self._note = note
        self._page_max = page_max
        self._patients: Patients = patients or PlainPatients()
        self._now = now

    def _reader(self) -> Store:
        if self._store is None:
            raise AuditSearchUnavailable()
        return self._store

    def _decoded(self, found: list[tuple[Place, bytes]]) -> list[tuple[Place, AuditEvent]]:
        return [(place, readable(canonical, place.at_ms)) for place, canonical in found]

    def _answer(self, resp: falcon.Response, document: dict[str, Any], media_type: str) -> None:
        resp.content_type = media_type
        resp.set_header("Cache-Control", "no-store")
        resp.data = orjson.dumps(document)


class SearchResource(_Reading):
    """A page of a search."""

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Yields to the hub: yes.

        Raises: TokenMissing, PermissionRefused, BindingRefused, QueryRefused, AuditUnavailable, DatabaseUnavailable,
        DatabaseTimeout, Overloaded.
        """
        ctx: RequestContext = req.context.gateway
        about: dict[str, str] = {}
        with noting(self._note, ctx, SEARCHED, about):
            search, found = self._find(ctx, about)
        page = found[: search.count]
        self._note(SEARCHED, "allowed", ctx=ctx, durable=True, found=str(len(page)), **about)
        links = {"self": search.link(SEARCH_PATH)}
        if len(found) > len(page):
            links["next"] = search.link(SEARCH_PATH, page[-1][0])
        events = self._decoded(page)
        ids = self._patients.ids_of([event.patient for _, event in events if event.patient])
        resources = (audit_event(e, at.chain, at.sequence, lambda name: ids.get(name, name)) for at, e in events)
        self._answer(resp, bundle(resources, links, round(self._now() * 1000)), "application/fhir+json")

    def _find(self, ctx: RequestContext, about: dict[str, str]) -> tuple[Search, list[tuple[Place, bytes]]]:
        """What is searched for, if the caller may; `about` is filled in whether he may or not."""
        try:
            search: Search | SearchRefused = parse(ctx.query, count=_PAGE, most=self._page_max)
        except SearchRefused as refused:
            search = refused
        if isinstance(search, Search):
            about |= {"patient": search.where.get("patient", ("",))[0], "query": search.described}
        scope = scope_of(ctx)
        if isinstance(search, SearchRefused):
            raise QueryRefused(str(search))
        return search, self._reader().find(_within(self._named(search), scope), scope)

    def _named(self, search: Search) -> Search:
        """The search under the names that the trail has for its patient."""
        if "patient" in search.where:
            search = _with(search, patient=self._patients.names_of(search.where["patient"][0]))
        keys = search.where.get("resource_id", ())
        # NOTE: a resource that is the patient's own has the patient's name.
        if keys and search.where.get("resource_type", ("Patient",)) == ("Patient",):
            search = _with(search, resource_id=tuple(name for key in keys for name in self._patients.names_of(key)))
        return search


class ReadResource(_Reading):
    """One event."""

    def on_get(self, req: falcon.Request, resp: falcon.Response, event_id: str) -> None:
        """As SearchResource.on_get. Raises: NotFound."""
        ctx: RequestContext = req.context.gateway
        named = _EVENT_ID.match(event_id)
        about = {"query": f"_id={event_id}"} if named is not None else {}
        with noting(self._note, ctx, SEARCHED, about):
            scope = scope_of(ctx)
            canonical = self._reader().read(named[1], int(named[2]), scope) if named is not None else None
            if named is None or canonical is None:
                raise NotFound()
        self._note(SEARCHED, "allowed", ctx=ctx, durable=True, found="1", **about)
        event = readable(canonical)
        ids = self._patients.ids_of([event.patient] if event.patient else [])
        resource = audit_event(event, named[1], int(named[2]), lambda name: ids.get(name, name))
        self._answer(resp, resource, "application/fhir+json")


class AccessLogResource(_Reading):
    """What a patient may know of accesses to her record, at every unit."""

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Yields to the hub: yes.

        Raises: TokenMissing, NotFound, QueryRefused, and as a search.
        """
        ctx: RequestContext = req.context.gateway
        about: dict[str, str] = {}
        with noting(self._note, ctx, "audit.read-own", about):
            principal, search, found = self._find(ctx, about)
        page = found[: search.count]
        self._note("audit.read-own", "allowed", ctx=ctx, durable=True, found=str(len(page)), **about)
        document: dict[str, Any] = {"accesses": [_shown(event, principal) for _, event in self._decoded(page)]}
        if len(found) > len(page):
            document["next"] = search.link(ACCESS_LOG_PATH, page[-1][0])
        self._answer(resp, document, falcon.MEDIA_JSON)

    def _find(self, ctx: RequestContext, about: dict[str, str]) -> tuple[Principal, Search, list[tuple[Place, bytes]]]:
        principal = _principal(ctx)
        # SEC: whose record it is says the token alone; a role that is not named sees no log, whatever it claims.
        patient = principal.claims.get("patient")
        if principal.role not in ctx.snapshot.document.audit.own_record or not isinstance(patient, str) or not patient:
            raise NotFound()
        try:
            search = parse(ctx.query, count=_PAGE, most=self._page_max, names=(), needs_dates=False)
        except SearchRefused as refused:
            raise QueryRefused(str(refused)) from None
        about["query"] = search.described
        names = self._patients.names_of(patient)
        search = _with(search, patient=names, kind=_SHOWN_KINDS)
        return principal, search, self._reader().find(search, Scope(patients=names))


def scope_of(ctx: RequestContext) -> Scope:
    """What the caller may see of the trail.

    Raises: TokenMissing, PermissionRefused, BindingRefused.
    """
    principal = _principal(ctx)
    reader = ctx.snapshot.document.audit.readers.get(principal.role)
    if PERMISSION not in principal.permissions or reader is None:
        ctx.rule = "permission"
        raise PermissionRefused()
    if reader.sees == "all":
        return Scope(everything=True)
    claimed = principal.claims.get(reader.sees.removeprefix("claim:"))
    units = (claimed,) if isinstance(claimed, str) else tuple(claimed) if isinstance(claimed, list) else ()
    if not units or not all(isinstance(unit, str) and unit for unit in units):
        ctx.rule = "binding:unit"
        raise BindingRefused("The token names no unit whose accesses might be seen")
    return Scope(units=units)


def _principal(ctx: RequestContext) -> Principal:
    if ctx.principal is None:
        ctx.rule = "token:missing"
        raise TokenMissing()
    return ctx.principal


def _within(search: Search, scope: Scope) -> Search:
    """The search within the units of its scope, so that the index of units is used.

    Raises: BindingRefused for a unit outside.
    """
    if scope.everything:
        return search
    wanted = search.where.get("unit", scope.units)
    if not set(wanted) <= set(scope.units):
        raise BindingRefused("A unit was asked for that the caller may not see")
    return _with(search, unit=wanted)


def _with(search: Search, **where: tuple[str, ...]) -> Search:
    return Search(
        search.from_ms, search.to_ms, search.count, {**search.where, **where}, search.after, search.parameters
    )  # fmt: skip


def _shown(event: AuditEvent, principal: Principal) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "at": instant(event.at_ms),
        "kind": event.kind,
        "action": event.action,
        "outcome": event.outcome,
        "own": (event.issuer, event.subject) == (principal.issuer, principal.subject),
    }
    for name in ("route", "resource_type", "unit", "role", "organisation", "client", "purpose", "request_id"):
        value = getattr(event, name)
        if value:
            shown[name] = value
    return shown

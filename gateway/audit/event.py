"""What the trail keeps of an access: who did what, where, under which rule, and how it ended. Pure.

An event exists as canonical bytes: a JSON object without white space, in UTF-8, its members in the order of
AuditEvent's fields, those that equal their default left out. The chain is over these bytes and everything else, the
columns of the database too, is derived from them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import orjson

from fastpath.chain import Chain
from fastpath.events import AccessText
from gateway.audit.interaction import BUNDLE, PATIENT, SEARCH, About, about, patients_named, patients_searched
from gateway.audit.kinds import kind_of
from gateway.context import Principal, RequestContext
from gateway.rbac.fhir import RESOURCE_TYPES
from gateway.rbac.reference import bases_of
from gateway.routing.model import Route

_MAX_TEXT_CHARS = 256
_MAX_DETAIL_CHARS = 1024
_ACTIONS = {"POST": "C", "GET": "R", "HEAD": "R", "PUT": "U", "PATCH": "U", "DELETE": "D"}
_OTHER_ACTION = "E"
_REQUIRED = frozenset({"request_id", "outcome", "rule"})
_WRITES = frozenset({"POST", "PUT", "PATCH"})
_WRITTEN = "{}"
"""In place of a parameter: the type is the route's, and what was written may say the rest. No parameter is so named."""
_FRAGMENT = ""
"""The key among a principal's grants, which are by route name, under which its part of an event is kept."""
_MOST_ROUTES = 50_000


class AuditEvent(msgspec.Struct, frozen=True, kw_only=True, gc=False, omit_defaults=True):
    """One event. Denied attempts carry the same detail as allowed ones; a token appears by its jti only.

    Shapes: `kind` is access, or names another thing that happened; `phase` is intent, outcome or completion; `outcome`
    is pending (an intent), allowed, refused (the caller's fault), failed, and for a completion complete or cut;
    `action` is C, R, U, D or E as in FHIR's AuditEvent; `patient` is a pseudonym where pseudonyms are on; `detail` is
    what events of other kinds have, and of an access `shadow`: rules that only watch and would have refused it.
    Units: `at_ms` milliseconds since 1970, UTC.
    """

    v: int
    kind: str
    phase: str
    at_ms: int
    duration_us: int
    request_id: str
    outcome: str
    rule: str
    status: int
    method: str = ""
    trace: str = ""
    delivery: str = ""
    unit: str = ""
    agent: str = ""
    patient: str = ""
    resource_id: str = ""
    client_address: str = ""
    route: str = ""
    action: str = ""
    resource_type: str = ""
    phi: bool = False
    purpose: str = ""
    issuer: str = ""
    subject: str = ""
    role: str = ""
    audience: str = ""
    organisation: str = ""
    client: str = ""
    token_id: str = ""
    node: str = ""
    config_version: int = 0
    detail: dict[str, str] = {}


MAX_OTHERS = 100
"""How many patients a request for records may name beside the first."""
VERSION = 1
UNREADABLE = "unreadable"
"""The kind of a record that is no event: its bytes were changed."""
_encode = msgspec.json.Encoder().encode
decode = msgspec.json.Decoder(AuditEvent).decode
"""Canonical bytes -> AuditEvent. Raises: msgspec.MsgspecError."""


def readable(canonical: bytes, at_ms: int = 0) -> AuditEvent:
    """As `decode`; what is no event is shown as one that says so, and hides none beside it.

    Units: `at_ms` ms since 1970, when it is said to have been.
    """
    try:
        return decode(canonical)
    except msgspec.MsgspecError:
        return AuditEvent(
            v=VERSION, kind=UNREADABLE, phase="outcome", at_ms=at_ms, duration_us=0, request_id="", outcome="failed",
            rule="changed: it is no event, verify the trail", status=0,
        )  # fmt: skip


def encode(event: AuditEvent) -> bytes:
    """An event as canonical bytes."""
    return _encode(event)


def action_of(method: str) -> str:
    """What a method does to a resource: C, R, U, D, or E (execute)."""
    return _ACTIONS.get(method, _OTHER_ACTION)


def other_event(
    node: str,
    kind: str,
    outcome: str,
    at_ms: int,
    ctx: RequestContext | None,
    members: dict[str, str],
    detail: dict[str, str],
) -> AuditEvent:
    """An event that is no access; the request it happened in, if there is one, says who caused it.

    Shapes: `members` of AuditEvent that are known otherwise: they come before what the request says.
    """
    found = {**(_of_request(ctx) if ctx is not None else {}), "action": kind_of(kind).action}
    found |= {name: _text(value) for name, value in members.items() if value}
    bounded = {name: _text(value, _MAX_DETAIL_CHARS) for name, value in sorted(detail.items()) if value}
    values: dict[str, Any] = {"request_id": "", "rule": "", "node": _text(node), **found}
    version = ctx.snapshot.version if ctx is not None and ctx.snapshot is not None else 0
    return AuditEvent(
        v=VERSION, kind=kind, phase="outcome", at_ms=at_ms, duration_us=0, outcome=outcome, status=0,
        config_version=version, detail=bounded, **values,
    )  # fmt: skip


def _of_request(ctx: RequestContext) -> dict[str, str]:
    found: dict[str, object] = {
        "request_id": ctx.id,
        "client_address": ctx.client_address,
        "trace": ctx.trace,
        "method": ctx.method,
    }
    principal = ctx.principal
    if principal is not None:
        claims = principal.claims
        found |= {
            "issuer": principal.issuer, "subject": principal.subject, "role": principal.role,
            "audience": principal.audience, "organisation": claims.get("org"),
            "client": claims.get("client_id") or claims.get("azp"), "token_id": principal.token_id,
            "patient": claims.get("patient"), "purpose": claims.get("purpose"),
        }  # fmt: skip
    return {name: _text(value) for name, value in found.items()}


def also_named(ctx: RequestContext) -> list[str]:
    """The patients whom a request names beside the one of its event, which has room for one."""
    route = ctx.route
    if route is None or not (ctx.query or ctx.also):
        return []
    told = route.metadata
    resource, param = told.get("resource_type", ""), told.get("fhir_param")
    if param is None and not ctx.also and (resource not in RESOURCE_TYPES or route.query == frozenset()):
        return []
    bases = own_bases(route, ctx)
    own = ctx.params.get((resource == PATIENT and told.get("resource_param")) or "patient", "")
    if param is not None:
        named = patients_named(ctx.method, ctx.params.get(param, ""), ctx.query, bases)
    else:
        named = patients_searched(resource, ctx.query, bases)
    written = ctx.told[1] if ctx.told else ""
    return [patient for patient in dict.fromkeys([own, *named, written, *ctx.also]) if patient][1:]


def own_bases(route: Route, ctx: RequestContext) -> tuple[str, ...]:
    """The bases for a request below which records are our own, see rbac.reference.bases_of."""
    return bases_of(route.bases, ctx.unit or ctx.params.get("unit", "")) if route.bases else ()


What = tuple[bytes, str | None, str, str | None, bool]
"""Of a route and method: its members; the parameter with the resource's id; that with the patient's; that with a path
below a FHIR base, empty: the query alone may name a patient, _WRITTEN: what is written too, None: neither; does it
name a purpose?"""


def posted(route: Route) -> str:
    """What a POST to a route of one type does, as its own path says, or the one it goes on to.

    Source: FHIR, RESTful API: search by POST, operations; a Bundle is posted to the base as a batch.
    """
    resource = route.metadata.get("resource_type", "")
    if resource not in RESOURCE_TYPES:
        return action_of("POST")
    paths = route.template, getattr(route.action, "target", None) or ""
    last = [path.partition("?")[0].rpartition("/")[2] for path in paths]
    if SEARCH in last:
        return "R"
    is_batch = resource == BUNDLE and BUNDLE not in last
    return "E" if is_batch or any(name.startswith("$") for name in last) else action_of("POST")


def action_on(route: Route, method: str) -> str:
    """What a request does to the one type of a route."""
    return posted(route) if method == "POST" else action_of(method)


def action_in(route: Route, ctx: RequestContext) -> str:
    """What a request does, as the event of its access says."""
    param = route.metadata.get("fhir_param")
    if param is None:
        return action_on(route, ctx.method)
    return about(ctx.method, ctx.params.get(param, ""), "").action or action_of(ctx.method)


class Accesses:
    """Makes the canonical bytes of requests.

    Holds: a piece of JSON for each route and method.
    """

    def __init__(
        self,
        node: str,
        name_of: Callable[[str], str] | None = None,
        names: dict[str, str] | None = None,
        clock_ns: Callable[[], int] | None = None,
        since_ns: Callable[[], int] | None = None,
    ) -> None:
        """Shapes: `node` names this gateway; `name_of(patient)` is what stands in place of a patient's id, `names` what
        it said before. `clock_ns` and `since_ns` are the clocks of `keep` and `complete`: nanoseconds since 1970, and
        of what requests are timed by.
        """
        self._node = _member("node", _text(node))
        self._routes: dict[tuple[str, str], tuple[Route, What]] = {}
        self._members: dict[tuple[str, str, str], tuple[Route, bytes]] = {}
        text = AccessText(
            _caller_member, _who, self._what, self._about, self._node, _ACTIONS, name_of, names,
            clock_ns=clock_ns, since_ns=since_ns,
        )  # fmt: skip
        self.encode: Callable[[RequestContext, int, int, int], bytes] = text.encode
        """The event of a request, its answer's status (0: the intent), ms since 1970, us since it began."""
        self.keep: Callable[[RequestContext, int, Chain], int] = text.keep
        """Adds the event of a request that is answered now, by its status, to a chain."""
        self.complete: Callable[[RequestContext, int, bool, Chain], int] = text.complete
        """Adds the event that says how the transfer of an answer ended: status, was all of it sent?"""

    def _what(self, route: Route, method: str) -> What:
        """A route's members, and where a request says what it is about."""
        found = self._routes.get((route.name, method))
        if found is None or found[0] is not route:
            if len(self._routes) >= _MOST_ROUTES:
                self._routes.clear()
            told = route.metadata
            resource, param = told.get("resource_type", ""), told.get("resource_param")
            patient = param if resource == PATIENT and param is not None else "patient"
            names = route.query is None or bool(route.query)
            asked = told.get("fhir_param")
            if asked is None and resource in RESOURCE_TYPES:
                asked = _WRITTEN if method in _WRITES else "" if names else None
            what = self._of(route, resource, action_on(route, method)), param, patient, asked, bool(told.get("purpose"))
            found = self._routes[route.name, method] = route, what
        return found[1]

    def _about(self, ctx: RequestContext, param: str) -> tuple[bytes | None, str, str]:
        """What a FHIR request itself says it is about. Shapes: (the route's members if they are others, id, patient);
        `param` has a path below a FHIR base; empty where the route's type is fixed and only the query says more,
        _WRITTEN where what is written does too.
        """
        route = ctx.route
        assert route is not None  # noqa: S101
        bases = own_bases(route, ctx)
        written, patient = ctx.told or ("", "")
        if param in ("", _WRITTEN):
            named = patients_searched(route.metadata.get("resource_type", ""), ctx.query, bases)
            return None, written, named[0] if named else patient
        found: About = about(ctx.method, ctx.params.get(param, ""), ctx.query, bases)
        action = found.action or action_of(ctx.method)
        key = (route.name, found.resource, action)
        kept = self._members.get(key)
        if kept is None or kept[0] is not route:
            if len(self._members) >= _MOST_ROUTES:
                self._members.clear()
            kept = self._members[key] = route, self._of(route, found.resource, action)
        return kept[1], found.id or written, found.patient or patient

    def _of(self, route: Route, resource: str, action: str) -> bytes:
        text = _member("route", route.name) + _member("action", action) + _member("resource_type", resource)
        return text + (b',"phi":true' if route.phi else b"") + _member("purpose", route.metadata.get("purpose", ""))


def _who(principal: Principal) -> tuple[bytes, str, bytes]:
    """A principal's members, the patient that its token names, the purpose that its token names."""
    found: tuple[bytes, str, bytes] | None = principal.grants.get(_FRAGMENT)
    if found is None:
        claims = principal.claims
        who = b"".join(
            _member(name, _text(value))
            for name, value in (
                ("issuer", principal.issuer),
                ("subject", principal.subject),
                ("role", principal.role),
                ("audience", principal.audience),
                ("organisation", claims.get("org")),
                ("client", claims.get("client_id") or claims.get("azp")),
                ("token_id", principal.token_id),
            )
        )
        found = who, _text(claims.get("patient")), _member("purpose", _text(claims.get("purpose")))
        principal.grants[_FRAGMENT] = found
    return found


def _caller_member(name: str, value: str) -> bytes:
    """A member of what a caller sent; the first nine of an event are there if they are empty too."""
    text = _text(value)
    return _member(name, text) if text or name not in _REQUIRED else f',"{name}":""'.encode()


def _member(name: str, text: str) -> bytes:
    """A member of the canonical object; nothing if it is empty, as the canonical form wants it."""
    return b',"%s":%s' % (name.encode(), orjson.dumps(text)) if text else b""


def _text(value: object, most: int = _MAX_TEXT_CHARS) -> str:
    """A caller's value as the trail may hold it: bounded, without NUL, which PostgreSQL refuses, and encodable."""
    if not value or not isinstance(value, str):
        return ""
    return value[:most].replace("\0", "\ufffd").encode("utf-8", "replace").decode()

"""What the trail keeps of an access: who did what, where, under which rule, and how it ended. Pure.

An event exists as canonical bytes: a JSON object without white space, in UTF-8, its members in the order of
AuditEvent's fields, those that equal their default left out. The chain is over these bytes and everything else, the
columns of the database too, is derived from them.
"""

from __future__ import annotations

import msgspec
import orjson

from gateway.context import Principal, RequestContext
from gateway.errors import Origin
from gateway.routing.model import Route

_MAX_TEXT_CHARS = 256
_ACTIONS = {"POST": "C", "GET": "R", "HEAD": "R", "PUT": "U", "PATCH": "U", "DELETE": "D"}
_OTHER_ACTION = "E"
_FRAGMENT = ""
"""The key among a principal's grants, which are by route name, under which its part of an event is kept."""
_MOST_ROUTES = 50_000


class AuditEvent(msgspec.Struct, frozen=True, kw_only=True, gc=False, omit_defaults=True):
    """One event. Denied attempts carry the same detail as allowed ones; a token appears by its jti only.

    Shapes: `kind` is access, or names another thing that happened; `phase` is intent, outcome or completion; `outcome`
    is pending (an intent), allowed, refused (the caller's fault), failed, and for a completion complete or cut;
    `action` is C, R, U, D or E as in FHIR's AuditEvent; `patient` is a pseudonym where pseudonyms are on; `detail` is
    what only events of other kinds have.
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


VERSION = 1
_encode = msgspec.json.Encoder().encode
decode = msgspec.json.Decoder(AuditEvent).decode
"""Canonical bytes -> AuditEvent. Raises: msgspec.MsgspecError."""


def encode(event: AuditEvent) -> bytes:
    """An event as canonical bytes."""
    return _encode(event)


def action_of(method: str) -> str:
    """What a method does to a resource: C, R, U, D, or E (execute)."""
    return _ACTIONS.get(method, _OTHER_ACTION)


class Accesses:
    """Makes the canonical bytes of requests.

    PERF: `python -m loadtests.audit_cost`: what follows from the principal or the route alone is written once and kept
    with it; going through an AuditEvent costs four times as much.
    Holds: a piece of JSON for each route and method.
    """

    def __init__(self, node: str) -> None:
        """Shapes: `node` names this gateway."""
        self._node = _member("node", node[:_MAX_TEXT_CHARS])
        self._routes: dict[tuple[str, str], tuple[Route, str, str]] = {}

    def encode(self, ctx: RequestContext, status: int, at_ms: int, duration_us: int) -> bytes:
        """The event of a request that is answered with `status`; 0 is the intent, before anything was dispatched.

        Raises: nothing that a caller could send brings about.
        """
        error, route, principal, params, method = ctx.error, ctx.route, ctx.principal, ctx.params, ctx.method
        if status:
            phase = "outcome"
            outcome = "allowed" if error is None else "refused" if error.origin is Origin.CLIENT else "failed"
        else:
            phase, outcome = "intent", "pending"
        rule = ctx.rule if error is None or ctx.rule not in ("", "allowed") else error.code
        text = (
            f'{{"v":1,"kind":"access","phase":"{phase}","at_ms":{at_ms},"duration_us":{duration_us},'
            f'"request_id":"{ctx.id}","outcome":"{outcome}","rule":"{rule}","status":{status}'
        )
        text += f',"method":"{method}"' if method in _ACTIONS else _member("method", _text(method))
        who, claimed_patient, purpose = _who(principal) if principal is not None else _NOBODY
        what, resource_param = (
            self._what(route, method) if route is not None else (f',"action":"{action_of(method)}"', "")
        )
        if ctx.trace:
            text += f',"trace":"{ctx.trace}"'
        delivery = ctx.delivery or getattr(error, "delivery", None)
        if delivery:
            text += f',"delivery":"{delivery}"'
        unit = ctx.unit or params.get("unit")
        if unit:
            text += _member("unit", _text(unit))
        if ctx.agent:
            text += _member("agent", _text(ctx.agent))
        patient = params.get("patient")
        text += _member("patient", _text(patient)) if patient else claimed_patient
        if resource_param and resource_param in params:
            text += _member("resource_id", _text(params[resource_param]))
        if ctx.client_address:
            text += _member("client_address", _text(ctx.client_address))
        text += what
        if purpose and ',"purpose":' not in what:
            text += purpose
        version = ctx.snapshot.version if ctx.snapshot is not None else 0
        text += who + self._node + (f',"config_version":{version}}}' if version else "}")
        return text.encode("utf-8", "replace")

    def completion(self, ctx: RequestContext, status: int, whole: bool, at_ms: int, duration_us: int) -> bytes:
        """The event that says how the transfer of an answer ended; the rest stands in the outcome of its request."""
        rule = ctx.error.code if ctx.error is not None else ""
        return (
            f'{{"v":1,"kind":"access","phase":"completion","at_ms":{at_ms},"duration_us":{duration_us},'
            f'"request_id":"{ctx.id}","outcome":"{"complete" if whole else "cut"}","rule":"{rule}","status":{status}'
            f"{self._node}}}"
        ).encode()

    def _what(self, route: Route, method: str) -> tuple[str, str]:
        """A route's part of an event, and the parameter that has the id of the resource."""
        found = self._routes.get((route.name, method))
        if found is None or found[0] is not route:
            if len(self._routes) >= _MOST_ROUTES:
                self._routes.clear()
            about = route.metadata
            text = _member("route", route.name) + _member("action", action_of(method))
            text += _member("resource_type", about.get("resource_type", ""))
            text += (',"phi":true' if route.phi else "") + _member("purpose", about.get("purpose", ""))
            self._routes[route.name, method] = found = (route, text, about.get("resource_param", ""))
        return found[1], found[2]


_NOBODY = ("", "", "")


def _who(principal: Principal) -> tuple[str, str, str]:
    """A principal's part of an event, the patient that its token names, the purpose that its token names."""
    found: tuple[str, str, str] | None = principal.grants.get(_FRAGMENT)
    if found is None:
        claims = principal.claims
        who = "".join(
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
        found = who, _member("patient", _text(claims.get("patient"))), _member("purpose", _text(claims.get("purpose")))
        principal.grants[_FRAGMENT] = found
    return found


def _member(name: str, text: str) -> str:
    """A member of the canonical object; nothing if it is empty, as the canonical form wants it."""
    return f',"{name}":{orjson.dumps(text).decode()}' if text else ""


def _text(value: object) -> str:
    """A caller's value as the trail may hold it: bounded, without NUL, which PostgreSQL refuses, and encodable."""
    if not value or not isinstance(value, str):
        return ""
    if len(value) <= _MAX_TEXT_CHARS and "\0" not in value and (value.isascii() or _is_unicode(value)):
        return value
    return value[:_MAX_TEXT_CHARS].replace("\0", "\ufffd").encode("utf-8", "replace").decode()


def _is_unicode(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True

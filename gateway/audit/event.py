"""An access as the audit trail keeps it: who did what, where, under which rule, and how it ended. Pure."""

from __future__ import annotations

import msgspec

from gateway.context import RequestContext, new_request_id
from gateway.errors import Origin

_MAX_TEXT_CHARS = 256
_ACTIONS = {"POST": "C", "GET": "R", "HEAD": "R", "PUT": "U", "PATCH": "U", "DELETE": "D"}
_OTHER_ACTION = "E"
_NO_CLAIMS: dict[str, object] = {}


class AuditEvent(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One row of the trail. Denied attempts carry the same detail as allowed ones; a token appears by its jti only.

    Shapes: `phase` is intent or outcome; `outcome` is pending (an intent), allowed, refused (the caller's fault) or
    failed; `action` is C, R, U, D or E as in FHIR's AuditEvent; `event_id` is unique, so writing twice is writing once.
    Units: `started_ns` monotonic nanoseconds; the writer adds the wall clock.
    """

    event_id: str
    request_id: str
    phase: str
    outcome: str
    rule: str
    status: int
    method: str
    route: str
    action: str
    phi: bool
    patient: str
    unit: str
    issuer: str
    subject: str
    role: str
    audience: str
    organisation: str
    client: str
    token_id: str
    client_address: str
    purpose: str
    delivery: str
    config_version: int
    started_ns: int


def build_event(ctx: RequestContext, status: int) -> AuditEvent:
    """The event of a request that is answered with `status`; 0 is the intent, before anything was dispatched."""
    route, principal, params = ctx.route, ctx.principal, ctx.params
    claims = principal.claims if principal is not None else _NO_CLAIMS
    return AuditEvent(
        event_id=new_request_id(),
        request_id=ctx.id,
        phase="outcome" if status else "intent",
        outcome=_outcome(ctx, status),
        rule=_rule(ctx),
        status=status,
        method=_text(ctx.method),
        route=route.name if route is not None else "",
        action=_ACTIONS.get(ctx.method, _OTHER_ACTION),
        phi=route is not None and route.phi,
        patient=_text(params.get("patient") or claims.get("patient")),
        unit=_text(ctx.unit or params.get("unit")),
        organisation=_text(claims.get("org")),
        client=_text(claims.get("client_id") or claims.get("azp")),
        client_address=_text(ctx.client_address),
        purpose=route.metadata.get("purpose", "") if route is not None else "",
        delivery=_delivery(ctx),
        config_version=getattr(ctx.snapshot, "version", 0),
        started_ns=ctx.started_ns,
        issuer=_text(principal.issuer) if principal is not None else "",
        subject=_text(principal.subject) if principal is not None else "",
        role=principal.role if principal is not None else "",
        audience=principal.audience if principal is not None else "",
        token_id=_text(principal.token_id) if principal is not None else "",
    )


def _outcome(ctx: RequestContext, status: int) -> str:
    if not status:
        return "pending"
    if ctx.error is None:
        return "allowed"
    return "refused" if ctx.error.origin is Origin.CLIENT else "failed"


def _rule(ctx: RequestContext) -> str:
    if ctx.error is not None and ctx.rule in ("", "allowed"):
        return ctx.error.code
    return ctx.rule


def _delivery(ctx: RequestContext) -> str:
    if ctx.delivery is not None:
        return str(ctx.delivery)
    return str(getattr(ctx.error, "delivery", ""))


def _text(value: object) -> str:
    """A caller's value as the trail may hold it: a bounded string without NUL, which PostgreSQL refuses."""
    if not value or not isinstance(value, str):
        return ""
    if len(value) <= _MAX_TEXT_CHARS and "\0" not in value:
        return value
    return value[:_MAX_TEXT_CHARS].replace("\0", "\ufffd")

"""What a create has made, as its answer says: the audit trail's outcome names it."""

from __future__ import annotations

from typing import Any, Final

import falcon
import orjson

from gateway.audit.event import own_bases, posted
from gateway.audit.interaction import about, created
from gateway.context import RequestContext
from gateway.rbac.fhir import RESOURCE_TYPES
from gateway.routing.model import Route

MOST_BYTES: Final = 65_536
"""Of an answer's body that is looked into."""
_MADE: Final = (200, 201)


def note_created(ctx: RequestContext, resp: falcon.Response) -> None:
    """Remember id and patient of the record that a POST of one type of FHIR has made."""
    route = ctx.route
    if route is None or ctx.error is not None or resp.status_code not in _MADE:
        return
    resource = _type_of(ctx, route)
    if resource not in RESOURCE_TYPES:
        return
    bases = own_bases(route, ctx)
    known = ctx.told or ("", "")
    # NOTE: the path that the caller is told need not name the type; what the unit or upstream said does.
    location = getattr(resp.context, "said", None) or resp.get_header("location") or ""
    key, patient = created(resource, location, _document(resp), bases)
    ctx.told = key, patient or known[1]


def _type_of(ctx: RequestContext, route: Route) -> str:
    """The type of what is made; empty for a search, an operation, a batch, and what names a record already."""
    told = route.metadata
    if "fhir_param" in told:
        found = about(ctx.method, ctx.params.get(told["fhir_param"], ""), "")
        return "" if found.id or found.action else found.resource
    makes = told.get("resource_param") not in ctx.params and posted(route) == "C"
    return told.get("resource_type", "") if makes else ""


def _document(resp: falcon.Response) -> Any:
    """The answer's JSON if all of it is in hand; None for what is streamed, coded or another type."""
    data = resp.data
    kind = (resp.content_type or "").partition(";")[0].strip().lower()
    if data is None or len(data) > MOST_BYTES or resp.get_header("content-encoding") is not None:
        return None
    if kind != "application/json" and not kind.endswith("+json"):
        return None
    try:
        return orjson.loads(data)
    except ValueError:
        return None

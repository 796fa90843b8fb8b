"""Whom a POST's body names that no rule has to read: a search by form, a batch. For the audit trail alone."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Final

import falcon

from gateway.audit.event import MAX_OTHERS, own_bases
from gateway.audit.interaction import BUNDLE, SEARCH, patients_bundled, patients_named
from gateway.auth.form import MEDIA_TYPE as FORM
from gateway.bodies import ReadBody, wait_until
from gateway.context import RequestContext, deadline_of
from gateway.errors import BadJson
from gateway.rbac.document import read_document
from gateway.rbac.fhir import RESOURCE_TYPES
from gateway.routing.model import Route

MOST_BYTES: Final = 65_536
"""Of a body that is looked into; a longer one goes on as it comes and names nobody."""


def may_name(route: Route) -> bool:
    """Can the body of a POST there be a search of FHIR, or a batch?"""
    return "POST" in route.methods and (
        "fhir_param" in route.metadata or route.metadata.get("resource_type") in RESOURCE_TYPES
    )


def note_named(req: falcon.Request, ctx: RequestContext, route: Route) -> None:
    """Remember the patients whom a search by form or a batch names; whatever was read is there to be read again.

    Raises: what the worker's reader raises; no body is refused here.
    Yields to the hub: while a body of at most MOST_BYTES arrives, or as much of one whose length is not known.
    """
    kind = (req.content_type or "").partition(";")[0].strip().lower()
    below = route.metadata.get("fhir_param")
    path = ctx.params.get(below, "") if below is not None else route.metadata.get("resource_type", "")
    resource = path.partition("/")[0]
    is_search = kind == FORM and (below is None or path.rpartition("/")[2] == SEARCH)
    is_batch = below is None and resource == BUNDLE and kind.endswith("json")
    env = req.env
    if not (is_search or is_batch) or "content-type" in env.get("caregate.duplicate", ()):
        return
    coding = env.get("HTTP_CONTENT_ENCODING", "")
    raw = _beginning(req, ctx, route) if coding.strip().lower() in ("", "identity") else None
    if raw is None:
        return
    bases = own_bases(route, ctx)
    found: list[str] = []
    if is_search:
        found = patients_named("POST", path, raw.decode("utf-8", "replace"), bases)
    else:
        with suppress(BadJson):
            found = patients_bundled(read_document(raw, req.content_type or ""), bases)[: MAX_OTHERS + 1]
    ctx.told, ctx.also = ("", found[0] if found else ""), tuple(found[1:])


def _beginning(req: falcon.Request, ctx: RequestContext, route: Route) -> bytes | None:
    """The body if it is short enough to be looked into. Raises: what the worker's reader raises."""
    env: dict[str, Any] = req.env
    body = env["wsgi.input"]
    length = env["caregate.content_length"] if "caregate.content_length" in env else int(env.get("CONTENT_LENGTH") or 0)
    if length is not None and (length > MOST_BYTES or length > route.body_max_bytes):
        return None
    wait_until(body, deadline_of(ctx, route))
    if length is None:
        body.limit(route.body_max_bytes)
    raw: bytes = body.read(MOST_BYTES + 1 if length is None else length)
    if length is None and len(raw) > MOST_BYTES:
        body.give_back(raw)
        return None
    # SEC: what the trail was told of is what is forwarded, byte for byte.
    env["wsgi.input"] = req.stream = ReadBody(raw)
    env["caregate.content_length"] = len(raw)
    return raw

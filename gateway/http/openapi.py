"""`GET /openapi/v1/openapi.json`: what the caller's audience may call."""

from __future__ import annotations

import hashlib

import falcon
import orjson

from gateway.config.snapshot import Snapshot
from gateway.context import RequestContext
from gateway.errors import TokenMissing
from gateway.openapi.document import describe

PATH = "/openapi/v1/openapi.json"


class OpenApiResource:
    """Holds: the documents of the snapshot that was asked for last, made when they are first wanted."""

    def __init__(self) -> None:
        self._of: Snapshot | None = None
        self._made: dict[str, tuple[bytes, str]] = {}

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Raises: TokenMissing. SEC: an audience learns of its own routes only."""
        ctx: RequestContext = req.context.gateway
        principal = ctx.principal
        if principal is None:
            ctx.rule = "token:missing"
            raise TokenMissing()
        body, etag = self._document(ctx.snapshot, principal.audience)
        resp.set_header("ETag", etag)
        resp.set_header("Cache-Control", "private, max-age=60")
        resp.set_header("Vary", "Authorization")
        if req.get_header("If-None-Match") == etag:
            resp.status = falcon.HTTP_304
            return
        resp.content_type = falcon.MEDIA_JSON
        resp.data = body

    def _document(self, snapshot: Snapshot, audience: str) -> tuple[bytes, str]:
        if snapshot is not self._of:
            self._of, self._made = snapshot, {}
        made = self._made.get(audience)
        if made is None:
            service = snapshot.document.token_service
            document = describe(
                snapshot.controllers,
                snapshot.descriptions,
                audience,
                issuer=snapshot.audiences[audience].issuer,
                version=snapshot.version,
                url=service.url if service is not None else "",
            )
            body = orjson.dumps(document)
            made = self._made[audience] = body, f'"{hashlib.sha256(body).hexdigest()[:32]}"'
        return made

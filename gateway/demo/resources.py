"""Controllers of the demo that are Falcon resources, named by entry points of the group `caregate.resources`."""

from __future__ import annotations

import falcon
import orjson

from gateway.context import RequestContext


class Ping:
    """A fixed small answer: the policy path and nothing behind it."""

    def on_request(self, req: falcon.Request, resp: falcon.Response) -> None:
        resp.content_type = falcon.MEDIA_JSON
        resp.data = b'{"ok":true}'


class WhoAmI:
    """What the gateway makes of a token: its audience, role, permissions and end."""

    def on_request(self, req: falcon.Request, resp: falcon.Response) -> None:
        ctx: RequestContext = req.context.gateway
        principal = ctx.principal
        assert principal is not None, "authorization lets nobody through without a principal"  # noqa: S101
        resp.content_type = falcon.MEDIA_JSON
        resp.data = orjson.dumps(
            {
                "subject": principal.subject,
                "audience": principal.audience,
                "role": principal.role,
                "permissions": sorted(principal.permissions),
                "expires_at_s": principal.expires_at_s,
            }
        )

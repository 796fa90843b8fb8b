"""The head of a request to an upstream: what of the caller's fields goes on, and what is ours."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from fastpath.upstream import RequestHeads
from gateway.context import RequestContext
from gateway.routing.onward import LEFT_OUT, LEFT_OUT_BEGINNINGS

_PLAIN_CONNECTION = frozenset({"keep-alive", "close"})
_heads = RequestHeads(LEFT_OUT, LEFT_OUT_BEGINNINGS)


def nominated(connection: str) -> frozenset[str]:
    """Lower-case names that a Connection field declares hop-by-hop."""
    return frozenset(name.strip(" \t").lower() for name in connection.split(",") if name.strip(" \t"))


def request_head(
    environ: dict[str, Any], ctx: RequestContext, target: str, host: str, content_length: int | None
) -> bytes:
    """The head as sent; `content_length` None announces chunks.

    Shapes: field values are latin-1 text without control characters, as the worker admitted them.
    """
    address = ctx.client_address
    scheme = environ["wsgi.url_scheme"]
    own = [
        "host", host, "x-request-id", ctx.id, "x-forwarded-proto", scheme, "forwarded", _forwarded(address, scheme),
    ]  # fmt: skip
    if address:
        own += ("x-forwarded-for", address)
    connection = environ.get("HTTP_CONNECTION")
    extra = None if connection is None or connection in _PLAIN_CONNECTION else nominated(connection)
    return _heads.encode(ctx.method, target, own, environ, extra, -1 if content_length is None else content_length)


@lru_cache(maxsize=4096)
def _forwarded(address: str, scheme: str) -> str:
    """RFC 7239; an IPv6 address is quoted and in brackets."""
    if not address:
        return f"for=unknown;proto={scheme}"
    return f'for="[{address}]";proto={scheme}' if ":" in address else f"for={address};proto={scheme}"

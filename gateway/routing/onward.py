"""What of a caller's request does not go on to a unit or an upstream, whatever the route. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from gateway.errors import BadRequest

HOP_BY_HOP: Final = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
"""Source: RFC 9110 7.6.1."""

WORDS_OF_PROXIES: Final = frozenset(
    {
        "cf-connecting-ip",
        "client-ip",
        "forwarded",
        "forwarded-for",
        "true-client-ip",
        "x-client-ip",
        "x-cluster-client-ip",
        "x-forwarded",
        "x-host",
        "x-real-ip",
        "x-rewrite-url",
    }
)
"""Fields in which servers look for who called, under which host and path, as a proxy in front of them saw it.

SEC: Symfony, IIS and others take the path of `X-Rewrite-URL` for the one that was asked for, which nobody decided upon.
"""

LEFT_OUT: Final = HOP_BY_HOP | WORDS_OF_PROXIES | {
    "authorization",  # SEC: the caller's token is for the gateway; whoever is behind could replay it
    "content-length",
    "expect",
    "host",
    "http2-settings",
    "x-request-id",
}  # fmt: skip
LEFT_OUT_BEGINNINGS: Final = ("x-caregate-", "x-forwarded-", "x-original-")

OVERRIDES: Final = ("HTTP_X_HTTP_METHOD_OVERRIDE", "HTTP_X_HTTP_METHOD", "HTTP_X_METHOD_OVERRIDE")
"""Environ keys of fields in which some servers look for the method."""

_WITHOUT_CONTENT: Final = frozenset({"GET", "HEAD"})


def refuse_override(env: Mapping[str, Any], method: str) -> None:
    """Refuse a request that asks whoever is behind for another method than the one that was decided upon.

    Raises: BadRequest.
    """
    for name in OVERRIDES:
        if name in env and env[name].upper() != method:
            raise BadRequest("The request asks for another method than its own")


def refuse_content(method: str, length: int | None) -> None:
    """Refuse content where it means nothing. Shapes: `length` None is that of a body in chunks.

    SEC: some servers do not read it (CL.0): what was sent as a body is their connection's next request, which nobody
    has decided upon, and its answer goes to whoever asks next.
    Source: RFC 9110, 9.3.1 and 9.3.2. Raises: BadRequest.
    """
    if length != 0 and method in _WITHOUT_CONTENT:
        raise BadRequest(f"{method} takes no content")

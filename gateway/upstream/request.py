"""The head of a request to an upstream: what of the caller's fields goes on, and what is ours."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from gateway.context import RequestContext

HOP_BY_HOP = frozenset(
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
_OURS = frozenset(
    {
        "authorization",  # SEC: the caller's token is for the gateway; an upstream could replay it
        "content-length",
        "expect",
        "forwarded",
        "host",
        "http2-settings",
        "x-forwarded-for",
        "x-forwarded-host",
        "x-forwarded-proto",
        "x-real-ip",
        "x-request-id",
    }
)
_DROPPED_KEYS = frozenset("HTTP_" + name.upper().replace("-", "_") for name in HOP_BY_HOP | _OURS)
_CAREGATE_KEY = "HTTP_X_CAREGATE_"


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
    lines = [
        f"{ctx.method} {target} HTTP/1.1",
        f"host: {host}",
        f"x-request-id: {ctx.id}",
        f"x-forwarded-proto: {environ['wsgi.url_scheme']}",
        f"forwarded: {_forwarded(address, environ['wsgi.url_scheme'])}",
    ]
    if address:
        lines.append(f"x-forwarded-for: {address}")
    if content_length is None:
        lines.append("transfer-encoding: chunked")
    elif content_length or ctx.method in ("POST", "PUT", "PATCH"):
        lines.append(f"content-length: {content_length}")
    content_type = environ.get("CONTENT_TYPE")
    if content_type:
        lines.append(f"content-type: {content_type}")
    _pass_on(environ, lines)
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def _pass_on(environ: dict[str, Any], lines: list[str]) -> None:
    connection = environ.get("HTTP_CONNECTION")
    extra = nominated(connection) if connection else frozenset()
    for key, value in environ.items():
        if key[:5] != "HTTP_" or key in _DROPPED_KEYS or key.startswith(_CAREGATE_KEY):
            continue
        name = _field_name(key)
        if name not in extra:
            lines.append(f"{name}: {value}")


@lru_cache(maxsize=1024)
def _field_name(key: str) -> str:
    return key[5:].replace("_", "-").lower()


def _forwarded(address: str, scheme: str) -> str:
    """RFC 7239; an IPv6 address is quoted and in brackets."""
    if not address:
        return f"for=unknown;proto={scheme}"
    return f'for="[{address}]";proto={scheme}' if ":" in address else f"for={address};proto={scheme}"

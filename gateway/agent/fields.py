"""Header fields between the gateway and the local service: which of them travel."""

from __future__ import annotations

from gateway.relay.frames import Fields

CONTEXT = "x-caregate-context"
_HOP_BY_HOP = frozenset(
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
        "content-length",
    }
)
PLACES = frozenset({"location", "content-location"})
_NOT_FORWARDED = frozenset({"host", "expect", "authorization"})
_STEERING = frozenset({"x-http-method-override", "x-http-method", "x-method-override", "x-rewrite-url"})
"""Fields in which some servers look for another method or path than the one that the allowlist let pass."""
_STEERING_BEGINNINGS = ("x-caregate-", "x-forwarded-", "x-original-")


def without_hop_by_hop(fields: Fields) -> Fields:
    """Source: RFC 9110 7.6.1; the length goes too, since framing is each connection's own."""
    named = {token.strip().lower() for name, value in fields if name == "connection" for token in value.split(",")}
    return [(name, value) for name, value in fields if name not in _HOP_BY_HOP and name not in named]


def forwarded(fields: Fields) -> Fields:
    """What the local service gets of a request's fields; names and values were checked when the frame was decoded.

    SEC: the gateway removed the same fields; the unit does not depend on it.
    """
    kept = without_hop_by_hop(fields)
    return [(name, value) for name, value in kept if name not in _NOT_FORWARDED and _ours_or_harmless(name)]


def _ours_or_harmless(name: str) -> bool:
    # SEC: `x_caregate_context` becomes the same WSGI key as the real field, so both spellings are looked at.
    meant = name.replace("_", "-")
    return name == CONTEXT or (meant not in _STEERING and not meant.startswith(_STEERING_BEGINNINGS))

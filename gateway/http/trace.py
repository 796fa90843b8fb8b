"""The trace that a caller's request belongs to."""

from __future__ import annotations

import re

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(?:-|\Z)")


def trace_id(traceparent: str) -> str:
    """The trace id of a `traceparent` field; nothing if it is not one.

    Source: W3C Trace Context, 3.2.
    """
    found = _TRACEPARENT.match(traceparent)
    return found[1] if found is not None and found[1] != "0" * 32 and traceparent[:2] != "ff" else ""

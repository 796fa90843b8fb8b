"""W3C trace context: what a caller's `traceparent` says, and ours. Pure."""

from __future__ import annotations

import re
from typing import NamedTuple

_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?\Z")
_SAMPLED = 1


class Parent(NamedTuple):
    """Shapes: ids in lower-case hex."""

    trace_id: str
    span_id: str
    sampled: bool


def parse_traceparent(text: str) -> Parent | None:
    """What a `traceparent` field says; None for what is not one.

    Source: W3C Trace Context, 3.2: a version we do not know may be longer, ours may not.
    """
    found = _TRACEPARENT.match(text)
    if found is None:
        return None
    version, trace_id, span_id, flags, more = found.groups()
    if version == "ff" or (version == "00" and more) or trace_id == "0" * 32 or span_id == "0" * 16:
        return None
    return Parent(trace_id, span_id, bool(int(flags, 16) & _SAMPLED))


def traceparent(trace_id: str, span_id: str) -> str:
    """The field of a sampled trace."""
    return f"00-{trace_id}-{span_id}-01"


def is_in_ratio(trace_id: str, threshold: int) -> bool:
    """Is a trace among the chosen? Everybody who uses the same ratio chooses the same ones.

    Shapes: `threshold` is the ratio times 2 to the 64.
    Source: OpenTelemetry, TraceIdRatioBased: the last eight bytes decide.
    """
    return int(trace_id[16:], 16) < threshold

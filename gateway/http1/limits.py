"""Limits of the caller's side of a connection."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.settings import Settings

SECOND_NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Limits:
    """Units: `*_ns` nanoseconds, `*_bytes` bytes."""

    head_ns: int = 10 * SECOND_NS
    """From the first byte of a head to its last, however the bytes come."""
    body_ns: int = 30 * SECOND_NS
    """Time spent waiting for a body, beside what its size earns at `body_rate_bytes`."""
    body_rate_bytes: int = 32_768
    """A body that comes at least so fast, in a second, is never too slow."""
    keepalive_ns: int = 75 * SECOND_NS
    """Between requests."""
    write_ns: int = 30 * SECOND_NS
    """For the client to take some of an answer."""
    linger_ns: int = 2 * SECOND_NS
    """For the client to read an answer given before its request was read whole."""
    idle_linger_ns: int = SECOND_NS // 2
    """For a request to arrive that was under way when its idle connection ended."""
    linger_bytes: int = 8_388_608
    drain_bytes: int = 65_536
    """An unread body no longer than this is read and dropped, so that the connection can be kept."""
    max_target_bytes: int = 8_192
    max_head_bytes: int = 32_768
    max_fields: int = 100

    @classmethod
    def from_settings(cls, settings: Settings) -> Limits:
        return cls(
            head_ns=settings.head_timeout_s * SECOND_NS,
            body_ns=settings.body_timeout_s * SECOND_NS,
            keepalive_ns=settings.keepalive_s * SECOND_NS,
            write_ns=settings.write_timeout_s * SECOND_NS,
            max_target_bytes=settings.max_target_bytes,
            max_head_bytes=settings.max_head_bytes,
            max_fields=settings.max_header_fields,
        )

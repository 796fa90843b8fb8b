"""The protocol's state machine: h2's, as gunicorn sets it up, with the body's announced length left to the stream."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gunicorn.http2.h2conn import server_connection_class
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.settings import SettingCodes, Settings

FIELD_OVERHEAD_BYTES = 32
"""What a field counts beside its name and value (RFC 9113, 6.5.2)."""
_UNLIMITED = 1 << 31


@dataclass(frozen=True, slots=True)
class Offer:
    """What this end announces in its SETTINGS."""

    streams: int = 100
    window_bytes: int = 65_535
    frame_bytes: int = 16_384
    fields_bytes: int = 65_536


class _Protocol(server_connection_class()):  # type: ignore[misc]
    """NOTE: h2 ends the whole connection where content-length is malformed or differs from the body; here it is one
    request that is refused, with the same answer as in HTTP/1.1 (see gateway.http2.stream)."""

    def _begin_new_stream(self, *args: Any, **kwargs: Any) -> Any:
        stream = super()._begin_new_stream(*args, **kwargs)
        stream._initialize_content_length = _ignore
        return stream


class _Announced(Settings):
    """NOTE: h2 ends the connection at a stream too many, even before the client can know how many those are; here only
    that stream is refused (see gateway.http2.connection)."""

    @property  # type: ignore[misc]
    def max_concurrent_streams(self) -> int:
        return _UNLIMITED


def _ignore(headers: object) -> None:
    """In place of h2's reading of content-length."""


def new_protocol(offer: Offer) -> H2Connection:
    """A server's state machine that has its SETTINGS ready to send. Fields are checked by gateway.http2.request."""
    config = H2Configuration(
        client_side=False,
        header_encoding=False,
        validate_inbound_headers=False,
        normalize_inbound_headers=False,
        validate_outbound_headers=False,
    )
    protocol: H2Connection = _Protocol(config=config)
    protocol.local_settings = _Announced(
        client=False,
        initial_values={
            SettingCodes.MAX_CONCURRENT_STREAMS: offer.streams,
            SettingCodes.INITIAL_WINDOW_SIZE: offer.window_bytes,
            SettingCodes.MAX_FRAME_SIZE: offer.frame_bytes,
            SettingCodes.MAX_HEADER_LIST_SIZE: offer.fields_bytes,
        },
    )
    protocol.max_inbound_frame_size = offer.frame_bytes
    protocol.decoder.max_header_list_size = offer.fields_bytes
    protocol.initiate_connection()
    return protocol

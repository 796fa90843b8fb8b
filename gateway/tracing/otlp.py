"""Spans as OTLP's protobuf: the few fields that we fill, written out. Pure.

Source: opentelemetry-proto 1.x, trace/v1/trace.proto; tests decode it with the distribution of that name.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

SERVER, CLIENT = 2, 3
_ERROR = 2
_FIXED64 = struct.Struct("<Q")
_FIXED32 = struct.Struct("<I")
_SAMPLED = 1


@dataclass(frozen=True, slots=True)
class Span:
    """One finished span. Shapes: ids as bytes, `parent_id` empty of a root; `kind` SERVER or CLIENT.
    Units: `*_ns` nanoseconds since 1970.
    """

    trace_id: bytes
    span_id: bytes
    parent_id: bytes
    name: str
    kind: int
    start_ns: int
    end_ns: int
    attributes: Mapping[str, str | int]
    failed: bool


def encode_request(resource: Mapping[str, str | int], scope: str, version: str, spans: Iterable[Span]) -> bytes:
    """An ExportTraceServiceRequest."""
    scope_spans = _field(1, _text(1, scope) + _text(2, version)) + b"".join(_field(2, _span(span)) for span in spans)
    return _field(1, _field(1, _attributes(1, resource)) + _field(2, scope_spans))


def _span(span: Span) -> bytes:
    return b"".join((
        _field(1, span.trace_id),
        _field(2, span.span_id),
        _field(4, span.parent_id) if span.parent_id else b"",
        _text(5, span.name),
        _number(6, span.kind),
        b"\x39" + _FIXED64.pack(span.start_ns),  # 7, fixed64
        b"\x41" + _FIXED64.pack(span.end_ns),  # 8, fixed64
        _attributes(9, span.attributes),
        _field(15, _number(3, _ERROR)) if span.failed else b"",
        b"\x85\x01" + _FIXED32.pack(_SAMPLED),  # 16, fixed32
    ))  # fmt: skip


def _attributes(number: int, attributes: Mapping[str, str | int]) -> bytes:
    return b"".join(_field(number, _text(1, name) + _field(2, _value(value))) for name, value in attributes.items())


def _value(value: str | int) -> bytes:
    return _number(3, value) if isinstance(value, int) else _text(1, value)


def _text(number: int, text: str) -> bytes:
    return _field(number, text.encode("utf-8", "replace"))


def _field(number: int, content: bytes) -> bytes:
    """Length-delimited."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value & 0xFFFF_FFFF_FFFF_FFFF)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)

"""Counters, gauges and histograms in memory shared by the workers of a machine; any worker renders them all.

Each worker writes its own region (one writer, so no locks); a scrape adds up all regions. A region outlives its worker,
so a counter never runs backwards when a worker dies: the next worker of the slot goes on with it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from fastpath.cells import Cells

Kind = Literal["counter", "gauge", "maximum", "minimum", "histogram"]
"""How several workers' values make one: the sum; of maximum the largest, of minimum the smallest that is set."""
LATENCY_BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


@dataclass(frozen=True, slots=True)
class Declaration:
    """One metric: its labels are bounded sets (route names, codes, unit ids), never anything of a person."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = LATENCY_BUCKETS_S


DECLARATIONS: tuple[Declaration, ...] = (
    Declaration("caregate_requests", "counter", "Requests answered.", ("route", "method", "status")),
    Declaration("caregate_request_duration_seconds", "histogram", "From first byte to answer.", ("route",)),
    Declaration("caregate_refusals", "counter", "Requests the gateway answered with an error.", ("code", "origin")),
    Declaration("caregate_token_refusals", "counter", "Bearer tokens refused.", ("reason",)),
    Declaration("caregate_limit_refusals", "counter", "Requests over a rate limit.", ("limit",)),
    Declaration("caregate_shadow_refusals", "counter", "What rules that only watch would refuse.", ("route", "rule")),
    Declaration("caregate_requests_in_flight", "gauge", "Requests being worked on."),
    Declaration("caregate_units", "maximum", "Units that are enabled."),
    Declaration("caregate_units_away", "maximum", "Enabled units without a connection."),
    Declaration("caregate_unit_key_oldest_age_seconds", "maximum", "Age of the oldest live key of a unit."),
    Declaration("caregate_relay_buffer_ratio", "maximum", "Relay buffers in use, of the fullest worker."),
    Declaration(
        "caregate_relay_streams_dropped", "counter", "Relayed requests that failed because buffers were full of theirs."
    ),
    Declaration("caregate_relay_units_connected", "gauge", "Unit connections held."),
    Declaration(
        "caregate_relay_unit_events",
        "counter",
        "Unit connections opened, lost and handed over.",
        ("event",),
    ),
    Declaration("caregate_unit_enrolments", "counter", "Keys that units asked to register.", ("outcome",)),
    Declaration("caregate_unit_timeline", "counter", "Timeline entries by what became of them.", ("outcome",)),
    Declaration("caregate_unit_revision", "maximum", "Revision of the registry of units in force."),
    Declaration("caregate_auth_requests", "counter", "Requests to the token service.", ("endpoint", "outcome")),
    Declaration("caregate_token_revision", "maximum", "Revision of the revoked tokens in force."),
    Declaration(
        "caregate_identity_provider_fetches", "counter", "Fetches of identity providers' keys.", ("provider", "outcome")
    ),
    Declaration("caregate_break_glass", "counter", "Emergency access by what became of it.", ("event",)),
    Declaration("caregate_upstream_requests", "counter", "Calls to cloud services.", ("upstream", "outcome")),
    Declaration("caregate_upstream_breaker_open", "gauge", "Workers whose breaker is open.", ("upstream",)),
    Declaration("caregate_audit_events", "counter", "Audit events by what became of them.", ("outcome",)),
    Declaration("caregate_audit_backlog", "gauge", "Audit events that wait for the database."),
    Declaration("caregate_audit_lag_seconds", "maximum", "How long audit events have waited for the database."),
    Declaration("caregate_audit_spool_ratio", "maximum", "Audit spool in use, of the fullest worker."),
    Declaration(
        "caregate_audit_unfinished_intents",
        "maximum",
        "Requests of the last hour that were begun and never ended, as the trail has it.",
    ),
    Declaration("caregate_log_lines_lost", "counter", "Lines of the access log that nobody read in time."),
    Declaration("caregate_trace_spans", "counter", "Spans by what became of them.", ("outcome",)),
    Declaration("caregate_config_version", "maximum", "Version of the configuration in force."),
    Declaration("caregate_config_version_lowest", "minimum", "The same of the worker that is furthest behind."),
    Declaration("caregate_config_reloads", "counter", "Configuration reloads.", ("outcome",)),
    Declaration("caregate_workers", "gauge", "Workers that serve."),
    Declaration("caregate_metric_series_dropped", "gauge", "Updates of series that found no room."),
)
_BY_NAME = {declaration.name: declaration for declaration in DECLARATIONS}
_HEADER = struct.Struct("=Q")
_ENTRY = struct.Struct("=II")
SERIES_BYTES = 192
"""Room reckoned for one series: key, padding and values; a histogram takes about two."""

Key = tuple[str, tuple[str, ...]]


class Metrics:
    """The metrics of one worker, in its region of the shared segment."""

    def __init__(self, region: memoryview, segment: list[memoryview] | None = None) -> None:
        """Shapes: `region` is this worker's bytes, `segment` all regions of the machine (itself included)."""
        self._region = region
        self._cells = Cells(region)
        self.add = self._cells.add
        """Add to a counter or gauge by its cell."""
        self._segment = segment if segment is not None else [region]
        self._index: dict[Key, int] = {key: offset // 8 for key, offset, _ in _entries(region)}
        self.dropped = 0
        """Updates of series that found no room."""
        clear_gauges(region)

    def inc(self, name: str, labels: tuple[str, ...] = (), value: float = 1.0) -> None:
        """Add to a counter or gauge."""
        self.add(self.cell(name, labels), value)

    def set(self, name: str, labels: tuple[str, ...], value: float) -> None:
        """Set a gauge."""
        self._cells.put(self.cell(name, labels), value)

    def observe(self, name: str, labels: tuple[str, ...], value: float) -> None:
        """Count a value into a histogram."""
        self._cells.observe(self.cell(name, labels), _BY_NAME[name].buckets, value)

    def cell(self, name: str, labels: tuple[str, ...] = ()) -> int:
        """Where a series is, for `add`; -1 if there is no room for it."""
        index = self._index.get((name, labels))
        return index if index is not None else self._add(name, labels)

    @property
    def cells(self) -> Cells:
        """The region as compiled code counts into it."""
        return self._cells

    def _add(self, name: str, labels: tuple[str, ...]) -> int:
        declaration = _BY_NAME[name]
        if len(labels) != len(declaration.labels):
            raise ValueError(f"{name} takes labels {declaration.labels}")
        count = len(declaration.buckets) + 2 if declaration.kind == "histogram" else 1
        key = "\0".join((name, *labels)).encode()
        padded = -(-(_ENTRY.size + len(key)) // 8) * 8 - _ENTRY.size
        (used,) = _HEADER.unpack_from(self._region)
        start = used or _HEADER.size
        end = start + _ENTRY.size + padded + 8 * count
        if end > len(self._region):
            self.dropped += 1
            self._index[(name, labels)] = -1
            return -1
        _ENTRY.pack_into(self._region, start, len(key), count)
        at = start + _ENTRY.size
        self._region[at : at + len(key)] = key
        _HEADER.pack_into(self._region, 0, end)
        index = (at + padded) // 8
        self._index[(name, labels)] = index
        return index

    def totals(self, name: str) -> dict[tuple[str, ...], float]:
        """A counter's or gauge's values in all workers together, by its labels."""
        merged = _merged(self._segment)
        return {labels: values[0] for (found, labels), values in merged.items() if found == name}

    def render(self) -> bytes:
        """All workers' metrics in the Prometheus text format."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Merged(self._segment))
        return generate_latest(registry)


def clear_gauges(region: memoryview) -> None:
    """Zero the gauges of a region: what a dead worker held, it holds no more."""
    values = region.cast("d")
    for (name, _), offset, _count in _entries(region):
        if _BY_NAME[name].kind not in ("counter", "histogram"):
            values[offset // 8] = 0.0


def _entries(region: memoryview) -> Iterator[tuple[Key, int, int]]:
    """Each series of a region: key, byte offset of its first value, number of values."""
    (used,) = _HEADER.unpack_from(region)
    at = _HEADER.size
    while at < used:
        length, count = _ENTRY.unpack_from(region, at)
        start = at + _ENTRY.size
        name, *labels = bytes(region[start : start + length]).decode().split("\0")
        offset = at + -(-(_ENTRY.size + length) // 8) * 8
        if name in _BY_NAME:
            yield (name, tuple(labels)), offset, count
        at = offset + 8 * count


class _Merged(Collector):
    """Adds up the regions, one family a declaration."""

    def __init__(self, segment: list[memoryview]) -> None:
        self._segment = segment

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily]:
        merged = _merged(self._segment)
        for declaration in DECLARATIONS:
            yield _family(declaration, {k[1]: v for k, v in merged.items() if k[0] == declaration.name})


def _merged(segment: list[memoryview]) -> dict[Key, list[float]]:
    """Every series of all regions."""
    merged: dict[Key, list[float]] = {}
    for region in segment:
        values = region.cast("d")
        for key, offset, count in _entries(region):
            found = [values[offset // 8 + i] for i in range(count)]
            merged[key] = _merge(_BY_NAME[key[0]].kind, merged.get(key), found)
    return merged


def _merge(kind: Kind, one: list[float] | None, other: list[float]) -> list[float]:
    if one is None:
        return other
    if kind == "maximum":
        return [max(one[0], other[0])]
    if kind == "minimum":
        return [min(one[0], other[0]) or max(one[0], other[0])]
    return [a + b for a, b in zip(one, other, strict=True)]


def _family(
    declaration: Declaration, series: dict[tuple[str, ...], list[float]]
) -> CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily:
    name, text, labels = declaration.name, declaration.help, declaration.labels
    if declaration.kind == "histogram":
        histogram = HistogramMetricFamily(name, text, labels=labels)
        for key, values in series.items():
            histogram.add_metric(key, _cumulative(declaration.buckets, values[1:]), values[0])
        return histogram
    family = (CounterMetricFamily if declaration.kind == "counter" else GaugeMetricFamily)(name, text, labels=labels)
    for key, values in series.items():
        family.add_metric(key, values[0])
    return family


def _cumulative(bounds: tuple[float, ...], counts: list[float]) -> list[tuple[str, float]]:
    out, total = [], 0.0
    for bound, count in zip((*map(str, bounds), "+Inf"), counts, strict=True):
        total += count
        out.append((bound, total))
    return out

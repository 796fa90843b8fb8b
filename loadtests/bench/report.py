"""Figures and bars: which ratio each row must reach, as a table and as a picture."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from xml.sax.saxutils import escape


@dataclass(frozen=True, slots=True)
class Figure:
    """Medians of one server in one row.

    Units: microseconds a request, requests a second, milliseconds; `beside_us` the CPU of agents and PostgreSQL,
    `load_cores` that of the load generator.
    """

    row: str
    server: str
    cpu_us: float
    rps: float
    p50_ms: float
    p99_ms: float
    beside_us: float = 0.0
    load_cores: float = 0.0


@dataclass(frozen=True, slots=True)
class Bar:
    """A ratio of ours to a peer's in the same run, and its limit; where the bar says `-`, the difference."""

    bar: str
    ratio: float
    limit: float
    met: bool


LIMITS: tuple[tuple[str, str, str, str, float], ...] = (
    # row, ours, peer, figure, limit (at most; for rps: at least)
    ("policy_rs256", "caregate", "envoy-cached", "cpu_us", 1.0),
    ("policy_rs256", "caregate", "haproxy", "cpu_us", 0.8),
    ("policy_rs256", "caregate", "fastify-cached", "cpu_us", 0.6),
    ("policy_rs256", "caregate", "stock-gunicorn", "cpu_us", 0.25),
    ("policy_rs256", "caregate-logged", "caregate", "cpu_us", 1.35),
    # With everything on, whatever the peers leave out.
    ("policy_rs256", "caregate-logged", "envoy-cached", "cpu_us", 1.0),
    ("upstream_small", "caregate-logged", "envoy-cached", "cpu_us", 1.0),
    ("relay_small", "caregate-logged", "envoy-cached", "cpu_us", 1.0),
    ("policy_rs256_unique", "caregate", "envoy-cached", "cpu_us", 0.6),
    ("upstream_small", "caregate", "envoy-cached", "cpu_us", 1.0),
    ("upstream_small", "caregate", "fastify-cached", "cpu_us", 0.55),
    ("upstream_1m", "caregate", "envoy-cached", "cpu_us", 2.0),
    ("relay_small", "caregate", "envoy-cached", "cpu_us", 1.0),
    ("relay_small", "caregate", "node-ws", "cpu_us", 0.8),
    ("portal_read", "caregate", "fastify-pg", "cpu_us", 0.75),
    ("scale", "caregate-10k-100k", "caregate", "rps", 0.9),
    ("workers_2", "caregate-2", "caregate", "rps", 1.7),
)

LARGE_MIB = {"relay_64m_down": 64, "relay_64m_up": 16}
"""Rows of large bodies: how many MiB one request moves."""

OVERHEADS: tuple[tuple[str, str, str, str, float], ...] = (
    # row, ours, what it is compared with, figure, at most so much more, in the figure's unit
    ("relay_open", "caregate", "direct", "p50_ms", 1.0),
    ("relay_open", "caregate", "direct", "p99_ms", 8.0),
    ("relay_open", "caregate-hop", "caregate", "p50_ms", 0.5),
    ("audit_durable", "caregate-durable", "caregate", "cpu_us", 8.0),
    ("audit_durable", "caregate-durable", "caregate", "p99_ms", 3.0),
    ("audit_durable", "caregate-relay-durable", "caregate-relay", "p99_ms", 6.0),
    ("audit_open", "caregate-durable", "caregate", "p99_ms", 3.0),
    ("audit_open", "caregate-relay-durable", "caregate-relay", "p99_ms", 6.0),
)


def judge(figures: list[Figure]) -> list[Bar]:
    """The bars whose two figures were measured in this run."""
    found = {(f.row, f.server): f for f in figures}
    bars = []
    for row, ours, peer, name, limit in LIMITS:
        one, other = found.get((row, ours)), found.get((row, peer))
        if one is None or other is None:
            continue
        ratio = getattr(one, name) / max(getattr(other, name), 1e-9)
        met = ratio >= limit if name == "rps" else ratio <= limit
        bars.append(Bar(f"{row}: {ours} / {peer} ({name})", round(ratio, 3), limit, met))
    for row, ours, peer, name, limit in OVERHEADS:
        one, other = found.get((row, ours)), found.get((row, peer))
        if one is not None and other is not None:
            more = round(getattr(one, name) - getattr(other, name), 3)
            bars.append(Bar(f"{row}: {ours} - {peer} ({name})", more, limit, more <= limit))
    return bars


def as_document(figures: list[Figure], bars: list[Bar]) -> list[dict[str, object]]:
    """Figures and bars as one flat list of JSON objects."""
    keys = ("row", "server", "cpu_us", "rps", "p50_ms", "p99_ms")
    return [*({key: getattr(figure, key) for key in keys} for figure in figures), *(asdict(bar) for bar in bars)]


def remarks(figures: list[Figure]) -> list[str]:
    """What the figures do not say by themselves."""
    lines = []
    for figure in figures:
        if figure.row in LARGE_MIB:
            size = LARGE_MIB[figure.row]
            lines.append(
                f"{figure.row}: {figure.server} moved {figure.rps * size:.0f} MiB/s "
                f"at {figure.cpu_us / size:.0f} us of CPU a MiB (helpers {figure.beside_us / size:.0f})"
            )
        if figure.row == "workers_2" and figure.server == "caregate-2":
            used = figure.rps * figure.cpu_us / 1e6
            lines.append(
                f"workers_2: two workers used {used:.2f} cores and the load generator {figure.load_cores:.2f}, "
                f"of {os.cpu_count()}: the second worker had what was left"
            )
    return lines


def table(figures: list[Figure], bars: list[Bar]) -> str:
    """Both as text."""
    lines = [f"{'row':<22}{'server':<24}{'CPU us':>9}{'req/s':>10}{'p50 ms':>9}{'p99 ms':>9}{'beside us':>11}"]
    lines += [
        f"{f.row:<22}{f.server:<24}{f.cpu_us:>9.1f}{f.rps:>10.0f}{f.p50_ms:>9.2f}{f.p99_ms:>9.2f}{f.beside_us:>11.1f}"
        for f in figures
    ]
    if bars:
        lines += ["", f"{'bar':<58}{'ratio':>8}{'limit':>8}"]
    lines += [f"{b.bar:<58}{b.ratio:>8.2f}{b.limit:>8.2f}  {'met' if b.met else 'NOT MET'}" for b in bars]
    return "\n".join(lines)


_HEIGHT, _LEFT, _WIDTH = 18, 260, 520


def plot(figures: list[Figure]) -> str:
    """CPU per request as bars, one group a row; an SVG document."""
    largest = {f.row: max(g.cpu_us for g in figures if g.row == f.row) for f in figures}
    parts, y, row = [], 30, ""
    for figure in figures:
        if figure.row != row:
            row = figure.row
            y += 26
            parts.append(f'<text x="8" y="{y - 6}" font-weight="bold">{escape(row)}, CPU \u00b5s a request</text>')
        width = figure.cpu_us / max(largest[row], 1e-9) * _WIDTH
        colour = "#1b6e53" if figure.server.startswith("caregate") else "#9aa5b1"
        parts.append(
            f'<text x="{_LEFT - 8}" y="{y + 13}" text-anchor="end">{escape(figure.server)}</text>'
            f'<rect x="{_LEFT}" y="{y + 2}" width="{width:.0f}" height="{_HEIGHT - 4}" fill="{colour}"/>'
            f'<text x="{_LEFT + width + 6:.0f}" y="{y + 13}">{figure.cpu_us:.1f}</text>'
        )
        y += _HEIGHT
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_LEFT + _WIDTH + 80}" height="{y + 20}" '
        'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>'
        + "".join(parts)
        + "</svg>\n"
    )

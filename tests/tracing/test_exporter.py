"""Spans travel in batches; a collector that is slow, away or full costs spans and nothing else."""

from __future__ import annotations

from collections import Counter

import gevent
import pytest

from gateway.tracing.exporter import Exporter
from gateway.tracing.otlp import SERVER, Span


def span(n=1):
    return Span(n.to_bytes(16), n.to_bytes(8), b"", f"span {n}", SERVER, 1, 2, {"n": n}, False)


@pytest.fixture
def make():
    made = []

    def make(url, **options):
        counts = Counter()
        exporter = Exporter(
            url, {"service.name": "caregate"}, "1", count=lambda what, number: counts.update({what: number}),
            **{"queue": 1_000, "interval_s": 0.02, **options},
        )  # fmt: skip
        exporter.counts = counts
        made.append(exporter)
        return exporter

    yield make
    for exporter in made:
        exporter.stop(0.1)


def until(check, limit_s=20.0):
    with gevent.Timeout(limit_s):
        while not check():
            gevent.sleep(0.01)


def test_every_span_arrives_once_in_batches_over_one_connection(make, collector, attributes):
    exporter = make(collector.url)
    exporter.start()
    for n in range(1, 301):
        exporter.add(span(n))
    until(lambda: exporter.counts["exported"] == 300)
    assert [attributes(one)["n"] for one in collector.spans()] == list(range(1, 301))
    assert len(collector.requests) == 3
    assert len(collector.connections) == 1


def test_what_finds_no_room_is_dropped_and_counted(make, collector):
    exporter = make(collector.url, queue=10)
    for n in range(1, 26):
        exporter.add(span(n))
    assert exporter.counts == {"dropped": 15}
    exporter.stop()
    assert (exporter.counts["exported"], len(collector.spans())) == (10, 10)


def test_a_collector_that_refuses_loses_a_batch_and_is_tried_again(make, collector, monkeypatch, caplog):
    monkeypatch.setattr("gateway.tracing.exporter._REST_S", 0.02)
    collector.answers = [503]
    exporter = make(collector.url)
    exporter.start()
    exporter.add(span(1))
    until(lambda: exporter.counts["failed"] == 1)
    exporter.add(span(2))
    until(lambda: exporter.counts["exported"] == 1)
    assert [one.name for one in collector.spans()] == ["span 2"]
    assert [r.getMessage() for r in caplog.records] == [
        "the trace collector does not take spans: status 503", "the trace collector takes spans again",
    ]  # fmt: skip


def test_a_connection_that_the_collector_closed_is_opened_again(make, collector):
    collector.hangs_up = True
    exporter = make(collector.url)
    exporter.start()
    for n in (1, 2, 3):
        exporter.add(span(n))
        until(lambda n=n: exporter.counts["exported"] == n)
    assert exporter.counts["failed"] == 0


def test_without_a_collector_nothing_waits(make, collector):
    collector.server.shutdown()
    collector.server.server_close()
    exporter = make(collector.url, queue=50)
    exporter.start()
    for n in range(1, 201):
        exporter.add(span(n))
    until(lambda: exporter.counts["failed"] == 50)
    assert exporter.counts["dropped"] == 150
    with gevent.Timeout(5):
        exporter.stop()

"""Metrics in shared memory: what several workers counted is one answer, and a dead worker's counts stay."""

import mmap

import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway.metrics import Metrics, clear_gauges


def regions(count: int, size: int = 8192) -> list[memoryview]:
    return [memoryview(mmap.mmap(-1, size)) for _ in range(count)]


def samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (s.name, tuple(sorted(s.labels.items()))): s.value
        for family in text_string_to_metric_families(metrics.render().decode())
        for s in family.samples
    }


def test_workers_add_up() -> None:
    segment = regions(2)
    one, other = (Metrics(region, segment) for region in segment)
    one.inc("caregate_limit_refusals", ("a",))
    other.inc("caregate_limit_refusals", ("a",), 2)
    other.inc("caregate_limit_refusals", ('q"\\n',))
    found = samples(one)
    assert found["caregate_limit_refusals_total", (("limit", "a"),)] == 3
    assert found["caregate_limit_refusals_total", (("limit", 'q"\\n'),)] == 1


def test_counters_survive_a_worker_and_gauges_do_not() -> None:
    segment = regions(1)
    first = Metrics(segment[0], segment)
    first.inc("caregate_limit_refusals", ("a",), 5)
    first.inc("caregate_requests_in_flight", (), 3)
    clear_gauges(segment[0])
    second = Metrics(segment[0], segment)
    second.inc("caregate_limit_refusals", ("a",))
    found = samples(second)
    assert found["caregate_limit_refusals_total", (("limit", "a"),)] == 6
    assert found["caregate_requests_in_flight", ()] == 0


def test_histogram_is_cumulative_when_rendered() -> None:
    metrics = Metrics(regions(1)[0])
    for value in (0.0004, 0.0005, 0.2, 99.0):
        metrics.observe("caregate_request_duration_seconds", ("r",), value)
    found = samples(metrics)
    name = "caregate_request_duration_seconds"
    assert found[name + "_bucket", (("le", "0.0005"), ("route", "r"))] == 2
    assert found[name + "_bucket", (("le", "0.25"), ("route", "r"))] == 3
    assert found[name + "_bucket", (("le", "+Inf"), ("route", "r"))] == 4
    assert found[name + "_count", (("route", "r"),)] == 4
    assert found[name + "_sum", (("route", "r"),)] == pytest.approx(99.2009)


def test_version_is_the_highest_of_all() -> None:
    segment = regions(2)
    one, other = (Metrics(region, segment) for region in segment)
    one.set("caregate_config_version", (), 3)
    other.set("caregate_config_version", (), 4)
    assert samples(one)["caregate_config_version", ()] == 4


def test_a_full_region_drops_and_counts() -> None:
    metrics = Metrics(regions(1, 4096)[0])
    for i in range(200):
        metrics.inc("caregate_limit_refusals", (f"limit-{i}",))
    assert metrics.dropped > 0
    assert samples(metrics)["caregate_limit_refusals_total", (("limit", "limit-0"),)] == 1


def test_wrong_labels_are_a_bug() -> None:
    with pytest.raises(ValueError, match="takes labels"):
        Metrics(regions(1)[0]).inc("caregate_limit_refusals", ())


@pytest.mark.parametrize(
    ("values", "lowest"),
    [
        pytest.param((7, 8), 7, id="one behind"),
        pytest.param((8, 8), 8, id="all the same"),
        pytest.param((0, 8), 8, id="a worker that is gone counts no more"),
    ],
)
def test_the_lowest_of_what_is_set(values: tuple[int, ...], lowest: int) -> None:
    segment = regions(len(values))
    workers = [Metrics(region, segment) for region in segment]
    for worker, value in zip(workers, values, strict=True):
        worker.set("caregate_config_version_lowest", (), value)
    assert samples(workers[0])["caregate_config_version_lowest", ()] == lowest

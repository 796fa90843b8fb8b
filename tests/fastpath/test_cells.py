"""Numbers in a shared buffer, against a plain model."""

from __future__ import annotations

import bisect

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastpath.cells import Cells

BOUNDS = (0.5, 1.0, 2.5)


@given(st.lists(st.tuples(st.integers(-1, 7), st.floats(-1e6, 1e6)), max_size=50))
def test_additions(steps) -> None:
    memory = bytearray(64)
    cells, model = Cells(memory), [0.0] * 8
    for cell, value in steps:
        cells.add(cell, value)
        if cell >= 0:
            model[cell] += value
    assert memoryview(memory).cast("d").tolist() == model


@given(st.lists(st.floats(0, 4) | st.sampled_from(BOUNDS), max_size=50))
def test_histogram(values) -> None:
    memory = bytearray(48)
    cells, counts = Cells(memory), [0.0] * 4
    for value in values:
        cells.observe(1, BOUNDS, value)
        counts[bisect.bisect_left(BOUNDS, value)] += 1
    found = memoryview(memory).cast("d").tolist()
    assert found[2:] == counts
    assert found[1] == pytest.approx(sum(values))


@pytest.mark.parametrize(
    "step",
    [lambda c: c.add(8), lambda c: c.put(8, 1.0), lambda c: c.observe(4, BOUNDS, 9.0)],
    ids=["add", "put", "observe"],
)
def test_beyond_the_buffer(step) -> None:
    memory = bytearray(64)
    with pytest.raises(IndexError):
        step(Cells(memory))
    assert not any(memory)


@pytest.mark.parametrize("step", [lambda c: c.add(-1), lambda c: c.put(-1, 1.0), lambda c: c.observe(-1, BOUNDS, 1.0)])
def test_no_room(step) -> None:
    memory = bytearray(64)
    step(Cells(memory))
    assert not any(memory)


def test_unaligned() -> None:
    with pytest.raises(ValueError, match="aligned"):
        Cells(memoryview(bytearray(65))[1:])

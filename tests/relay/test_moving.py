"""The pace at which the units of a leaving worker are asked to dial again."""

from __future__ import annotations

import pytest

from gateway.relay.moving import MOVING, Moves


@pytest.mark.parametrize(
    ("elapsed_s", "asked", "moving", "due"),
    [
        pytest.param(0.0, 0, 0, 1, id="the first at once"),
        pytest.param(0.1, 1, 0, 80, id="by the rate"),
        pytest.param(0.1, 81, 80, 0, id="no more than the rate"),
        pytest.param(5.0, 701, 250, 6, id="siblings are slow: as many as have left"),
        pytest.param(5.0, 701, MOVING + 50, 0, id="siblings take nobody in"),
        pytest.param(10.0, 600, MOVING, 1401 - 600, id="siblings take nobody in, and the grace goes by"),
        pytest.param(10.0, 1500, MOVING, 0, id="ahead of the grace"),
    ],
)
def test_as_many_as_siblings_take_in_within_the_grace(elapsed_s, asked, moving, due) -> None:
    moves = Moves(800, connections=1_400, grace_s=20.0)
    moves.asked(asked)
    assert moves.due(elapsed_s, moving) == due


def test_a_short_grace_beats_the_rate() -> None:
    assert Moves(800, connections=4_000, grace_s=2.0).due(1.0, MOVING) == 4_001

"""Which worker may leave, as the workers' shared memory tells."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from gateway import shared

OURS = 2
"""Where our worker's life is; at 0 is the arbiter's generation."""


@pytest.fixture
def lives(monkeypatch: pytest.MonkeyPatch) -> Any:
    def are(life: Any) -> Any:
        made = SimpleNamespace(life=life, regions=[None] * (len(life) - 1), generation=1)
        monkeypatch.setattr(shared, "_made", made)
        monkeypatch.setattr(shared, "slot", OURS - 1)
        return life

    return are


@pytest.mark.parametrize(
    ("life", "others", "may"),
    [
        pytest.param([1, 1, 1, 1], 2, True, id="all are here"),
        pytest.param([1, 1, 1, 0], 2, False, id="one leaves or starts"),
        pytest.param([2, 2, 1, 2, 0], 2, True, id="newer ones count"),
        pytest.param([1, 0, 1, 0], 0, True, id="alone"),
    ],
)
def test_one_leaves_while_the_others_accept(lives: Any, life: list[int], others: int, may: bool) -> None:
    before = lives(life)[OURS]
    assert shared.takes_leave(others) is may
    assert life[OURS] == (0 if may else before)


class AnotherLeaves(list[int]):
    """When ours is marked, another has been meanwhile."""

    def __setitem__(self, at: Any, value: Any) -> None:
        super().__setitem__(at, value)
        if not value:
            super().__setitem__(1, 0)


def test_of_two_at_once_none_leaves(lives: Any) -> None:
    life = lives(AnotherLeaves([1, 1, 1, 1]))
    assert not shared.takes_leave(2)
    assert life[OURS] == 1


def test_one_that_drains_is_no_other(lives: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever made it leave: a signal, or a turn that never came."""
    life = lives([1, 1, 1, 1])
    monkeypatch.setattr(shared, "slot", 0)
    shared.is_leaving()
    monkeypatch.setattr(shared, "slot", OURS - 1)
    assert not shared.takes_leave(2)
    assert life == [1, 0, 1, 1]


def test_without_shared_memory_anybody_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "_made", None)
    assert shared.takes_leave(3)

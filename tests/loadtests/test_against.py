"""The comparison with another commit: what it prints, and what it does not run for. Nothing here judges a figure."""

from __future__ import annotations

import pytest

from loadtests.bench import against
from loadtests.bench.report import Figure


def test_the_answer_is_the_ratio_of_here_to_there():
    figures = [Figure("policy_rs256", name, cpu_us, 1.0, 1.0, 1.0) for name, cpu_us in
               ((against.HERE, 21.0), (against.THERE, 20.0))]  # fmt: skip
    assert against.compared("abc", figures) == {
        "row": "policy_rs256", "against": "abc", "cpu_us": {"here": 21.0, "there": 20.0}, "ratio": 1.05,
    }  # fmt: skip


@pytest.mark.parametrize("arguments", [[], ["a", "b"], ["no-such-commit"], ["-x"]], ids=str)
def test_without_a_commit_nothing_is_run(arguments, capsys, monkeypatch):
    monkeypatch.setattr(against, "debian_binary", lambda *names: None)
    monkeypatch.setattr(against, "_measured", lambda *_: pytest.fail("measured"))
    assert against.main(arguments) == 2
    assert capsys.readouterr().err

"""Streamed bodies let go of what they hold exactly once, read or not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gateway.bodies import Body
from gateway.errors import UpstreamBroken


def pieces(log: list[str], fail: bool = False) -> Iterator[bytes]:
    try:
        yield b"one"
        if fail:
            raise UpstreamBroken()
        yield b"two"
    finally:
        log.append("ended")


@pytest.mark.parametrize(
    ("read", "ended"),
    [
        pytest.param(0, [], id="never read"),
        pytest.param(1, ["ended"], id="read in part"),
        pytest.param(9, ["ended"], id="read to the end"),
    ],
)
def test_released_once(read: int, ended: list[str]) -> None:
    log: list[str] = []
    released: list[int] = []
    body = Body(pieces(log), lambda: released.append(1))
    for _, _piece in zip(range(read), body, strict=False):
        pass
    body.close()
    body.close()
    assert released == [1]
    assert log == ended


def test_failure_is_remembered_and_goes_on() -> None:
    body = Body(pieces([], fail=True), lambda: None)
    with pytest.raises(UpstreamBroken):
        list(body)
    assert isinstance(body.failure, UpstreamBroken)

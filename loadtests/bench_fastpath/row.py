"""What is measured: a kernel's work, its peer's, and how the two may relate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


def _nothing() -> None:
    pass


@dataclass(frozen=True, slots=True)
class Work:
    """`run` does `operations` operations; `prepare` runs before each, untimed."""

    run: Callable[[], object]
    operations: int
    prepare: Callable[[], object] = _nothing


@dataclass(frozen=True, slots=True)
class Row:
    """A kernel and its peer, run in turns.

    Units: `limit_ratio` ours to the peer's, at most; `limit_ns` nanoseconds per operation, shown but not judged,
    because no two machines agree on it.
    """

    kernel: str
    ours: Work
    peer_name: str = ""
    peer: Work | None = None
    limit_ratio: float | None = None
    limit_ns: float | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """Medians over the rounds; `met` is None where there is no ratio to keep.

    Units: `ns`, `peer_ns` nanoseconds per operation; `ratio` is the median of the rounds' own ratios.
    """

    kernel: str
    ns: float
    peer_name: str
    peer_ns: float | None
    ratio: float | None
    limit_ratio: float | None
    limit_ns: float | None
    met: bool | None

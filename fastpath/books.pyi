from collections.abc import Callable
from typing import final

from fastpath.cells import Cells
from gateway.context import RequestContext

@final
class Lines:
    @property
    def size(self) -> int: ...
    def __init__(self, worker: int, second: Callable[[int], str]) -> None: ...
    def add(
        self, ctx: RequestContext, status: int, took_us: int, now_s: float, level: bytes = b"info", sample: int = 1
    ) -> None: ...
    def take(self) -> bytes: ...

@final
class Books:
    def __init__(
        self,
        cells: Cells,
        in_flight: int,
        cells_of: Callable[[str, str, int], tuple[int, int]],
        known: frozenset[str],
        bounds: tuple[float, ...],
    ) -> None: ...
    def close(self, route: str, method: str, status: int, took_ns: int) -> None: ...

from collections.abc import Callable
from typing import Any, final

from fastpath.cells import Cells
from gateway.context import RequestContext

@final
class Lines:
    @property
    def size(self) -> int: ...
    least: int
    def __init__(
        self,
        worker: int,
        second: Callable[[int], str],
        *,
        clock_s: Callable[[], float] | None = None,
        usual: int = 0,
        least: int = 0,
        most: int = ...,
        full: Callable[[], None] | None = None,
    ) -> None: ...
    def write(self, ctx: RequestContext, status: int, took_ns: int) -> None: ...
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
        *,
        log: Any = None,
        since_ns: Callable[[], int] | None = None,
    ) -> None: ...
    def settle(self, ctx: RequestContext, status: object, audit: Any) -> bool: ...
    def close(self, route: str, method: str, status: int, took_ns: int) -> None: ...

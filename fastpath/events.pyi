from collections.abc import Callable, Collection, Sequence
from typing import Any

from typing_extensions import Buffer

from fastpath.chain import Chain

class AccessText:
    def __init__(
        self,
        member: Callable[[str, str], bytes],
        who: Callable[[Any], tuple[bytes, str, bytes]],
        what: Callable[[Any, str], tuple[bytes, str | None, str, str | None, bool]],
        about: Callable[[Any, str], tuple[bytes | None, str, str]],
        node: bytes,
        actions: dict[str, str],
        name_of: Callable[[str], str] | None = None,
        names: dict[str, str] | None = None,
        *,
        clock_ns: Callable[[], int] | None = None,
        since_ns: Callable[[], int] | None = None,
    ) -> None: ...
    def encode(self, ctx: Any, status: int, at_ms: int, took_us: int) -> bytes: ...
    def keep(self, ctx: Any, status: int, chain: Chain) -> int: ...
    def complete(self, ctx: Any, status: int, whole: bool, chain: Chain) -> int: ...

class Rows:
    def __init__(
        self,
        members: Sequence[tuple[str, type]],
        unwritten: Collection[str],
        required: int,
        second: Callable[[int], bytes],
    ) -> None: ...
    def row(self, chain: bytes, sequence: int, digest: bytes, canonical: bytes) -> bytes | None: ...
    def stretch(
        self,
        chain: bytes,
        records: Buffer,
        at: int,
        end: int,
        after: int,
        until: int,
        *,
        most: int,
        most_bytes: int,
        other: Callable[[int, bytes, bytes], bytes],
    ) -> tuple[bytes, int, int, int]: ...
    def follow(
        self, chain: bytes, lines: list[bytes], at: int, sequence: int, digest: bytes, most: int
    ) -> tuple[int, bytes]: ...

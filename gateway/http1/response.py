"""Bodies from files, as WSGI servers offer them; the response itself is fastpath.responses.Response."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class FileWrapper:
    """`wsgi.file_wrapper`: iterates over a file in blocks."""

    def __init__(self, file: Any, block_bytes: int = 65_536) -> None:
        self._read = file.read
        self._block_bytes = max(block_bytes, 65_536)
        self.close: Callable[[], None] = getattr(file, "close", lambda: None)

    def __iter__(self) -> FileWrapper:
        return self

    def __next__(self) -> bytes:
        block: bytes = self._read(self._block_bytes)
        if not block:
            raise StopIteration
        return block

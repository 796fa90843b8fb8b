from collections.abc import Iterable
from mmap import mmap

class Chain:
    sequence: int
    hash: bytes
    _map: mmap | bytearray
    _size: int
    _at: int
    def append(self, canonical: bytes) -> int: ...

    # What the subclass does.
    def _roll(self, need_bytes: int) -> None: ...

def sha256(parts: Iterable[bytes], *, here: bool = True) -> bytes: ...

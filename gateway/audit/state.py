"""What a chain's owner tells its successor and whoever signs checkpoints: how far it is shipped, and durable."""

from __future__ import annotations

import mmap
import os
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

_STATE_BYTES = 4096
_NUMBER = struct.Struct(">Q")
_HEAD_AT = 64
_HEAD = struct.Struct(">Q32sQ")


class Head(NamedTuple):
    """How far a chain is durable. Units: `at_ms` milliseconds since 1970, when that was found."""

    sequence: int
    hash: bytes
    at_ms: int


class State:
    """What a chain's owner tells its successor and whoever signs checkpoints: a page that outlives the process."""

    def __init__(self, path: Path, *, writable: bool = True) -> None:
        """Raises: OSError, ValueError."""
        flags = os.O_RDWR | os.O_CREAT if writable else os.O_RDONLY
        fd = os.open(path, flags | os.O_CLOEXEC, 0o600)
        try:
            if writable and os.fstat(fd).st_size < _STATE_BYTES:
                os.pwrite(fd, bytes(_STATE_BYTES), 0)
            self._map = mmap.mmap(fd, _STATE_BYTES, prot=mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0))
        finally:
            os.close(fd)

    @property
    def shipped(self) -> int:
        """Every record up to this sequence is in the database."""
        return int(_NUMBER.unpack_from(self._map)[0])

    @shipped.setter
    def shipped(self, sequence: int) -> None:
        _NUMBER.pack_into(self._map, 0, sequence)

    @property
    def owners(self) -> int:
        """How many processes have written to the chain, one after the other."""
        return int(_NUMBER.unpack_from(self._map, 8)[0])

    @owners.setter
    def owners(self, number: int) -> None:
        _NUMBER.pack_into(self._map, 8, number)

    @property
    def settled(self) -> bool:
        """Is the head the end of the chain? Nobody has written to it since that was said."""
        return int(_NUMBER.unpack_from(self._map, 16)[0]) == self.owners + 1

    def settle(self) -> None:
        _NUMBER.pack_into(self._map, 16, self.owners + 1)

    @property
    def suspect(self) -> bool:
        """Did a sync fail, or never end? What it should have written is taken for written by the kernel, and is not."""
        return self._map[24] != 0

    @suspect.setter
    def suspect(self, failed: bool) -> None:
        self._map[24] = failed

    @property
    def head(self) -> Head | None:
        """How far the chain is known to be durable; None if nothing was said, or is just being said."""
        text = self._map[_HEAD_AT : _HEAD_AT + _HEAD.size + 4]
        if zlib.crc32(text[:-4]) != int.from_bytes(text[-4:], "big") or not any(text):
            return None
        return Head(*_HEAD.unpack(text[:-4]))

    @head.setter
    def head(self, head: Head) -> None:
        text = _HEAD.pack(*head)
        self._map[_HEAD_AT : _HEAD_AT + _HEAD.size + 4] = text + zlib.crc32(text).to_bytes(4, "big")

    def close(self) -> None:
        self._map.close()

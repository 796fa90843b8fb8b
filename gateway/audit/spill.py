"""Events that the database could not take yet, in a file each worker has for itself; bounded, append only.

A worker holds a lock on its file while it lives, so what a dead one left behind is told from what a living one uses.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

_PREFIX = "audit-spill-"
_SUFFIX = ".ndjson"


class Spill:
    """One file of events, one JSON object a line; shipped from its beginning, emptied when all of it is shipped."""

    def __init__(self, path: Path, descriptor: int, max_bytes: int) -> None:
        """Use `open_own` or `adopt_orphans`."""
        self.path = path
        self._descriptor = descriptor
        self._max_bytes = max_bytes
        self._size = os.fstat(descriptor).st_size
        self._shipped = 0
        self._end_torn_line()

    def __enter__(self) -> Spill:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    @property
    def pending_bytes(self) -> int:
        """What is not shipped yet."""
        return self._size - self._shipped

    def append(self, rows: Sequence[bytes]) -> int:
        """Write rows at the end; how many there was room for on the disk and within the bound."""
        room = self._max_bytes - self._size
        fitting = 0
        for row in rows:
            room -= len(row) + 1
            if room < 0:
                break
            fitting += 1
        text = b"".join(row + b"\n" for row in rows[:fitting])
        try:
            written = os.pwrite(self._descriptor, text, self._size)
        except OSError:
            written = 0
        if written < len(text):
            # A full disk: keep the whole lines.
            whole = text[:written].rfind(b"\n") + 1
            os.ftruncate(self._descriptor, self._size + whole)
            written, fitting = whole, text[:whole].count(b"\n")
        self._size += written
        return fitting

    def next_rows(self, count: int, window_bytes: int = 1 << 20) -> tuple[list[bytes], int]:
        """Up to `count` rows that are not shipped yet, and the position behind them for `shipped`."""
        text = os.pread(self._descriptor, min(window_bytes, self.pending_bytes), self._shipped)
        lines = text[: text.rfind(b"\n") + 1].split(b"\n")[:-1][:count]
        if not lines:
            # A line longer than any event is none.
            return [], self._shipped + len(text)
        return lines, self._shipped + sum(map(len, lines)) + len(lines)

    def shipped(self, position: int) -> None:
        """Everything before the position is in the database."""
        self._shipped = position
        if self._shipped >= self._size:
            os.ftruncate(self._descriptor, 0)
            self._size = self._shipped = 0

    def close(self) -> None:
        """Let go of the file; an empty one is removed."""
        if self._descriptor < 0:
            return
        if not self.pending_bytes:
            self.path.unlink(missing_ok=True)
        os.close(self._descriptor)
        self._descriptor = -1

    def _end_torn_line(self) -> None:
        """A killed writer may leave half a row; the next must not be glued to it."""
        if self._size and os.pread(self._descriptor, 1, self._size - 1) != b"\n":
            os.pwrite(self._descriptor, b"\n", self._size)
            self._size += 1


def open_own(folder: Path, max_bytes: int) -> Spill:
    """This process's spill file, made if it is not there.

    Raises: OSError.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / f"{_PREFIX}{os.getpid()}{_SUFFIX}"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return Spill(path, descriptor, max_bytes)


def adopt_orphans(folder: Path) -> list[Spill]:
    """Spill files whose workers are gone, each locked for us; close them when they are shipped."""
    found = []
    for path in sorted(folder.glob(f"{_PREFIX}*{_SUFFIX}")):
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            continue
        if not path.exists() or path.stat().st_ino != os.fstat(descriptor).st_ino:
            # Another worker shipped and removed it between our look and our lock.
            os.close(descriptor)
            continue
        found.append(Spill(path, descriptor, 0))
    return found

"""Another place for checkpoints: a folder that gets the same lines, and what it missed while it was away."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import gevent
from gevent.event import Event

from gateway.audit.lines import append, end_at_line

log = logging.getLogger("caregate.audit")

_COMPARED_BYTES = 65_536


class Copy:
    """Brings one place up to date whenever there is something new. A place that hangs holds up nobody but itself.

    Holds: a greenlet, and a thread of the hub's pool while it writes.
    """

    def __init__(self, place: Path, count: Callable[[str, int], None]) -> None:
        """Shapes: `count` hears of checkpoints that could not be copied: uncopied."""
        self._place = place
        self._count = count
        self._news = Event()
        self._idle = Event()
        self._idle.set()
        self._wanted: tuple[Path, str, dict[str, int]] | None = None
        self._greenlet = gevent.spawn(self._run)

    def update(self, folder: Path, source: str, sizes: Mapping[str, int]) -> None:
        """There is something new. Shapes: `sizes` of the folder's files, as far as they are durable, by name."""
        self._wanted = folder, source, dict(sizes)
        self._idle.clear()
        self._news.set()

    def stop(self, timeout_s: float) -> None:
        """Copy what can be copied in time, then end.

        Yields to the hub: yes.
        """
        self._idle.wait(timeout_s)
        self._greenlet.kill()

    def _run(self) -> None:
        while True:
            self._news.wait()
            self._news.clear()
            wanted, self._wanted = self._wanted, None
            if wanted is not None:
                self._attempt(*wanted)
            if self._wanted is None:
                self._idle.set()

    def _attempt(self, folder: Path, source: str, sizes: Mapping[str, int]) -> None:
        added = gevent.get_hub().threadpool.apply(_tried, (folder, self._place, source, sizes))
        if isinstance(added, OSError):
            log.error("a checkpoint could not be written to %s: %s", self._place, added.strerror)
            self._count("uncopied", 1)
        elif added > 1:
            log.warning("%d checkpoints were copied to %s, which did not have them", added, self._place)


def mirror(folder: Path, place: Path, source: str, sizes: Mapping[str, int]) -> int:
    """Add to the files of a place, which must be there, the lines that ours have more. Returns how many those were.

    Shapes: see Copy.update; a file there has the name of ours with `source` before it.
    Raises: OSError.
    """
    return sum(_bring(folder / name, size, place / f"{source}-{name}") for name, size in sorted(sizes.items()))


def _tried(folder: Path, place: Path, source: str, sizes: Mapping[str, int]) -> int | OSError:
    """NOTE: what a thread of the pool raises is printed as if nobody had expected it."""
    try:
        return mirror(folder, place, source, sizes)
    except OSError as error:
        return error


def _bring(original: Path, size: int, target: Path) -> int:
    have = target.stat().st_size if target.exists() else 0
    if have == size:
        return 0
    if have > size or (have and not _begins_alike(original, target, have)):
        end_at_line(target)
        missing = _missing(original, size, target)
    else:
        missing = _read(original, have, size)
    if missing:
        append(target, missing)
    return missing.count(b"\n")


def _begins_alike(original: Path, target: Path, size: int) -> bool:
    """Do the first `size` bytes end the same in both? Lines are numbered, so the rest is the same, too."""
    start = max(0, size - _COMPARED_BYTES)
    return _read(original, start, size) == _read(target, start, size)


def _missing(original: Path, size: int, target: Path) -> bytes:
    """The lines that are in the first `size` bytes of the one and not in the other."""
    known = set(target.read_bytes().splitlines(keepends=True))
    return b"".join(line for line in _read(original, 0, size).splitlines(keepends=True) if line not in known)


def _read(path: Path, start: int, end: int) -> bytes:
    with path.open("rb") as file:
        file.seek(start)
        return file.read(end - start) if end > start else b""

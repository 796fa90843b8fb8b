"""A worker's audit spool: the records of one chain in files of a fixed size, written through shared memory mappings.

What is copied into a mapping survives the process, killed or not, without a system call; a file is filled with zeros
before it is first used, so that a full disk is found out before a record needs the room. `sync` makes it survive the
machine.

    <folder>/<chain>/00000001.spool     segments: header, then records, then zeros or what was there before
    <folder>/<chain>/blank              a segment that nobody needs any more, to be used again
    <folder>/<chain>/state              what is shipped, how far the chain is synced
    record: length u32 | sequence u64 | hash 32 bytes | event            big-endian; the hash is the checksum too
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from gevent.monkey import get_original

from fastpath.chain import Chain
from gateway.audit.chain import genesis, link
from gateway.audit.columns import rows
from gateway.audit.state import Head, State

HEADER = struct.Struct(">8s16sQ32s")
"""Of a segment: magic, chain, sequence of its first record, hash of the record before that."""
RECORD = struct.Struct(">IQ32s")
MAGIC = b"CGAUDIT1"
SUFFIX = ".spool"
_BLANK = "blank"
MAX_RECORD_BYTES = 65_536
_ZEROS = memoryview(bytes(65_536))
_ZEROS_AT_ONCE = 512 * len(_ZEROS)


class SpoolFull(Exception):
    """There is no room for a record: the disk is full, or the spool has reached its bound."""


class Record(NamedTuple):
    """One event in its chain."""

    sequence: int
    hash: bytes
    canonical: bytes


class Segment:
    """One file of the spool; open and mapped but while it rests. Records that begin behind `end` are not its own."""

    __slots__ = ("end", "fd", "first", "map", "path", "previous", "size", "synced_by")

    def __init__(self, path: Path) -> None:
        """Raises: OSError."""
        self.path = path
        self.fd = -1
        self.synced_by: dict[int, int] = {}
        self.wake()
        self.end = self.size
        _, _, self.first, self.previous = HEADER.unpack_from(self.map)

    def wake(self) -> None:
        """Open and map it again.

        Raises: OSError.
        """
        if self.fd < 0:
            self.fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
            self.size = os.fstat(self.fd).st_size
            self.map = mmap.mmap(self.fd, self.size)

    def rest(self) -> None:
        """Let go of descriptor and mapping until somebody needs them."""
        if self.fd >= 0:
            self.map.close()
            for descriptor in (self.fd, *self.synced_by.values()):
                os.close(descriptor)
            self.fd = -1
            self.synced_by.clear()

    def to_sync(self, turn: int) -> int:
        """A descriptor for syncs of that turn alone.

        NOTE: Linux tells each opening of a file of an error once; of two syncs at the same time over one opening, the
        other would hear that all is well.
        Raises: OSError.
        """
        if turn not in self.synced_by:
            self.synced_by[turn] = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        return self.synced_by[turn]

    def records(self, at: int = HEADER.size, end: int = 0) -> Iterator[tuple[Record, int]]:
        """Whole records from a position on, each with the position behind it; their hashes are not looked at."""
        end = end or self.end
        while at + RECORD.size <= end:
            length, sequence, digest = RECORD.unpack_from(self.map, at)
            stop = at + RECORD.size + length
            if not length or stop > end:
                return
            yield Record(sequence, digest, self.map[at + RECORD.size : stop]), stop
            at = stop

    def valid_until(self) -> tuple[Record | None, int]:
        """The last record that follows from its predecessor, and the position behind it."""
        last, at, head, sequence = None, HEADER.size, self.previous, self.first
        for record, stop in self.records():
            if record.sequence != sequence or link(head, sequence, record.canonical) != record.hash:
                break
            last, at, head, sequence = record, stop, record.hash, sequence + 1
        return last, at


class Spool(Chain):
    """The spool of one chain; its owner holds a lock on the folder as long as it lives.

    `append` is the kernel's: the record survives this process from its return on. If there is no room it raises
    SpoolFull, and nothing is added.

    Holds: at most `max_bytes` on the disk. All methods belong to one thread, except `make_room` and `sync_files`.
    """

    def __init__(self, folder: Path, lock: int, segment_bytes: int, max_bytes: int) -> None:
        """Use `open_spool`, or `adopt`, after which nothing can be added."""
        self.folder = folder
        self.chain = folder.name
        self.damaged = ""
        """What was wrong with the chain that this one found, if anything."""
        self._lock = lock
        self._segment_bytes = segment_bytes
        self._most = max(2, max_bytes // segment_bytes) if segment_bytes else 0
        self._segments: list[Segment] = []
        self._spare: Path | None = None
        self._blank: Path | None = None
        # NOTE: between the hub's thread and one of its pool, so not gevent's.
        self._making = get_original("_thread", "allocate_lock")()
        self._unsynced: list[Segment] = []
        self._syncing: dict[int, list[Segment]] = {}
        self._durable = 0
        self._reading = (0, HEADER.size)
        self._read = (-1, 0, HEADER.size)
        self.rolled: Callable[[], object] = lambda: None
        """Called when the next file has been begun: room is wanted from then on."""
        self.sequence = 0
        self.hash = genesis(self.chain)
        self._map = bytearray()
        self._size = self._at = 0
        self.state = State(folder / "state")
        self._recover()

    # --- writing

    @property
    def left_bytes(self) -> int:
        """Room that needs no further file, the spare one included."""
        return self._size - self._at + (self._segment_bytes if self._spare is not None else 0)

    @property
    def wants_room(self) -> bool:
        """Should `make_room` be called?"""
        return self._spare is None

    def make_room(self) -> None:
        """Make the file that is used next; may run in another thread.

        Raises: SpoolFull.
        """
        with self._making:
            self._made_spare()

    def _made_spare(self) -> Path:
        if self._spare is not None:
            return self._spare
        blank = self._blank
        if blank is None and len(self._segments) + 1 > self._most:
            raise SpoolFull("the spool has reached its bound")
        number = int(self._segments[-1].path.stem) + 1 if self._segments else 1
        path = self.folder / f"{number:08}{SUFFIX}"
        try:
            if blank is None:
                _fill(path, self._segment_bytes)
            else:
                _use_again(blank, path)
        except OSError as error:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
                if blank is not None:
                    blank.unlink(missing_ok=True)
            raise SpoolFull(error.strerror) from error
        finally:
            if blank is not None:
                # NOTE: until here it has its name, and nothing else that is put away may take it.
                self._blank = None
        self._spare = path
        return path

    def _roll(self, need_bytes: int) -> None:
        """Go on in the next file."""
        if need_bytes > MAX_RECORD_BYTES:
            raise SpoolFull("an event of more than 64 KiB")
        # NOTE: another thread may be at the very file that is needed: it is awaited, as making it here would be.
        with self._making:
            try:
                segment = self._begun(self._made_spare())
            except OSError as error:
                raise SpoolFull(error.strerror) from error
            self._spare = None
            if self._segments:
                self._segments[-1].end = self._at
            self._use(segment, HEADER.size)
        self.rolled()

    def _begun(self, path: Path) -> Segment:
        """A file of zeros with the header of what comes next."""
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            os.pwrite(fd, HEADER.pack(MAGIC, self.chain.encode(), self.sequence + 1, self.hash), 0)
        finally:
            os.close(fd)
        return Segment(path)

    def _use(self, segment: Segment, at: int) -> None:
        self._segments.append(segment)
        self._unsynced.append(segment)
        self._map, self._size, self._at = segment.map, segment.size, at

    # --- durability

    def files_to_sync(self, now_ms: int, turn: int = 0) -> tuple[Head, list[int]]:
        """What is durable once `sync_files` has returned, and what to give it.

        Shapes: `turn` is a number of its own for each that runs at the same time; `synced` or `not_synced` ends it.
        Raises: OSError.
        """
        descriptors = [segment.to_sync(turn) for segment in self._unsynced]
        self._syncing[turn] = self._unsynced.copy()
        return Head(self.sequence, self.hash, now_ms), descriptors

    def synced(self, head: Head, turn: int = 0) -> None:
        """`sync_files` has returned."""
        # NOTE: the one in use when it began may have got records since, and be in use no more: it is synced again.
        for segment in self._syncing[turn][:-1]:
            if segment in self._unsynced:
                self._unsynced.remove(segment)
        self.not_synced(turn)
        if head.sequence >= self._durable:
            # One that began earlier may end later.
            self._durable = head.sequence
            self.state.head = head
        self.state.suspect = False

    def not_synced(self, turn: int = 0) -> None:
        """`sync_files` is over and proves nothing."""
        for segment in self._syncing.pop(turn, ()):
            if segment not in self._unsynced and not self._is_syncing(segment):
                segment.rest()

    def _is_syncing(self, segment: Segment) -> bool:
        return any(segment in segments for segments in self._syncing.values())

    def sync_failed(self) -> None:
        """A failed sync may have forgotten what it could not write: all that is not known to be synced is rewritten."""
        self.state.suspect = True
        for segment in self._unsynced:
            with contextlib.suppress(OSError):
                os.pwrite(segment.fd, segment.map[:], 0)

    # --- reading

    def unshipped(self, until: int, most: int = 500, most_bytes: int = 1 << 19) -> list[Record]:
        """The oldest records that are not shipped, up to sequence `until`."""
        found: list[Record] = []
        shipped = self.state.shipped
        index, at = self._reading
        while index < len(self._segments):
            segment = self._segments[index]
            segment.wake()
            end = self._at if index == len(self._segments) - 1 else segment.end
            for record, stop in segment.records(at, end):
                if record[0] > until or len(found) >= most or most_bytes <= 0:
                    self._read = (record[0] - 1, index, at)
                    return found
                if record[0] > shipped:
                    found.append(record)
                    most_bytes -= len(record[2])
                at = stop
            self._read = (found[-1].sequence if found else shipped, index, at)
            index, at = index + 1, HEADER.size
        return found

    def rows(self, until: int, most: int, at_once: int = 250, most_bytes: int = 1 << 20) -> Iterator[tuple[bytes, int]]:
        """The oldest records that are not shipped, up to sequence `until`, as rows of the table, a stretch at a time.

        Shapes: (rows, the last one's sequence); not more than `most` in all, `at_once` in a stretch.
        Raises: ValueError if there is one whose bytes are no event; `unshipped` has them as they are.
        """
        last = self.state.shipped
        index, at = self._reading
        while most > 0 and index < len(self._segments):
            segment = self._segments[index]
            segment.wake()
            end = self._at if index == len(self._segments) - 1 else segment.end
            found, count, last, at = rows(
                self.chain, segment.map, at, end, last, until, most=min(most, at_once), most_bytes=most_bytes
            )
            if count:
                most -= count
                self._read = (last, index, at)
                yield found, last
            else:
                index, at = index + 1, HEADER.size

    def shipped(self, sequence: int) -> None:
        """Everything up to `sequence` is in the database; files that nobody needs are removed, one is used again."""
        self.state.shipped = sequence
        read, index, at = self._read
        if read == sequence:
            # What was read last need not be read again.
            self._reading = (index, at)
        while self._is_done(sequence):
            self._put_away(self._segments.pop(0))
            index, at = self._reading
            self._reading = (index - 1, at) if index else (0, HEADER.size)
            self._read = (-1, 0, HEADER.size)

    def _put_away(self, done: Segment) -> None:
        """PERF: `loadtests.audit_cost`: the sync of a new file of zeros stands before those that callers wait for.

        On a disk p99 is half as much again with it.
        """
        done.rest()
        if self._blank is None and done.size == self._segment_bytes:
            # NOTE: it is no part of the chain from here on; a gap in front of the next one would be taken for a loss.
            with contextlib.suppress(OSError):
                self._blank = done.path.rename(self.folder / _BLANK)
                return
        done.path.unlink(missing_ok=True)

    def _is_done(self, sequence: int) -> bool:
        """Is the oldest file of no further use?"""
        segments = self._segments
        if len(segments) < 2 or segments[1].first > sequence + 1:
            return False
        return segments[0] not in self._unsynced and not self._is_syncing(segments[0])

    @property
    def filled(self) -> float:
        """The part of its files that the spool may have and has, the one it writes to not counted."""
        return (len(self._segments) - 1) / (self._most - 1) if self._segments and self._most > 1 else 0.0

    @property
    def pending(self) -> int:
        """Records that are not shipped."""
        return self.sequence - self.state.shipped

    def settle(self, now_ms: int) -> None:
        """Sync all of it and say that this is the end of it, until somebody goes on with the chain.

        Raises: OSError.
        """
        head, descriptors = self.files_to_sync(now_ms)
        sync_files(descriptors)
        told = self.state.head
        # What was durable and is gone stays signed for: its absence shows.
        if told is None or told.sequence <= head.sequence:
            self.synced(head)
        self.state.settle()

    def close(self) -> None:
        """Let go; files without records are removed, the others stay for whoever goes on with the chain."""
        for path in (self._spare, self._blank):
            if path is not None:
                path.unlink(missing_ok=True)
        for segment in self._segments:
            segment.rest()
        self._segments = []
        self.state.close()
        os.close(self._lock)

    # --- what the process before left

    def _recover(self) -> None:
        """Go on behind the last whole record; half a record, torn by a crash, is wiped out."""
        (self.folder / _BLANK).unlink(missing_ok=True)
        for path in sorted(self.folder.glob(f"*{SUFFIX}")):
            with path.open("rb") as file:
                used = file.read(len(MAGIC)) == MAGIC
            if used:
                self._take_over(Segment(path))
            else:
                path.unlink()
        if self.state.suspect:
            self.sync_failed()
        told = self.state.head
        if told is not None and told.sequence > self.sequence:
            self.damaged = f"record {told.sequence} was durable, record {self.sequence} is the last that is left"
        if self._segment_bytes:
            # NOTE: the state itself is never synced; a chain with records has had an owner, whatever is left of it.
            self.state.owners = max(self.state.owners, int(bool(self._segments))) + 1
            if not self._segments:
                self._roll(0)

    def _take_over(self, segment: Segment) -> None:
        if self._segments and segment.first != self.sequence + 1:
            self.damaged = f"records {self.sequence + 1} to {segment.first - 1} are missing or torn"
        last, at = segment.valid_until()
        if any(segment.map[at : at + RECORD.size]):
            segment.map[at:] = bytes(segment.size - at)
        self._use(segment, at)
        self.sequence, self.hash = (last.sequence, last.hash) if last else (segment.first - 1, segment.previous)


def sync_files(descriptors: list[int]) -> None:
    """Make files durable; in a thread of its own.

    Raises: OSError.
    """
    for descriptor in descriptors:
        os.fdatasync(descriptor)


MAX_TAKEN = 64
"""How many new chains siblings may take from under a worker that starts."""


def open_spool(root: Path, segment_bytes: int, max_bytes: int) -> Spool:
    """A chain that no living process owns, or a new one.

    Raises: OSError, SpoolFull.
    """
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    sync_folder(root.parent)
    for folder in chains(root):
        lock = _lock_patiently(folder)
        if lock is None:
            continue
        spool = Spool(folder, lock, segment_bytes, max_bytes)
        if not spool.damaged:
            return spool
        # NOTE: a chain that lost records is evidence; it is shipped as it is, and goes on no further.
        spool.close()
    return _new_chain(root, segment_bytes, max_bytes)


def _new_chain(root: Path, segment_bytes: int, max_bytes: int) -> Spool:
    # NOTE: a worker that starts at the same moment may see the folder before it is locked, and take it: it is his then.
    for _ in range(MAX_TAKEN):
        folder = root / os.urandom(8).hex()
        folder.mkdir(mode=0o700)
        lock = lock_chain(folder)
        if lock is not None:
            break
    else:
        raise OSError(f"{root}: every new chain is locked by another process")
    sync_folder(root)
    try:
        return Spool(folder, lock, segment_bytes, max_bytes)
    except SpoolFull:
        os.close(lock)
        raise


def lock_chain(folder: Path) -> int | None:
    """The descriptor that holds the lock on a chain, or None if another process lives that does."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _lock_patiently(folder: Path) -> int | None:
    """As `lock_chain`; one who only looks whether the owner lives has it for some microseconds."""
    lock = lock_chain(folder)
    if lock is None:
        time.sleep(0.005)
        lock = lock_chain(folder)
    return lock


def chains(root: Path) -> list[Path]:
    """The folders of all chains of this machine."""
    return sorted(path for path in root.iterdir() if _is_chain(path)) if root.is_dir() else []


def _is_chain(path: Path) -> bool:
    return len(path.name) == 16 and path.is_dir()


def _fill(path: Path, size: int) -> None:
    """A file of zeros that are on the disk, and so is its name.

    Raises: OSError.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        # PERF: `policy_rs256` of `make bench`, caregate-logged: these zeros stay in the cache, and one call takes the
        # interpreter's lock once.
        while size:
            size -= os.writev(fd, [_ZEROS[: size - at] for at in range(0, min(size, _ZEROS_AT_ONCE), len(_ZEROS))])
        os.fsync(fd)
    finally:
        os.close(fd)
    sync_folder(path.parent)


def _use_again(blank: Path, path: Path) -> None:
    """A file of records that nobody needs becomes one without a header, and has another name; both are on the disk.

    NOTE: its header first: with a new name and the old header it would be a part of the chain that has a gap before it.
    Raises: OSError.
    """
    fd = os.open(blank, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.pwrite(fd, bytes(HEADER.size), 0)
        os.fdatasync(fd)
    finally:
        os.close(fd)
    blank.rename(path)
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable: a file that is synced may still be gone if its name was not.

    Raises: OSError.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def adopt(root: Path, seen: dict[str, int]) -> Iterator[Spool]:
    """The chains that no living process owns, locked for us; each once, until somebody has owned it again.

    Shapes: `seen` has the number of owners of each chain that was given out.

    Raises: OSError.
    """
    for folder in chains(root):
        lock = lock_chain(folder)
        if lock is None:
            continue
        state = State(folder / "state")
        owners = state.owners
        state.close()
        if seen.get(folder.name) == owners:
            os.close(lock)
            continue
        seen[folder.name] = owners
        yield Spool(folder, lock, 0, 0)

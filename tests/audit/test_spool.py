"""The spool on a real disk: killed writers, torn records, full disks."""

import contextlib
import errno
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from gateway.audit import spool as spool_module
from gateway.audit.chain import genesis, link
from gateway.audit.event import AuditEvent, encode
from gateway.audit.spool import SpoolFull, adopt, chains, lock_chain, open_spool, sync_files
from gateway.audit.state import State

SEGMENT = 262_144
BOUND = 4 * SEGMENT


@contextlib.contextmanager
def opened(root, segment=SEGMENT, bound=BOUND):
    spool = open_spool(root, segment, bound)
    try:
        yield spool
    finally:
        spool.close()


def _all(spool):
    return spool.unshipped(spool.sequence, most=1_000_000, most_bytes=1 << 40)


def _is_chain(records, chain, head=None, sequence=0):
    head = head or genesis(chain)
    for record in records:
        sequence += 1
        assert record.sequence == sequence
        head = link(head, sequence, record.canonical)
        assert record.hash == head


def test_records_form_a_chain(tmp_path):
    with opened(tmp_path) as spool:
        assert [spool.append(b"event %d" % n) for n in range(100)] == list(range(1, 101))
        records = _all(spool)
        assert [record.canonical for record in records] == [b"event %d" % n for n in range(100)]
        _is_chain(records, spool.chain)
        assert (records[-1].hash, spool.pending) == (spool.hash, 100)


def test_nobody_else_may_read_it(tmp_path):
    with opened(tmp_path / "a") as spool:
        assert [
            path.stat().st_mode & 0o077 for path in (spool.folder.parent, spool.folder, *spool.folder.iterdir())
        ] == [0] * 4


def test_many_files(tmp_path):
    with opened(tmp_path) as spool:
        sent = 0
        for n in range(2000):
            spool.append(b"x" * (1 + n % 1000))
            if n % 97 == 0:
                if spool.wants_room:
                    spool.make_room()
                sync_files(spool.files_to_sync(0)[1])
                spool.synced(spool.files_to_sync(0)[0])
            if n % 5 == 0:
                batch = spool.unshipped(spool.sequence - 3, most=7)
                assert [record.sequence for record in batch] == list(range(sent + 1, sent + 1 + len(batch)))
                sent += len(batch)
                if batch:
                    spool.shipped(sent)
        records = _all(spool)
        assert [record.sequence for record in records] == list(range(sent + 1, 2001))
        spool.shipped(2000)
        sync_files(spool.files_to_sync(0)[1])
        spool.synced(spool.files_to_sync(0)[0])
        spool.shipped(2000)
        assert len(list(spool.folder.glob("*.spool"))) <= 2
    with opened(tmp_path) as again:
        assert (again.sequence, again.pending) == (2000, 0)


def test_rows_of_many_files(tmp_path):
    events = [encode(event(n)) for n in range(3000)]
    shipped = []
    with opened(tmp_path, bound=40 * SEGMENT) as spool:
        for n, canonical in enumerate(events, 1):
            spool.append(canonical)
            if n % 700 == 0:
                assert [last for _, last in spool.rows(spool.sequence - 5, 3)] == [len(shipped) + 3]
                while batch := list(spool.rows(spool.sequence - 5, 110, at_once=11)):
                    assert all(rows.count(b"\n") <= 11 for rows, _ in batch)
                    shipped += b"".join(rows for rows, _ in batch).splitlines(keepends=True)
                    assert len(shipped) - spool.state.shipped <= 110
                    spool.shipped(batch[-1][1])
                assert len(shipped) == spool.sequence - 5
        batch = list(spool.rows(spool.sequence, 1000))
        shipped += b"".join(rows for rows, _ in batch).splitlines(keepends=True)
        spool.shipped(batch[-1][1])
        assert (spool.pending, list(spool.rows(spool.sequence, 1000))) == (0, [])
        assert [line.split(b"\t")[1] for line in shipped] == [b"%d" % n for n in range(1, 3001)]
        assert [line.split(b"\t")[-1].strip() for line in shipped] == events


def event(n):
    return AuditEvent(
        v=1, kind="access", phase="outcome", at_ms=n, duration_us=0, request_id=f"r{n}", outcome="allowed", rule="",
        status=200,
    )  # fmt: skip


def test_room_is_wanted_as_soon_as_a_file_is_begun(tmp_path):
    with opened(tmp_path) as spool:
        told = []
        spool.rolled = lambda: told.append(spool.wants_room)
        spool.make_room()
        assert not spool.wants_room
        for _ in range(5):
            spool.append(b"x" * 60_000)
        assert told == [True]


def test_a_file_that_a_thread_is_making_is_waited_for(tmp_path, monkeypatch):
    fill, begun = spool_module._fill, threading.Event()

    def slow(path, size):
        begun.set()
        time.sleep(0.3)
        fill(path, size)

    with opened(tmp_path) as spool:
        monkeypatch.setattr(spool_module, "_fill", slow)
        thread = threading.Thread(target=spool.make_room)
        thread.start()
        begun.wait(5)
        for _ in range(5):
            spool.append(b"x" * 60_000)
        thread.join()
        for _ in range(5):
            spool.append(b"x" * 60_000)
        assert len(_all(spool)) == 10
    with opened(tmp_path) as again:
        assert (again.sequence, again.damaged) == (10, "")


def test_a_file_that_cannot_be_begun_is_no_room_and_is_kept(tmp_path, monkeypatch):
    with opened(tmp_path) as spool:
        spool.make_room()
        for _ in range(4):
            spool.append(b"x" * 60_000)
        with monkeypatch.context() as broken:
            broken.setattr(spool_module, "Segment", _no_descriptor)
            with pytest.raises(SpoolFull, match="Too many open files"):
                spool.append(b"x" * 60_000)
        spool.append(b"x" * 60_000)
        assert [record.sequence for record in _all(spool)] == [1, 2, 3, 4, 5]


def _no_descriptor(path):
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def test_a_successor_goes_on_with_the_chain(tmp_path):
    chain = None
    for start in (0, 50, 100):
        with opened(tmp_path) as spool:
            assert spool.chain == (chain := chain or spool.chain)
            assert spool.sequence == start
            for n in range(50):
                spool.append(b"%d" % (start + n))
            spool.shipped(start + 20)
    with opened(tmp_path) as spool:
        records = _all(spool)
        assert [record.canonical for record in records] == [b"%d" % n for n in range(120, 150)]
        assert link(records[0].hash, 122, records[1].canonical) == records[1].hash


def test_a_living_owners_chain_is_nobody_elses(tmp_path):
    with opened(tmp_path) as one, opened(tmp_path) as two:
        assert one.chain != two.chain
        assert list(adopt(tmp_path, {})) == []
        assert chains(tmp_path) == sorted([one.folder, two.folder])


def test_an_orphan_is_given_out_once_until_it_had_another_owner(tmp_path):
    seen = {}
    for _ in range(2):
        with opened(tmp_path) as spool:
            spool.append(b"event")
        (orphan,) = adopt(tmp_path, seen)
        assert orphan.pending == 1
        with pytest.raises(SpoolFull):
            orphan.append(b"x" * SEGMENT)
        orphan.shipped(orphan.sequence)
        orphan.close()
        assert list(adopt(tmp_path, seen)) == []


_WRITER = """
import sys, time
from pathlib import Path
from gateway.audit.spool import open_spool
spool = open_spool(Path(sys.argv[1]), 262144, 1 << 30)
n = 0
while True:
    if spool.wants_room:
        spool.make_room()
    for _ in range(100):
        n = spool.append(b'{"event": %d, "filler": "%s"}' % (n, b"." * (n % 700)))
    sys.stdout.write(f"{n}\\n"); sys.stdout.flush()
"""


def test_what_a_killed_writer_was_told_is_written(tmp_path):
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=Path.cwd()
        )
        acknowledged = [int(process.stdout.readline()) for _ in range(15)]
        process.send_signal(signal.SIGKILL)
        rest = process.communicate()[0].split("\n")
        acknowledged += [int(line) for line in rest[:-1]]
        with opened(tmp_path, bound=1 << 30) as spool:
            assert not spool.damaged
            assert spool.sequence >= acknowledged[-1]
            _is_chain(_all(spool), spool.chain)
    assert len(chains(tmp_path)) == 1


@pytest.mark.parametrize("cut", [1, 10, 43, 44, 45, 60], ids=lambda cut: f"{cut} bytes")
def test_a_torn_last_record_is_wiped_out(tmp_path, cut):
    """As a killed process or a lost page leaves it: the beginning is there, the rest is zeros."""
    with opened(tmp_path) as spool:
        for n in range(10):
            spool.append(b"event %d" % n)
        at = spool._at
        spool.append(b"y" * 100)
        spool._map[at + cut : spool._at] = bytes(spool._at - at - cut)
        head = spool.hash
    with opened(tmp_path) as spool:
        assert not spool.damaged
        assert spool.sequence == 10
        assert spool.append(b"z") == 11
        records = _all(spool)
        assert [record.canonical for record in records[9:]] == [b"event 9", b"z"]
        _is_chain(records, spool.chain)
        assert spool.hash != head


def test_a_record_behind_a_torn_one_does_not_come_back(tmp_path):
    """A machine that lost power may have written a later page and not an earlier one."""
    with opened(tmp_path) as spool:
        spool.append(b"a" * 50)
        at = spool._at
        spool.append(b"b" * 50)
        spool.append(b"c" * 50)
        spool._map[at + 50] ^= 1
    with opened(tmp_path) as spool:
        assert spool.sequence == 1
        spool.append(b"d" * 50)
        assert [record.canonical[:1] for record in _all(spool)] == [b"a", b"d"]


def test_a_chain_that_lost_durable_records_is_not_continued(tmp_path):
    with opened(tmp_path) as spool:
        for n in range(10):
            spool.append(b"event %d" % n)
        head, files = spool.files_to_sync(5)
        sync_files(files)
        spool.synced(head)
        spool._map[spool._at - 3] ^= 1
        chain = spool.chain
    with opened(tmp_path) as spool:
        assert (spool.chain != chain, spool.sequence, spool.damaged) == (True, 0, "")
        (damaged,) = adopt(tmp_path, {})
        assert (damaged.chain, damaged.sequence) == (chain, 9)
        assert damaged.damaged == "record 10 was durable, record 9 is the last that is left"
        assert len(_all(damaged)) == 9
        damaged.close()


def test_head_is_what_was_synced(tmp_path):
    with opened(tmp_path) as spool:
        spool.append(b"one")
        head, files = spool.files_to_sync(17)
        spool.append(b"two")
        sync_files(files)
        spool.synced(head)
        other = State(spool.folder / "state", writable=False)
        assert other.head == head == (1, _all(spool)[0].hash, 17)
        spool.state._map[70] ^= 1
        assert other.head is None, "half of it is not the truth"


@pytest.mark.parametrize("size", [1, 4096, 65_536])
def test_sizes(tmp_path, size):
    with opened(tmp_path) as spool:
        for _ in range(9):
            spool.append(b"x" * size)
        assert [len(record.canonical) for record in _all(spool)] == [size] * 9


def fill(spool):
    while True:
        spool.append(b"x" * 1000)


def test_bound(tmp_path):
    with opened(tmp_path, bound=2 * SEGMENT) as spool:
        with pytest.raises(SpoolFull):
            fill(spool)
        kept = spool.sequence
        assert kept == 2 * (SEGMENT // 1044)
        with pytest.raises(SpoolFull):
            spool.append(b"x" * 1000)
        sync_files(spool.files_to_sync(0)[1])
        spool.synced(spool.files_to_sync(0)[0])
        spool.shipped(kept)
        assert spool.append(b"x" * 1000) == kept + 1
        assert len(list(spool.folder.glob("*.spool"))) == 2


_LIMITED = """
import resource, sys
from pathlib import Path
from gateway.audit.spool import SpoolFull, open_spool
spool = open_spool(Path(sys.argv[1]), 262144, 1 << 30)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    while True:
        spool.append(b"x" * 1000)
except SpoolFull as full:
    print(spool.sequence, full)
"""


def test_a_file_size_limit_is_a_full_disk(tmp_path):
    result = subprocess.run(
        [sys.executable, "-c", _LIMITED, str(tmp_path)], capture_output=True, text=True, cwd=Path.cwd()
    )
    assert result.stdout.split(maxsplit=1) == ["251", "File too large\n"], result.stderr
    with opened(tmp_path) as spool:
        assert spool.sequence == 251
        assert len(list(spool.folder.glob("*.spool"))) == 1, "nothing half-made stays"


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("no right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_takes_no_record_and_loses_none(small_disk):
    with opened(small_disk, bound=1 << 30) as spool:
        with pytest.raises(SpoolFull, match="No space left"):
            fill(spool)
        assert spool.sequence == 2 * 251
        sync_files(spool.files_to_sync(0)[1])
        spool.synced(spool.files_to_sync(0)[0])
        spool.shipped(300)
        assert spool.append(b"x") == 503
    with opened(small_disk) as spool:
        assert spool.sequence == 503


def test_a_failed_sync_is_written_again(tmp_path):
    with opened(tmp_path) as spool:
        spool.append(b"event")
        spool.sync_failed()
        assert (spool.folder / "00000001.spool").read_bytes()[: spool._at] == spool._map[: spool._at]


def test_unused_files_of_the_past_are_removed(tmp_path):
    with opened(tmp_path) as spool:
        spool.append(b"event")
        folder = spool.folder
    (folder / "00000002.spool").write_bytes(bytes(1000))
    with opened(tmp_path) as spool:
        assert [path.name for path in folder.glob("*.spool")] == ["00000001.spool"]
        assert spool.sequence == 1


def test_an_append_costs_little(tmp_path):
    """An order of magnitude of room: this notices a system call in the way, not a slow machine."""
    with opened(tmp_path, segment=1 << 24, bound=1 << 26) as spool:
        event = b"x" * 600
        began = time.process_time_ns()
        for _ in range(10_000):
            spool.append(event)
        assert (time.process_time_ns() - began) / 10_000 < 30_000


def test_a_new_chain_that_a_sibling_took_first_is_his(tmp_path, monkeypatch):
    """Between its making and its locking a worker that starts at the same moment may find it."""
    taken = []

    def lock_late(folder):
        if not taken:
            taken.append((folder, lock_chain(folder)))
            return None
        return lock_chain(folder)

    monkeypatch.setattr("gateway.audit.spool.lock_chain", lock_late)
    spool = open_spool(tmp_path, 65_536, 1 << 20)
    assert spool.folder != taken[0][0]
    spool.close()
    os.close(taken[0][1])


def _written_again(monkeypatch):
    """The files that are written through their descriptor, as a successor does with what may have been forgotten."""
    written, real = [], os.pwrite

    def pwrite(fd, data, at):
        written.append(os.readlink(f"/proc/self/fd/{fd}").rpartition("/")[2])
        return real(fd, data, at)

    monkeypatch.setattr("gateway.audit.spool.os.pwrite", pwrite)
    return written


@pytest.mark.parametrize("suspect", [True, False])
def test_a_successor_writes_again_what_a_failed_sync_may_have_lost(tmp_path, monkeypatch, suspect):
    with opened(tmp_path) as spool:
        spool.append(b"one")
        spool.state.suspect = suspect
    written = _written_again(monkeypatch)
    with opened(tmp_path) as spool:
        assert ("00000001.spool" in written) is suspect
        spool.synced(spool.files_to_sync(1)[0])
        assert not spool.state.suspect


def test_a_chain_is_settled_until_somebody_goes_on_with_it(tmp_path):
    with opened(tmp_path) as spool:
        spool.append(b"one")
        assert not spool.state.settled
        spool.settle(7)
        assert (spool.state.settled, spool.state.head.sequence, spool.state.head.at_ms) == (True, 1, 7)
    with opened(tmp_path) as spool:
        assert not spool.state.settled
        (spool.folder / "state").write_bytes(bytes(4096))
    with opened(tmp_path) as spool:
        assert (spool.state.owners, spool.state.settled) == (2, False), "a loss of power has taken its state"


def test_the_names_of_a_new_chain_are_durable(tmp_path, monkeypatch):
    """A synced file under a name that is not durable is lost with the power."""
    synced = []
    real = os.fsync
    monkeypatch.setattr(
        "gateway.audit.spool.os.fsync", lambda fd: (synced.append(os.readlink(f"/proc/self/fd/{fd}")), real(fd))
    )
    with opened(tmp_path / "audit") as spool:
        assert {str(tmp_path), str(tmp_path / "audit"), str(spool.folder)} <= set(synced)


def test_a_file_that_was_left_while_it_was_synced_is_synced_again(tmp_path):
    """Records that came after the sync began, before the next file was used, are not durable by it."""
    with opened(tmp_path) as spool:
        spool.append(b"one")
        head, synced = spool.files_to_sync(1)
        while len(list(spool.folder.glob("*.spool"))) < 2:
            spool.append(b"x" * 60_000)
        spool.synced(head)
        assert spool.files_to_sync(2)[1][0] == synced[0]
        assert len(spool.files_to_sync(2)[1]) == 2
        spool.synced(spool.files_to_sync(3)[0])
        assert len(spool.files_to_sync(4)[1]) == 1


def test_a_file_is_open_until_the_last_sync_of_it_has_ended(tmp_path):
    with opened(tmp_path) as spool:
        spool.append(b"one")
        first, files = spool.files_to_sync(1, 0)
        while len(list(spool.folder.glob("*.spool"))) < 2:
            spool.append(b"x" * 60_000)
        second, _ = spool.files_to_sync(2, 1)
        spool.synced(second, 1)
        spool.shipped(spool.sequence)
        sync_files(files)
        assert len(list(spool.folder.glob("*.spool"))) == 2, "it is still synced"
        spool.synced(first, 0)
        assert spool.state.head == second, "one that began earlier takes nothing back"
        with pytest.raises(OSError, match="Bad file descriptor"):
            sync_files(files)
        spool.shipped(spool.sequence)
        assert len(list(spool.folder.glob("*.spool"))) == 1

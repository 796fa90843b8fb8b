"""Files of the spool are used again: nothing of what stood in them is ever taken for a part of the chain."""

from __future__ import annotations

import os
import random
import shutil

import pytest

from gateway.audit import spool as spool_module
from gateway.audit.spool import SpoolFull, chains, open_spool, sync_files

SEGMENT = 700
BOUND = 4 * SEGMENT


class Owner:
    """A spool and what must be in it: a seed rules what becomes of both."""

    def __init__(self, root, seed):
        self.root, self.random = root, random.Random(seed)
        self.events, self.shipped = [], 0
        self.again = 0
        self.open()

    def open(self):
        self.spool = open_spool(self.root, SEGMENT, BOUND)
        assert not self.spool.damaged
        assert self.spool.sequence == len(self.events)

    def append(self):
        canonical = b"%d " % len(self.events) * self.random.randint(1, 40)
        before = len(self.files())
        try:
            self.spool.append(canonical)
        except SpoolFull:
            assert self.spool.pending, "of what nobody needs there is always room"
            self.ship()
        else:
            self.events.append(canonical)
            self.again += len(self.files()) == before and self.spool._at < 400

    def ship(self):
        """Some of what is durable; all that is left is there, in order, as bytes and as what follows."""
        self.sync()
        found = self.spool.unshipped(self.spool.sequence)
        assert [record.canonical for record in found] == self.events[self.shipped :][: len(found)]
        assert found or self.shipped == len(self.events)
        if found:
            self.shipped = self.random.choice(found).sequence
            # As after a batch of rows, or one by one.
            self.spool.unshipped(self.shipped)
            self.spool.shipped(self.shipped)

    def sync(self):
        head, files = self.spool.files_to_sync(0)
        sync_files(files)
        self.spool.synced(head)

    def room(self):
        if self.spool.wants_room:
            try:
                self.spool.make_room()
            except SpoolFull:
                assert len(self.files()) * SEGMENT >= BOUND

    def crash(self):
        """Gone without a word; a successor finds the folder as it is."""
        for segment in self.spool._segments:
            segment.rest()
        self.spool.state.close()
        os.close(self.spool._lock)
        self.open()

    def leave(self):
        self.spool.close()
        assert "blank" not in self.files()
        self.open()

    def files(self):
        return [path.name for path in self.spool.folder.iterdir() if path.name != "state"]

    def step(self):
        steps = [self.append] * 20 + [self.ship] * 4 + [self.room] * 3 + [self.sync, self.crash, self.leave]
        self.random.choice(steps)()
        assert len(self.files()) * SEGMENT <= BOUND


@pytest.mark.parametrize("seed", range(12))
def test_whatever_happens_the_chain_is_what_was_appended(tmp_path, seed):
    owner = Owner(tmp_path, seed)
    for _ in range(1500):
        owner.step()
    while owner.shipped < len(owner.events):
        owner.ship()
    owner.spool.close()
    assert len(chains(tmp_path)) == 1
    assert len(owner.events) > 500


def two_files(root):
    """A spool that went on into its second file, the first of which nobody needs."""
    spool = open_spool(root, SEGMENT, BOUND)
    for _ in range(8):
        spool.append(b"x" * 80)
    head, files = spool.files_to_sync(0)
    sync_files(files)
    spool.synced(head)
    spool.shipped(5)
    spool.shipped(6)
    return spool


def test_a_file_is_used_again(tmp_path):
    spool = two_files(tmp_path)
    names = {path.name: path.stat().st_ino for path in spool.folder.glob("*")}
    assert "blank" in names
    spool.make_room()
    assert (spool.folder / "00000003.spool").stat().st_ino == names["blank"]
    assert not (spool.folder / "blank").exists()
    spool.close()


def test_its_header_is_gone_before_it_has_another_name(tmp_path, monkeypatch):
    """Or a loss of power would leave a part of the chain with a gap before it."""
    spool = two_files(tmp_path)
    told = []
    real_sync, real_folder = os.fdatasync, spool_module.sync_folder

    def sync(descriptor):
        told.append((os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")), os.pread(descriptor, 8, 0)))
        real_sync(descriptor)

    def folder(path):
        told.append(sorted(found.name for found in path.glob("*[lk]")))
        real_folder(path)

    monkeypatch.setattr(spool_module.os, "fdatasync", sync)
    monkeypatch.setattr(spool_module, "sync_folder", folder)
    spool.make_room()
    assert told == [("blank", bytes(8)), ["00000002.spool", "00000003.spool"]]
    spool.close()


def test_a_loss_of_power_between_brings_no_gap(tmp_path):
    """The folder as it was when the file was put away, before it got its new name and after."""
    spool = two_files(tmp_path / "now")
    shutil.copytree(tmp_path / "now", tmp_path / "put-away")
    spool.make_room()
    shutil.copytree(tmp_path / "now", tmp_path / "named")
    for name in ("put-away", "named"):
        successor = open_spool(tmp_path / name, SEGMENT, BOUND)
        assert (successor.damaged, successor.sequence, successor.chain) == ("", 8, spool.chain)
        assert not (successor.folder / "blank").exists()
        successor.close()
    spool.close()


def test_a_file_of_another_size_is_not(tmp_path):
    two_files(tmp_path).close()
    spool = open_spool(tmp_path, 2 * SEGMENT, 3 * BOUND)
    for _ in range(40):
        spool.append(b"x" * 10)
    head, files = spool.files_to_sync(0)
    sync_files(files)
    spool.synced(head)
    spool.shipped(spool.sequence)
    assert (spool.folder / "blank").stat().st_size == 2 * SEGMENT
    spool.close()


def test_one_that_cannot_be_used_again_is_no_reason_to_fail_for_ever(tmp_path, monkeypatch):
    spool = two_files(tmp_path)

    def broken(descriptor):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(spool_module.os, "fdatasync", broken)
        with pytest.raises(SpoolFull, match="Input/output error"):
            spool.make_room()
    assert sorted(path.name for path in spool.folder.glob("*[lk]")) == ["00000002.spool"]
    spool.make_room()
    assert not spool.wants_room
    spool.close()


def test_what_is_put_away_while_another_is_made_ready_is_not_taken_for_it(tmp_path, monkeypatch):
    """The thread that makes room is at the file while the hub's is told of more that is shipped."""
    spool = open_spool(tmp_path, SEGMENT, 4 * BOUND)
    while len(spool._segments) < 4:
        spool.append(b"x" * 80)
    head, files = spool.files_to_sync(0)
    sync_files(files)
    spool.synced(head)
    spool.shipped(spool._segments[1].first - 1)
    real = os.fdatasync

    def slow(descriptor):
        real(descriptor)
        spool.shipped(spool._segments[1].first - 1)

    with monkeypatch.context() as patched:
        patched.setattr(spool_module.os, "fdatasync", slow)
        spool.make_room()
    assert spool._spare.read_bytes()[:8] == bytes(8)
    assert not (spool.folder / "blank").exists()
    for _ in range(30):
        spool.append(b"x" * 80)
    shutil.copytree(tmp_path, tmp_path.parent / "copy")
    successor = open_spool(tmp_path.parent / "copy", SEGMENT, 4 * BOUND)
    assert (successor.damaged, successor.sequence) == ("", spool.sequence)
    successor.close()
    spool.close()

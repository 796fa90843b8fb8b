"""A disk that does what a test says, under a trail: threads of Python's in place of fastpath.syncer."""

import os
from _queue import SimpleQueue

import gevent
from gevent import monkey

from gateway.audit.spool import sync_files

_start_thread = monkey.get_original("_thread", "start_new_thread")


class Disk:
    """Shapes: `work(files)` syncs, or raises OSError; a test may set another at any time."""

    def __init__(self):
        self.work = sync_files


class Turn:
    """One of the syncs of a disk that may overlap."""

    def __init__(self, disk):
        self._disk = disk
        self.told = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._jobs = SimpleQueue()
        self._error = 0
        _start_thread(self._run, ())

    def begin(self, files):
        self._jobs.put((self._disk.work, files))

    def ended(self):
        try:
            os.eventfd_read(self.told)
        except BlockingIOError:
            return None
        return self._error

    def stop(self):
        self._jobs.put(None)

    def _run(self):
        while (job := self._jobs.get()) is not None:
            work, files = job
            self._error = 0
            try:
                work(files)
            except OSError as error:
                self._error = error.errno
            os.eventfd_write(self.told, 1)
        os.close(self.told)


def under(trail):
    """A disk of a test's own, under a trail that runs."""
    commit = trail._commit
    while commit._under_way or commit._waiters:
        gevent.sleep(0.001)
    # Whoever has made SLOW_S shorter sees it kept from here on.
    commit._timer.stop()
    commit._watching = False
    disk = Disk()
    for turn in commit._free:
        turn.watcher.stop()
        turn.watcher.close()
        turn.disk.stop()
    commit._free = [commit._made(turn.number, Turn(disk)) for turn in commit._free]
    return disk

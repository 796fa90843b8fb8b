"""The thread that syncs: one thing at a time, told by its descriptor, with the first file's error."""

from __future__ import annotations

import errno
import os
import select
from collections.abc import Iterator
from pathlib import Path

import gevent
import greenlet
import pytest

from fastpath.syncer import Syncer, Waiters


@pytest.fixture
def syncer() -> Iterator[Syncer]:
    syncer = Syncer()
    yield syncer
    syncer.stop()


def ended(syncer: Syncer) -> int | None:
    assert select.select([syncer.told], [], [], 10)[0], "nobody was told"
    return syncer.ended()


@pytest.fixture
def files(tmp_path: Path) -> Iterator[list[int]]:
    files = [os.open(tmp_path / str(number), os.O_RDWR | os.O_CREAT) for number in range(3)]
    yield files
    for file in files:
        os.close(file)


def test_each_sync_is_told_once(syncer: Syncer, files: list[int]) -> None:
    assert syncer.ended() is None
    for _ in range(50):
        syncer.begin(files)
        assert ended(syncer) == 0
        assert syncer.ended() is None
    syncer.begin([])
    assert ended(syncer) == 0


def test_a_file_that_fails_is_told_and_the_next_sync_begins_anew(syncer: Syncer, files: list[int]) -> None:
    reading, writing = os.pipe()
    closed = os.dup(writing)
    os.close(closed)
    try:
        syncer.begin([files[0], writing, closed, files[1]])
        assert ended(syncer) == errno.EINVAL
        syncer.begin([closed])
        assert ended(syncer) == errno.EBADF
        syncer.begin(files)
        assert ended(syncer) == 0
    finally:
        os.close(reading)
        os.close(writing)


def test_one_at_a_time(syncer: Syncer, files: list[int]) -> None:
    syncer.begin(files)
    with pytest.raises(ValueError, match="under way"):
        syncer.begin(files)
    assert ended(syncer) == 0, "what was refused changed nothing"


def test_nothing_is_begun_after_the_end(files: list[int]) -> None:
    syncer = Syncer()
    syncer.begin(files)
    syncer.stop()
    syncer.stop()
    for call in (syncer.ended, lambda: syncer.begin(files), lambda: syncer.told):
        with pytest.raises(ValueError, match="stopped"):
            call()


def test_the_thread_and_its_descriptor_go(files: list[int]) -> None:
    def held() -> int:
        return len(os.listdir("/proc/self/task")) + len(os.listdir("/proc/self/fd"))

    before = held()
    for _ in range(20):
        syncer = Syncer()
        syncer.begin(files)
        ended(syncer)
        syncer.stop()
    for _ in range(1000):
        if held() <= before:
            return
        select.select([], [], [], 0.01)
    pytest.fail("threads or descriptors are left")


@pytest.mark.parametrize("file", ["3", None, 1 << 40])
def test_what_is_no_descriptor(syncer: Syncer, file: object, files: list[int]) -> None:
    with pytest.raises((TypeError, OverflowError)):
        syncer.begin([file])  # type: ignore[list-item]
    syncer.begin(files)
    assert ended(syncer) == 0


class TestWaiters:
    @pytest.fixture
    def asked(self) -> list[str]:
        return []

    @pytest.fixture
    def waiters(self, asked: list[str]) -> Waiters:
        hub = gevent.get_hub()
        return Waiters(hub.switch, gevent.getcurrent, lambda: asked.append("asked"), hub.handle_error, BlockingIOError)

    def test_all_who_wait_are_told_in_their_order(self, waiters: Waiters, asked: list[str]) -> None:
        told: list[int] = []

        def work(number: int) -> None:
            waiters.wait()
            told.append(number)

        jobs = [gevent.spawn(work, number) for number in range(5)]
        gevent.sleep(0)
        assert (len(waiters), asked, told) == (5, ["asked"], [])
        batch = waiters.take()
        late = gevent.spawn(waiters.wait)
        gevent.sleep(0)
        assert (len(waiters), asked) == (1, ["asked"]), "somebody was asked already"
        gevent.get_hub().loop.run_callback(waiters.tell, batch, True)
        gevent.joinall(jobs, timeout=5)
        assert told == [0, 1, 2, 3, 4]
        assert not late.ready()
        late.kill()

    def test_who_was_killed_is_told_nothing(self, waiters: Waiters) -> None:
        went_on: list[str] = []

        def work() -> None:
            try:
                waiters.wait()
            finally:
                gevent.sleep(0.01)
                went_on.append("after its own wait")

        killed, other = gevent.spawn(work), gevent.spawn(waiters.wait)
        gevent.sleep(0)
        killed.kill(block=False)
        gevent.sleep(0)
        gevent.get_hub().loop.run_callback(waiters.tell, waiters.take(), True)
        gevent.joinall([killed, other], timeout=5)
        assert other.successful()
        assert went_on == ["after its own wait"]

    def test_one_that_fails_does_not_keep_the_others_waiting(self) -> None:
        hub = greenlet.getcurrent()
        failed: list[tuple[object, ...]] = []
        waiters = Waiters(hub.switch, greenlet.getcurrent, lambda: None, lambda *fault: failed.append(fault), OSError)
        told: list[str] = []

        def fail() -> None:
            waiters.wait()
            raise RuntimeError("nobody catches it")

        def succeed() -> None:
            waiters.wait()
            told.append("well")

        for work in (fail, succeed):
            greenlet.greenlet(work, hub).switch()
        waiters.tell(waiters.take(), True)
        assert told == ["well"]
        ((context, kind, error, traceback),) = failed
        assert (context, kind, str(error), traceback is not None) == (waiters, RuntimeError, "nobody catches it", True)

    def test_who_waits_in_vain_is_refused(self, waiters: Waiters) -> None:
        job = gevent.spawn(waiters.wait)
        gevent.sleep(0)
        gevent.get_hub().loop.run_callback(waiters.tell, waiters.take(), False)
        gevent.joinall([job], timeout=5)
        assert isinstance(job.exception, BlockingIOError)

    def test_while_closed_nobody_waits(self, waiters: Waiters, asked: list[str]) -> None:
        waiters.closed = True
        with pytest.raises(BlockingIOError):
            waiters.wait()
        assert (len(waiters), asked) == (0, [])
        waiters.closed = False
        job = gevent.spawn(waiters.wait)
        gevent.sleep(0)
        gevent.get_hub().loop.run_callback(waiters.tell, waiters.take(), True)
        gevent.joinall([job], timeout=5)
        assert job.successful()

    def test_no_batch(self, waiters: Waiters) -> None:
        with pytest.raises(TypeError):
            waiters.tell(None, True)  # type: ignore[arg-type]

"""A log whose reader stalls holds nobody up; what waited is there when it reads again."""

from __future__ import annotations

import os
import select
import socket

import pytest

from gateway import outlet as module
from gateway.accesslog import AccessLog
from gateway.context import RequestContext
from gateway.outlet import Outlet, outlet

LINE = b"x" * 99 + b"\n"


@pytest.fixture(params=["pipe", "pipe of another account", "socket"])
def ends(request, monkeypatch):
    """A descriptor to write to, and what reads all that is there."""
    if request.param == "socket":
        one, other = socket.socketpair()
        reading, writing = one.detach(), other.detach()
    else:
        reading, writing = os.pipe()
    if request.param == "pipe of another account":
        monkeypatch.setattr(module.os, "open", lambda *_: (_ for _ in ()).throw(PermissionError()))
    os.set_blocking(reading, False)

    def read() -> bytes:
        found = b""
        while select.select([reading], [], [], 0)[0] and (piece := os.read(reading, 2**20)):
            found += piece
        return found

    yield writing, read
    os.close(reading)
    os.close(writing)


def test_nobody_waits_and_what_waited_comes(ends):
    writing, read = ends
    lost = []
    made = Outlet(writing, most=2**20, lost=lost.append)
    for _ in range(10_000):  # more than a pipe or a socket takes, and less than it and the outlet
        assert made.write(LINE) == 100
    found, before = b"", -1
    while len(found) != before:
        before = len(found)
        found += read()
        made.flush()
    assert found == LINE * 10_000
    assert lost == []


def test_what_finds_no_room_is_counted_and_lines_stay_whole(ends):
    writing, read = ends
    lost = []
    made = Outlet(writing, most=10_000, lost=lost.append)
    for n in range(9_000):
        made.write(b"%08d " % n + LINE)
    assert sum(lost) > 1_000
    found = b""
    while piece := read():
        found += piece
        made.flush()
    lines = found.splitlines(keepends=True)
    assert len(lines) == 9_000 - sum(lost)
    assert all(line[9:] == LINE for line in lines)
    made.write(LINE)
    assert read() == LINE, "and it goes on"


def test_who_has_gone_is_no_error(ends, monkeypatch):
    made = Outlet(ends[0])
    monkeypatch.setattr(made, "_send", lambda data: (_ for _ in ()).throw(BrokenPipeError()))
    for _ in range(3):
        assert made.write(LINE) == 100
    assert made.waiting == 0


def test_a_file_needs_none(tmp_path):
    with (tmp_path / "log").open("wb") as file:
        assert outlet(file.fileno()) is None
    assert outlet(10**6) is None


def test_the_access_log_goes_on_while_nobody_reads():
    reading, writing = os.pipe()
    lost = []
    log = AccessLog(writing, 7, lost=lost.append)
    try:
        for n in range(40_000):
            log.write(RequestContext(id=str(n), started_ns=0, method="GET"), 200, 0)
        log.flush()
        assert lost
        assert os.read(reading, 4096).startswith(b'{"time":')
    finally:
        os.close(reading)
        os.close(writing)

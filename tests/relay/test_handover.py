"""A connection goes to a sibling whole, over a channel that stays, and is not lost on the way to one that leaves."""

from __future__ import annotations

import socket as plain

import gevent
import pytest
from gevent import socket

from gateway.relay.handover import MAX_UNREAD_BYTES, Handover
from gateway.relay.link_token import LinkToken

TOKEN = LinkToken("k1", 1_700_000_300.0, "j1", 1_700_000_000.0)


@pytest.fixture
def worker(tmp_path):
    started = []

    def start(name: str) -> Handover:
        taken: list[tuple[str, LinkToken, bytes, bytes]] = []
        handover = Handover(
            tmp_path,
            f"relay-{name}.sock",
            lambda unit, token, sock, unread: taken.append((unit, token, unread, sock.recv(100))),
        )
        handover.taken = taken
        handover.start()
        started.append(handover)
        return handover

    yield start
    for handover in started:
        handover.stop()


def pass_on(here: Handover, there: Handover, unit: str = "hospital", unread: bytes = b"") -> bool:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(b"after")
        return here.pass_on(there.name, unit, TOKEN, ours, unread)


def until(check) -> None:
    with gevent.Timeout(5):
        while not check():
            gevent.sleep(0.001)


def test_all_of_it_arrives_over_one_channel(worker):
    here, there = worker("1"), worker("2")
    assert pass_on(here, there, unread=b"\0" * MAX_UNREAD_BYTES)
    assert pass_on(here, there, "clinic")
    until(lambda: len(there.taken) == 2)
    assert there.taken == [
        ("hospital", TOKEN, b"\0" * MAX_UNREAD_BYTES, b"after"),
        ("clinic", TOKEN, b"", b"after"),
    ]
    assert len(there._incoming) == 1


def test_more_than_a_message_holds_stays(worker):
    here, there = worker("1"), worker("2")
    assert not pass_on(here, there, unread=b"\0" * (MAX_UNREAD_BYTES + 1))


def test_one_that_leaves_takes_what_is_on_its_way_and_nothing_more(worker):
    here, there = worker("1"), worker("2")
    assert pass_on(here, there)
    until(lambda: there.taken)
    assert pass_on(here, there)
    there.stop()
    assert not pass_on(here, there)
    until(lambda: len(there.taken) == 2)
    assert not here._outgoing


def test_a_worker_of_the_same_name_gets_a_channel_of_its_own(worker):
    here, there = worker("1"), worker("2")
    assert pass_on(here, there)
    until(lambda: there.taken)
    there.stop()
    again = worker("2")
    assert pass_on(here, again)
    until(lambda: again.taken)


def test_channels_to_workers_that_are_gone_are_closed(worker):
    here, gone, there = worker("1"), worker("2"), worker("3")
    assert pass_on(here, gone)
    until(lambda: gone.taken)
    gone.stop()
    assert pass_on(here, there)
    assert list(here._outgoing) == [there.name]


@pytest.mark.parametrize(
    "data", [b"{}", b"[]", b"nope", b'{"unit":[],"kid":"k","exp":1,"jti":"j","iat":1,"unread":""}']
)
@pytest.mark.parametrize("descriptors", [0, 1, 3])
def test_a_message_that_is_not_ours_ends_its_channel(worker, data, descriptors):
    here = worker("1")
    with plain.socketpair()[0] as given, socket.socket(plain.AF_UNIX, plain.SOCK_SEQPACKET) as channel:
        channel.connect(str(here._path(here.name)))
        plain.send_fds(channel, [data], [given.fileno()] * descriptors)
        with gevent.Timeout(5):
            assert channel.recv(1) == b""
    assert not here.taken

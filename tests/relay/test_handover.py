"""A connection goes to a sibling whole, over a channel that stays, and is not lost on the way to one that leaves."""

from __future__ import annotations

import dataclasses
import socket as plain
from pathlib import Path

import gevent
import orjson
import pytest
from gevent import socket
from msgspec.json import Decoder

from gateway.relay.handover import MAX_UNREAD_BYTES, Handover, _Record
from gateway.relay.link_token import LinkToken
from gateway.relay.passed import PassedConnection, SessionState

TOKEN = LinkToken("k1", 1_700_000_300.0, "j1", 1_700_000_000.0, "192.0.2.7")
SESSION = SessionState(
    agreed_streams=64, max_streams=2, stream_window=262_144, conn_window=4_194_304, max_frame=131_072, credit=4_000_000,
    owed=17, last_stream=4_294_967_291, ping_s=15.0, suspect_s=20.0, dead_s=35.0, last_received_s=26_000.125,
    next_ping_s=26_010.5, next_sync_s=26_050.25, token_expires_s=26_300.0, ping_count=3, timed_ping=(2, 25_999.0),
    rtt_s=None,
)  # fmt: skip
LIVE = PassedConnection("c1", 26_000_000_000_001, "one", 1, "test", True, -3.5, 1_700_000_000.5, SESSION)


@pytest.fixture
def worker(tmp_path):
    started = []

    def start(name: str) -> Handover:
        taken: list[tuple[str, LinkToken, bytes, bytes]] = []
        lives: list[PassedConnection | None] = []

        def receive(unit, token, sock, unread, live):
            taken.append((unit, token, unread, sock.recv(100)))
            lives.append(live)

        handover = Handover(
            tmp_path,
            f"relay-{name}.sock",
            receive,
        )
        handover.taken, handover.lives = taken, lives
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


def give_live(here: Handover, there: Handover, live: PassedConnection = LIVE) -> bool:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(b"after")
        return here.pass_live(there.name, "hospital", TOKEN, ours, live)


def test_one_that_is_in_use_arrives_with_all_that_was_agreed(worker):
    here, there = worker("1"), worker("2")
    assert not give_live(here, there), "nobody has looked whether it is there"
    assert here.reach(there.name)
    assert give_live(here, there)
    assert pass_on(here, there)
    until(lambda: len(there.taken) == 2)
    assert there.taken == [("hospital", TOKEN, b"", b"after")] * 2
    assert there.lives == [LIVE, None]


def test_one_that_has_gone_is_not_reached(worker):
    here, there = worker("1"), worker("2")
    assert here.reach(there.name)
    there.stop()
    assert not give_live(here, there)
    assert not here.reach(there.name)
    assert not here.reach("relay-3.sock")


def test_a_full_channel_takes_no_more_now_and_loses_nothing(worker, monkeypatch):
    here, there = worker("1"), worker("2")
    assert here.reach(there.name)
    number = 0
    while give_live(here, there):
        number += 1
    assert number > 10
    until(lambda: len(there.taken) == number)
    assert give_live(here, there)
    until(lambda: len(there.taken) == number + 1)


def test_one_that_fills_more_than_a_message_is_not_taken(worker):
    here, there = worker("1"), worker("2")
    assert here.reach(there.name)
    assert not give_live(here, there, dataclasses.replace(LIVE, agent="a" * 70_000))
    assert give_live(here, there)


def record(**changes: object) -> bytes:
    """A live connection's, as JSON, with changes to what is agreed."""
    live = {**dataclasses.asdict(LIVE), **changes}
    return orjson.dumps({"unit": "u", "kid": "k", "exp": 1, "jti": "j", "iat": 1, "unread": "", "live": live})


def test_the_vectors_below_have_nothing_else_wrong():
    assert Decoder(_Record).decode(record()).live == LIVE


NOT_OURS = [
    b"{}", b"[]", b"nope",
    b'{"unit":[],"kid":"k","exp":1,"jti":"j","iat":1,"unread":""}',
    b'{"unit":"u","kid":"k","exp":1,"jti":"j","iat":1,"unread":"?"}',
    b'{"unit":"u","kid":"k","exp":1,"jti":"j","iat":1,"unread":"","live":{}}',
    record(conn=7), record(epoch="1"), record(epoch=1.5), record(keeps_keys=1), record(index=None),
    record(connected_at_s="now"), record(session=None),
    record(session={**dataclasses.asdict(SESSION), "owed": 5_000_000}),
]  # fmt: skip


@pytest.mark.parametrize("data", NOT_OURS)
@pytest.mark.parametrize("descriptors", [0, 1, 3])
def test_a_message_that_is_not_ours_ends_its_channel(worker, data, descriptors):
    here = worker("1")
    with plain.socketpair()[0] as given, socket.socket(plain.AF_UNIX, plain.SOCK_SEQPACKET) as channel:
        channel.connect(str(here._path(here.name)))
        plain.send_fds(channel, [data], [given.fileno()] * descriptors)
        with gevent.Timeout(5):
            assert channel.recv(1) == b""
    assert not here.taken


def watched(descriptor: int) -> bool:
    """Does the hub's epoll instance watch it?"""
    info = Path(f"/proc/self/fdinfo/{gevent.get_hub().loop.fileno()}").read_text()
    return any(line.split()[1] == str(descriptor) for line in info.splitlines() if line.startswith("tfd:"))


def test_the_hub_is_not_told_of_what_another_process_reads(worker):
    """libev takes such news for a fault of the kernel and registers all that it watches anew."""
    here, there = worker("1"), worker("2")
    ours, theirs = socket.socketpair()
    with ours, theirs:
        reader = gevent.spawn(ours.recv, 1)
        gevent.sleep(0.01)
        assert watched(ours.fileno())
        assert here.pass_on(there.name, "hospital", TOKEN, ours, b"")
        assert not watched(ours.fileno())
        reader.kill()

"""The server's WebSocket as gevent-websocket's own class sees it, and against `websockets` as the client."""

from __future__ import annotations

import gevent
import pytest
from gevent import socket
from geventwebsocket.exceptions import WebSocketError
from geventwebsocket.websocket import WebSocket
from websockets.client import ClientProtocol
from websockets.frames import Opcode
from websockets.protocol import OPEN
from websockets.uri import parse_uri

from fastpath.frames import OP_CLOSE, Decoder, encode_close, encode_frame
from gateway.relay.link import CarrierFault
from gateway.relay.websocket import UnitSocket

KEY = b"abcd"


@pytest.fixture
def ends():
    """(server's socket, client's socket)"""
    ours, theirs = socket.socketpair()
    yield ours, theirs
    ours.close()
    theirs.close()


class Client:
    """`websockets` without its handshake, over a socket."""

    def __init__(self, sock):
        self.sock = sock
        self.protocol = ClientProtocol(parse_uri("ws://test/"), state=OPEN)

    def send(self):
        for data in self.protocol.data_to_send():
            if data:
                self.sock.sendall(data)

    def receive(self):
        self.protocol.receive_data(self.sock.recv(200_000))
        return self.protocol.events_received()


def test_it_is_a_gevent_websocket(ends):
    assert isinstance(UnitSocket(ends[0], b"", 1000), WebSocket)


@pytest.mark.parametrize("size", [0, 125, 126, 65_535, 65_536])
def test_messages_there_and_back(ends, size):
    server, client = UnitSocket(ends[0], b"", 100_000), Client(ends[1])
    client.protocol.send_binary(bytes(size))
    client.send()
    assert server.receive() == bytes(size)
    server.send(bytes(size))
    received = []
    while not received:
        received = client.receive()
    assert (received[0].opcode, received[0].data) == (Opcode.BINARY, bytes(size))


def test_text_and_fragments(ends):
    server, client = UnitSocket(ends[0], b"", 1000), Client(ends[1])
    client.protocol.send_text("Gr\u00fc".encode(), fin=False)
    client.protocol.send_continuation("\u00dfe".encode(), fin=True)
    client.send()
    assert server.receive() == "Gr\u00fc\u00dfe"
    server.send("Gr\u00fc\u00dfe")
    assert client.receive()[0].opcode == Opcode.TEXT


def test_bytes_that_came_with_the_handshake_come_first(ends):
    server = UnitSocket(ends[0], encode_frame(2, b"one", KEY) + encode_frame(2, b"two", KEY)[:3], 1000)
    ends[1].sendall(encode_frame(2, b"two", KEY)[3:])
    assert server.read() == [b"one"]
    assert server.read() == [b"two"]


def test_whoever_writes_waits_for_whom_is_writing(ends):
    """Two callers of `send`, what a link writes meanwhile, and the end: each message whole, in order, and no error."""
    server, large = UnitSocket(ends[0], b"", 1_000_000), 900_000
    senders = [gevent.spawn(server.send, name * large) for name in (b"a", b"b")]
    gevent.sleep(0)
    assert server.write_now([b"c"]) is False
    senders += [gevent.spawn(server.write, [b"d"]), gevent.spawn(server.close, 1000, "done")]
    decoder, received = Decoder(masked=False, max_bytes=large), []
    with gevent.Timeout(10):
        while data := ends[1].recv(65_536):
            received += decoder.feed(data)
    assert decoder.error is None
    assert [(payload[:1], len(payload)) for _, payload in received[:-1]] == [
        (b"a", large), (b"c", 1), (b"b", large), (b"d", 1)
    ]  # fmt: skip
    assert received[-1] == (OP_CLOSE, b"\x03\xe8done")
    gevent.joinall(senders, timeout=3, raise_error=True)


def test_the_end_does_not_wait_for_a_writer_whose_peer_rests(ends):
    server = UnitSocket(ends[0], b"", 10_000_000)
    sender = gevent.spawn(server.send, bytes(9_000_000))
    gevent.sleep(0)
    with gevent.Timeout(5):
        server.close()
        sender.join()
    assert isinstance(sender.exception, WebSocketError)


def test_pings_are_answered_by_the_writer(ends):
    server, client = UnitSocket(ends[0], b"", 1000), Client(ends[1])
    client.protocol.send_ping(b"now")
    client.send()
    assert server.read() == []
    assert server.has_replies()
    server.write([b"message"])
    assert [event.opcode for event in client.receive()] == [Opcode.PONG, Opcode.BINARY]


def test_a_flood_of_pings_is_bounded(ends):
    server = UnitSocket(ends[0], encode_frame(9, b"x", KEY) * 500, 1000)
    server.read()
    server.write([])
    assert len(ends[1].recv(65_536)) == 64 * 3


def test_the_latest_ping_is_answered(ends):
    server = UnitSocket(ends[0], b"".join(encode_frame(9, b"%d" % i, KEY) for i in range(500)), 10_000)
    server.read()
    server.write([])
    assert ends[1].recv(65_536).endswith(b"499")


def test_what_came_before_a_fault_is_read(ends):
    one = encode_frame(2, b"one", KEY)
    for fault in (encode_frame(1, b"text", KEY), b"\xff\xff"):
        server = UnitSocket(ends[0], one + fault, 1000)
        assert server.read() == [b"one"]
        with pytest.raises(CarrierFault):
            server.read()


@pytest.mark.parametrize(("received", "answered"), [(1001, 1001), (4321, 4321), (1010, 1000), (None, None)])
def test_a_close_frame_is_answered_with_its_code(ends, received, answered):
    server = UnitSocket(
        ends[0], encode_frame(8, b"", KEY) if received is None else encode_close(received, "", KEY), 1000
    )
    assert server.read() is None
    server.close(1013, "ours")
    expected = encode_frame(8, b"") if answered is None else encode_close(answered)
    assert ends[1].recv(100) == expected


@pytest.mark.parametrize("code", [1000, 1001, 1012, 1013, 1014, 3000, 4999])
def test_close_codes_of_the_peer(ends, code):
    server = UnitSocket(ends[0], encode_close(code, "bye", KEY), 1000)
    assert server.read() is None
    assert server.close_received == (code, "bye")
    assert server.receive() is None


def test_our_close(ends):
    server, client = UnitSocket(ends[0], b"", 1000), Client(ends[1])
    server.close(1013, "later")
    server.close()
    client.receive()
    assert (client.protocol.close_rcvd.code, client.protocol.close_rcvd.reason) == (1013, "later")
    assert ends[1].recv(10) == b""
    with pytest.raises(WebSocketError):
        server.send(b"x")
    with pytest.raises(WebSocketError):
        server.receive()


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (encode_frame(2, b"x"), 1002),
        (encode_frame(1, b"text", KEY), 1003),
        (encode_frame(2, bytes(1001), KEY), 1009),
        (encode_frame(1, b"\xff", KEY), 1007),
    ],
    ids=["unmasked", "text", "large", "utf-8"],
)
def test_faults_have_their_close_code(ends, data, code):
    server = UnitSocket(ends[0], data, 1000)
    with pytest.raises(CarrierFault) as caught:
        server.read()
    assert caught.value.close_code == code


def test_end_of_stream(ends):
    server = UnitSocket(ends[0], encode_frame(2, b"part", KEY)[:4], 1000)
    ends[1].close()
    assert server.read() is None


def test_a_collected_object_writes_nothing(ends):
    UnitSocket(ends[0], b"", 1000).__del__()
    ends[1].settimeout(0.005)
    with pytest.raises(TimeoutError):
        ends[1].recv(1)

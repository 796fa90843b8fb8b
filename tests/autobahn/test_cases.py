"""What Autobahn's fuzzing client asks in its cases 1 to 7 and 10, asked here with `websockets` as the client.

The ids begin with Autobahn's case numbers. `make autobahn` runs the original where Python 2.7 has it.
"""

from __future__ import annotations

import struct
from typing import Any

import pytest
from gevent import socket
from gevent.server import StreamServer
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.uri import parse_uri

from fastpath.frames import encode_frame
from tests.autobahn.echo_server import serve

KEY = b"\x01\xfe\x80\x7f"
TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10


@pytest.fixture(scope="module")
def port():
    server = StreamServer(("127.0.0.1", 0), serve)
    server.start()
    yield server.server_port
    server.stop(timeout=0.1)


def f(opcode: int, payload: bytes = b"", fin: bool = True) -> bytes:
    return encode_frame(opcode, payload, KEY, fin)


def close(code: int | None = 1000, reason: bytes = b"") -> bytes:
    return f(CLOSE, b"" if code is None else struct.pack("!H", code) + reason)


def strange(first: int, second: int = 0x80, rest: bytes = KEY) -> bytes:
    return bytes((first, second)) + rest


class Client:
    """`websockets` as a strict reader of all that the server says; what we send may be wrong on purpose."""

    def __init__(self, port: int) -> None:
        self.protocol = ClientProtocol(parse_uri(f"ws://127.0.0.1:{port}/"))
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=5)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.protocol.send_request(self.protocol.connect())
        for data in self.protocol.data_to_send():
            self.sock.sendall(data)
        self.messages: list[tuple[int, bytes]] = []
        self._parts: list[Frame] = []

    def run(self, chunks: list[bytes]) -> None:
        for chunk in chunks:
            self.sock.sendall(chunk)
        while data := self.sock.recv(65_536):
            self.protocol.receive_data(data)
            for event in self.protocol.events_received():
                if isinstance(event, Frame):
                    self._take(event)
        self.protocol.receive_eof()
        self.sock.close()

    def _take(self, frame: Frame) -> None:
        if frame.opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.PONG):
            assert frame.fin
            self.messages.append((int(frame.opcode), bytes(frame.data)))

    @property
    def close(self) -> int | None:
        received = self.protocol.close_rcvd
        return None if received is None else received.code


def chopped(data: bytes, size: int) -> list[bytes]:
    return [data[i : i + size] for i in range(0, len(data), size)]


def case(name: str, sent: list[bytes], messages: list[tuple[int, bytes]], code: int | None = 1000) -> Any:
    return pytest.param(sent, messages, code, id=name)


def done(*parts: bytes) -> list[bytes]:
    return [*parts, close()]


def sizes() -> list[Any]:
    cases = []
    for kind, opcode in ((1, TEXT), (2, BINARY)):
        filler = b"*" if opcode == TEXT else b"\xfe"
        for i, size in enumerate((0, 125, 126, 127, 128, 65_535, 65_536), 1):
            payload = filler * size
            cases.append(case(f"1.{kind}.{i}", done(f(opcode, payload)), [(opcode, payload)]))
        payload = filler * 65_536
        cases.append(case(f"1.{kind}.8", done(*chopped(f(opcode, payload), 997)), [(opcode, payload)]))
    return cases


def pings() -> list[Any]:
    ten = [f"payload-{i}".encode() for i in range(10)]
    binary = b"\x00\xff\xfe\xfd\xfc\xfb\x00\xff"
    return [
        case("2.1", done(f(PING)), [(PONG, b"")]),
        case("2.2", done(f(PING, b"Hello, world!")), [(PONG, b"Hello, world!")]),
        case("2.3", done(f(PING, binary)), [(PONG, binary)]),
        case("2.4", done(f(PING, b"\xfe" * 125)), [(PONG, b"\xfe" * 125)]),
        case("2.5", [strange(0x89, 0xFE, b"\x00\x7e" + KEY + bytes(126))], [], 1002),
        case("2.6", done(*chopped(f(PING, b"\xfe" * 125), 1)), [(PONG, b"\xfe" * 125)]),
        case("2.7", done(f(PONG)), []),
        case("2.8", done(f(PONG, b"unsolicited")), []),
        case("2.9", done(f(PONG, b"unsolicited"), f(PING, b"p")), [(PONG, b"p")]),
        case("2.10", done(b"".join(f(PING, p) for p in ten)), [(PONG, p) for p in ten]),
        case("2.11", done(*(c for p in ten for c in chopped(f(PING, p), 1))), [(PONG, p) for p in ten]),
    ]


def reserved() -> list[Any]:
    hello, echoed = f(TEXT, b"Hello"), (TEXT, b"Hello")
    cases = [
        case("3.1", [strange(0x91)], [], 1002),
        case("3.2", [hello, strange(0xA1), f(PING)], [echoed], 1002),
        case("3.3", [hello + strange(0xB1) + f(PING)], [echoed], 1002),
        case("3.4", chopped(hello + strange(0xC1) + f(PING), 1), [echoed], 1002),
        case("3.5", [strange(0xD2, 0x88, KEY + bytes(8))], [], 1002),
        case("3.6", [strange(0xE9)], [], 1002),
        case("3.7", [strange(0xF8)], [], 1002),
    ]
    for group, opcodes in ((1, (3, 4, 5, 6, 7)), (2, (11, 12, 13, 14, 15))):
        for i, opcode in enumerate(opcodes, 1):
            cases.append(case(f"4.{group}.{i}", [strange(0x80 | opcode)], [], 1002))
            sent = [hello, strange(0x80 | opcode, 0x83, KEY + b"abc"), f(PING)]
            cases.append(case(f"4.{group}.{i}-after-text", sent, [echoed], 1002))
    return cases


def fragments() -> list[Any]:
    one, two = f(TEXT, b"one", False), f(0, b"two")
    whole, pong = (TEXT, b"onetwo"), (PONG, b"p")
    more = [f(0, b"%d" % i, False) for i in range(3)]
    return [
        case("5.1", [strange(0x09, 0x83, KEY + b"abc"), f(0, b"x")], [], 1002),
        case("5.2", [strange(0x0A, 0x83, KEY + b"abc"), f(0, b"x")], [], 1002),
        case("5.3", done(one, two), [whole]),
        case("5.4", done(one + two), [whole]),
        case("5.5", done(*chopped(one + two, 1)), [whole]),
        case("5.6", done(one, f(PING, b"p"), two), [pong, whole]),
        case("5.7", done(one + f(PING, b"p") + two), [pong, whole]),
        case("5.8", done(*chopped(one + f(PING, b"p") + two, 1)), [pong, whole]),
        case("5.9", [f(0, b"x"), f(TEXT, b"Hello")], [], 1002),
        case("5.10", [f(0, b"x") + f(TEXT, b"Hello")], [], 1002),
        case("5.11", chopped(f(0, b"x") + f(TEXT, b"Hello"), 1), [], 1002),
        case("5.12", [f(0, b"x", False), f(TEXT, b"Hello")], [], 1002),
        case("5.13", [f(0, b"x", False) + f(TEXT, b"Hello")], [], 1002),
        case("5.14", chopped(f(0, b"x", False) + f(TEXT, b"Hello"), 1), [], 1002),
        case("5.15", [one, two, f(0, b"3", False), f(TEXT, b"4")], [whole], 1002),
        case("5.16", [f(0, b"1", False), f(TEXT, b"2", False), f(0, b"3")], [], 1002),
        case("5.17", [f(0, b"1"), f(TEXT, b"2", False), f(0, b"3")], [], 1002),
        case("5.18", [one, f(TEXT, b"two")], [], 1002),
        case("5.19", done(one, *more, f(PING, b"p"), *more, f(PING, b"p"), two), [pong, pong, (TEXT, b"one012012two")]),
        case("5.20", done(b"".join([one, *more, f(PING, b"p"), two])), [pong, (TEXT, b"one012two")]),
    ]


GREEK = "\u03ba\u1f79\u03c3\u03bc\u03b5".encode()
VALID = {
    "6.5": GREEK, "6.7.1": b"\x00", "6.7.2": b"\xc2\x80", "6.7.3": b"\xe0\xa0\x80", "6.7.4": b"\xf0\x90\x80\x80",
    "6.9.1": b"\x7f", "6.9.2": b"\xdf\xbf", "6.9.3": b"\xef\xbf\xbf", "6.9.4": b"\xf4\x8f\xbf\xbf",
    "6.11.1": b"\xed\x9f\xbf", "6.11.2": b"\xee\x80\x80", "6.11.3": b"\xef\xbf\xbd", "6.11.4": b"\xf4\x8f\xbf\xbf",
    "6.22.1": b"\xef\xbf\xbe", "6.22.2": b"\xef\xbf\xbf", "6.22.3": b"\xf0\x9f\xbf\xbe", "6.23.1": b"\xef\xbf\xbd",
}  # fmt: skip
INVALID = {
    "6.3": GREEK + b"\xed\xa0\x80edited", "6.4": GREEK + b"\xf4\x90\x80\x80edited",
    "6.6.1": b"\xce", "6.6.3": b"\xce\xba\xe1", "6.6.4": b"\xce\xba\xe1\xbd", "6.6.6": GREEK[:-1],
    "6.8.1": b"\xf8\x88\x80\x80\x80", "6.8.2": b"\xfc\x84\x80\x80\x80\x80", "6.10.1": b"\xf7\xbf\xbf\xbf",
    "6.10.2": b"\xfb\xbf\xbf\xbf\xbf", "6.10.3": b"\xfd\xbf\xbf\xbf\xbf\xbf", "6.11.5": b"\xf4\x90\x80\x80",
    "6.12.1": b"\x80", "6.12.2": b"\xbf", "6.12.3": b"\x80\xbf", "6.12.8": bytes(range(0x80, 0xC0)),
    "6.13.1": b" ".join(bytes([c]) for c in range(0xC0, 0xE0)), "6.13.5": b"\xfc ",
    "6.14.1": b"\xc0", "6.14.2": b"\xe0\x80", "6.14.6": b"\xdf", "6.14.7": b"\xef\xbf", "6.15": b"\xc0\xe0\x80\xf0",
    "6.16.1": b"\xfe", "6.16.2": b"\xff", "6.17.1": b"\xc0\xaf", "6.17.2": b"\xe0\x80\xaf",
    "6.17.3": b"\xf0\x80\x80\xaf", "6.18.1": b"\xc1\xbf", "6.18.2": b"\xe0\x9f\xbf", "6.18.3": b"\xf0\x8f\xbf\xbf",
    "6.19.1": b"\xc0\x80", "6.20.1": b"\xed\xa0\x80", "6.20.2": b"\xed\xad\xbf", "6.20.7": b"\xed\xbf\xbf",
    "6.21.1": b"\xed\xa0\x80\xed\xb0\x80", "6.21.8": b"\xed\xaf\xbf\xed\xbf\xbf",
}  # fmt: skip


def utf8() -> list[Any]:
    cases = [
        case("6.1.1", done(f(TEXT)), [(TEXT, b"")]),
        case("6.1.2", done(f(TEXT, b"", False), f(0, b"", False), f(0)), [(TEXT, b"")]),
        case("6.1.3", done(f(TEXT, b"", False), f(0, b"middle", False), f(0)), [(TEXT, b"middle")]),
        case("6.2.3", done(*_in_bytes(GREEK)), [(TEXT, GREEK)]),
        case("6.2.4", done(f(TEXT, GREEK[:1], False), f(0, GREEK[1:])), [(TEXT, GREEK)]),
        # Told before the message is whole: nothing more is sent.
        case("6.4.1", [f(TEXT, GREEK, False), f(0, b"\xf4\x90", False)], [], 1007),
        case("6.4.2", [f(TEXT, GREEK + b"\xf4", False), f(0, b"\x90", False)], [], 1007),
    ]
    for name, payload in VALID.items():
        cases.append(case(name, done(f(TEXT, payload)), [(TEXT, payload)]))
        cases.append(case(f"{name}-in-bytes", done(*_in_bytes(payload)), [(TEXT, payload)]))
    for name, payload in INVALID.items():
        cases.append(case(name, [f(TEXT, payload)], [], 1007))
        cases.append(case(f"{name}-in-bytes", [b"".join(_in_bytes(payload))], [], 1007))
    return cases


def _in_bytes(payload: bytes) -> list[bytes]:
    return [f(TEXT, payload[:1], False), *(f(0, payload[i : i + 1], False) for i in range(1, len(payload))), f(0)]


def closing() -> list[Any]:
    hello, echoed = f(TEXT, b"Hello World!"), (TEXT, b"Hello World!")
    long = b"*" * 262_144
    cases = [
        case("7.1.1", [hello, close()], [echoed]),
        case("7.1.2", [close() + close()], []),
        case("7.1.3", [close() + f(PING)], []),
        case("7.1.4", [close() + hello], []),
        case("7.1.5", [f(TEXT, b"part", False) + close() + f(0, b"end")], []),
        case("7.1.6", [f(TEXT, long), hello, close(), f(PING)], [(TEXT, long), echoed]),
        case("7.3.1", [close(None)], [], 1005),
        case("7.3.2", [f(CLOSE, b"a")], [], 1002),
        case("7.3.3", [close()], []),
        case("7.3.4", [close(1000, b"Hello World!")], []),
        case("7.3.5", [close(1000, b"*" * 123)], []),
        case("7.3.6", [strange(0x88, 0xFE, b"\x00\x7e" + KEY + bytes(126))], [], 1002),
        case("7.5.1", [close(1000, GREEK + b"\xed\xa0\x80edited")], [], 1007),
        case("7.10-answer-of-a-server", [close(1010)], [], 1000),
    ]
    may = (1000, 1001, 1002, 1003, 1007, 1008, 1009, 1011, 1012, 1013, 1014, 3000, 3999, 4000, 4999)
    may_not = (0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65_535)
    cases += [case(f"7.7.{code}", [close(code)], [], code) for code in may]
    return cases + [case(f"7.9.{code}", [close(code)], [], 1002) for code in may_not]


def others() -> list[Any]:
    payload = b"*" * 65_536
    pieces = chopped(payload, 1_300)
    sent = [f(TEXT, pieces[0], False), *(f(0, p, False) for p in pieces[1:-1]), f(0, pieces[-1])]
    return [
        case("10.1.1", done(*sent), [(TEXT, payload)]),
        case("mask-missing", [encode_frame(TEXT, b"Hello")], [], 1002),
        case("mask-missing-in-a-fragment", [f(TEXT, b"a", False), encode_frame(0, b"b")], [], 1002),
        case("length-not-minimal", [strange(0x82, 0xFE, b"\x00\x01" + KEY + b"x")], [], 1002),
        case("length-of-64-bits", [strange(0x82, 0xFF, b"\xff" * 8 + KEY)], [], 1002),
        case("over-the-maximum", [strange(0x82, 0xFF, struct.pack("!Q", 1 << 25) + KEY)], [], 1009),
        case("over-the-maximum-in-fragments", [f(BINARY, bytes(1 << 24), False), f(0, b"x")], [], 1009),
    ]


@pytest.mark.parametrize(
    ("sent", "messages", "code"),
    [*sizes(), *pings(), *reserved(), *fragments(), *utf8(), *closing(), *others()],
)
def test_case(port, sent, messages, code):
    """The right messages in the right order, the right close code, and a clean end."""
    client = Client(port)
    client.run(sent)
    assert client.messages == messages
    assert client.close == code
    assert client.protocol.parser_exc is None

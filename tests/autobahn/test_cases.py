"""What Autobahn's fuzzing client asks in its cases 1 to 7 and 10, asked here with `websockets` as the client.

The ids are Autobahn's case numbers; what follows `-` after one, and ids without one, are ours. `make autobahn` runs
the original where Python 2.7 has it.
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
from tests.autobahn.utf8_sequences import GREEK, SECTIONS, valid

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


SPOILT = GREEK + b"\xf4\x90\x80\x80" + b"edited"
"""Invalid from the 13th byte on: 0xF4 may be followed by less than 0x90."""


def utf8() -> list[Any]:
    hello = "Hello-\u00b5@\u00df\u00f6\u00e4".encode(), "\u00fc\u00e0\u00e1-UTF-8!!".encode()
    whole = b"".join(hello)
    surrogate = GREEK + b"\xed\xa0\x80edited"
    return [
        case("6.1.1", done(f(TEXT)), [(TEXT, b"")]),
        case("6.1.2", done(f(TEXT, b"", False), f(0, b"", False), f(0)), [(TEXT, b"")]),
        case("6.1.3", done(f(TEXT, b"", False), f(0, b"middle", False), f(0)), [(TEXT, b"middle")]),
        case("6.2.1", done(f(TEXT, whole)), [(TEXT, whole)]),
        case("6.2.2", done(f(TEXT, hello[0], False), f(0, hello[1])), [(TEXT, whole)]),
        case("6.2.3", done(*_in_bytes(whole)), [(TEXT, whole)]),
        case("6.2.4", done(*_in_bytes(GREEK)), [(TEXT, GREEK)]),
        case("6.3.1", [f(TEXT, surrogate)], [], 1007),
        case("6.3.2", [b"".join(_in_bytes(surrogate))], [], 1007),
        # Told before the message is whole: nothing more is sent.
        case("6.4.1", [f(TEXT, SPOILT[:11], False), f(0, SPOILT[11:15], False)], [], 1007),
        case("6.4.2", [f(TEXT, SPOILT[:12], False), f(0, SPOILT[12:13], False)], [], 1007),
        # A frame is looked at when it is whole: its pieces are only pieces.
        case("6.4.3", _cut(f(TEXT, SPOILT), 11, 15), [], 1007),
        case("6.4.4", _cut(f(TEXT, SPOILT), 12, 13), [], 1007),
    ]


def _cut(frame: bytes, *at: int) -> list[bytes]:
    """Three pieces of a small masked frame, cut at these places of its payload."""
    first, second = (6 + place for place in at)
    return [frame[:first], frame[first:second], frame[second:]]


def sequences() -> list[Any]:
    """6.5.1 to 6.23.7, whole and in fragments of a byte."""
    cases = []
    for section, payloads in SECTIONS.items():
        for i, payload in enumerate(payloads, 1):
            name, in_bytes = f"6.{section}.{i}", _in_bytes(payload)
            if valid(payload):
                cases.append(case(name, done(f(TEXT, payload)), [(TEXT, payload)]))
                cases.append(case(f"{name}-in-bytes", done(*in_bytes), [(TEXT, payload)]))
            else:
                cases.append(case(name, [f(TEXT, payload)], [], 1007))
                cases.append(case(f"{name}-in-bytes", [b"".join(in_bytes)], [], 1007))
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
    ]
    may = (1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999)
    may_not = (0, 999, 1004, 1005, 1006, 1016, 1100, 2000, 2999)
    # A server may not say 1010.
    cases += [case(f"7.7.{i}", [close(code)], [], 1000 if code == 1010 else code) for i, code in enumerate(may, 1)]
    cases += [case(f"7.9.{i}", [close(code)], [], 1002) for i, code in enumerate(may_not, 1)]
    cases += [case(f"7.13.{i}", [close(code)], [], 1002) for i, code in enumerate((5000, 65_535), 1)]
    cases += [case(f"close-{code}", [close(code)], [], code) for code in (1012, 1013, 1014)]
    return [*cases, case("close-1015", [close(1015)], [], 1002)]


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


CASES = [*sizes(), *pings(), *reserved(), *fragments(), *utf8(), *sequences(), *closing(), *others()]

COUNTS = {"1.1": 8, "1.2": 8, "4.1": 5, "4.2": 5, "6.1": 3, "6.2": 4, "6.3": 2, "6.4": 4, "6.5": 5, "6.6": 11,
          "6.7": 4, "6.8": 2, "6.9": 4, "6.10": 3, "6.11": 5, "6.12": 8, "6.13": 5, "6.14": 10, "6.15": 1, "6.16": 3,
          "6.17": 5, "6.18": 5, "6.19": 5, "6.20": 7, "6.21": 8, "6.22": 34, "6.23": 7, "7.1": 6, "7.3": 6, "7.5": 1,
          "7.7": 13, "7.9": 9, "7.13": 2, "10.1": 1, "2": 11, "3": 7, "5": 20}  # fmt: skip
"""How many cases Autobahn has in each group of 1 to 7 and 10."""


def test_every_case_is_here():
    names = {param.id for param in CASES}
    assert {f"{group}.{i}" for group, count in COUNTS.items() for i in range(1, count + 1)} - names == set()


@pytest.mark.parametrize(("sent", "messages", "code"), CASES)
def test_case(port, sent, messages, code):
    """The right messages in the right order, the right close code, and a clean end."""
    client = Client(port)
    client.run(sent)
    assert client.messages == messages
    assert client.close == code
    assert client.protocol.parser_exc is None

"""A client that speaks HTTP/2 frame by frame, so that it can say what no library would."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass, field
from typing import Any

from hpack import Decoder, Encoder

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST, SETTINGS, PUSH, PING, GOAWAY, WINDOW, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS, PADDED = 1, 1, 4, 8

Fields = list[tuple[bytes, bytes]]


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def request(path: bytes = b"/", method: bytes = b"GET", *more: tuple[bytes, bytes]) -> Fields:
    return [
        (b":method", method), (b":scheme", b"https"), (b":authority", b"gw.example"), (b":path", path), *more,
    ]  # fmt: skip


@dataclass
class Answer:
    """What came on one stream; `reset` is the code of RST_STREAM."""

    status: int = 0
    informational: list[int] = field(default_factory=list)
    fields: dict[bytes, bytes] = field(default_factory=dict)
    body: bytes = b""
    ended: bool = False
    reset: int | None = None

    @property
    def over(self) -> bool:
        return self.ended or self.reset is not None


class Client:
    """`credit` says whether it gives back windows for what it receives; `mute` stops it from acknowledging settings."""

    def __init__(self, sock: socket.socket, settings: dict[int, int] | None = None, credit: bool = True) -> None:
        self.sock = sock
        self.encoder = Encoder()
        self.decoder = Decoder()
        self.credit = credit
        self.answers: dict[int, Answer] = {}
        self.settings: dict[int, int] = {}
        self.goaway: tuple[int, int] | None = None
        self.pongs: list[bytes] = []
        self.windows: dict[int, int] = {}
        self.ended = False
        self.mute = False
        self.next_id = 1
        self._data = b""
        payload = b"".join(struct.pack(">HI", *pair) for pair in (settings or {}).items())
        self.sock.sendall(PREFACE + frame(SETTINGS, payload=payload))

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def ask(self, fields: Fields, body: bytes | None = None, end: bool = True) -> int:
        """Send a request; `body` None means that none follows. Returns the stream's id."""
        stream, self.next_id = self.next_id, self.next_id + 2
        data = self.block(stream, fields, END_STREAM if body is None and end else 0)
        if body is not None:
            pieces = [body[i : i + 16_384] for i in range(0, len(body), 16_384)] or [b""]
            for number, piece in enumerate(pieces):
                last = end and number == len(pieces) - 1
                data += frame(DATA, END_STREAM if last else 0, stream, piece)
        self.send(data)
        return stream

    def block(self, stream: int, fields: Fields, flags: int = END_STREAM) -> bytes:
        """HEADERS, with as many CONTINUATION as it takes."""
        block = self.encoder.encode([*fields], huffman=False)
        pieces = [block[i : i + 16_384] for i in range(0, len(block), 16_384)] or [b""]
        out = b""
        for number, piece in enumerate(pieces):
            last = END_HEADERS if number == len(pieces) - 1 else 0
            out += frame(CONTINUATION, last, stream, piece) if number else frame(HEADERS, flags | last, stream, piece)
        return out

    def of(self, stream: int) -> Answer:
        return self.answers.setdefault(stream, Answer())

    def wait(self, stream: int) -> Answer:
        """The whole answer, or as much as came before the stream or the connection ended."""
        while not self.of(stream).over and self.read():
            pass
        return self.of(stream)

    def get(self, fields: Fields, body: bytes | None = None) -> Answer:
        return self.wait(self.ask(fields, body))

    def wait_end(self) -> None:
        while self.read():
            pass

    def read(self) -> bool:
        """Take in more; False at the end of the connection."""
        try:
            piece = self.sock.recv(65_536)
        except (ConnectionError, OSError) as error:
            if isinstance(error, TimeoutError):
                raise
            piece = b""
        if not piece:
            self.ended = True
            return False
        self._data += piece
        while len(self._data) >= 9:
            size = 9 + int.from_bytes(self._data[:3], "big")
            if len(self._data) < size:
                break
            one, self._data = self._data[:size], self._data[size:]
            self._take(one[3], one[4], int.from_bytes(one[5:9], "big"), one[9:])
        return True

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == HEADERS:
            self._take_head(stream, payload)
        elif kind == DATA:
            self.of(stream).body += payload
            if self.credit and payload:
                self.grant(stream, len(payload))
        elif kind == RST:
            self.of(stream).reset = int.from_bytes(payload, "big")
        elif kind == SETTINGS and not flags & ACK:
            self.settings.update(struct.iter_unpack(">HI", payload))
            if not self.mute:
                self._try(frame(SETTINGS, ACK))
        elif kind == PING and flags & ACK:
            self.pongs.append(payload)
        elif kind == GOAWAY:
            self.goaway = (int.from_bytes(payload[:4], "big"), int.from_bytes(payload[4:8], "big"))
        elif kind == WINDOW:
            self.windows[stream] = self.windows.get(stream, 0) + int.from_bytes(payload, "big")
        if kind in (HEADERS, DATA) and flags & END_STREAM:
            self.of(stream).ended = True

    def _take_head(self, stream: int, payload: bytes) -> None:
        decoded: list[Any] = self.decoder.decode(payload, raw=True)
        fields = dict(decoded)
        status = int(fields[b":status"])
        if status < 200:
            self.of(stream).informational.append(status)
            return
        self.of(stream).status = status
        self.of(stream).fields = fields

    def grant(self, stream: int, size: int) -> None:
        payload = size.to_bytes(4, "big")
        self._try(frame(WINDOW, 0, 0, payload) + frame(WINDOW, 0, stream, payload))

    def _try(self, data: bytes) -> None:
        try:
            self.send(data)
        except OSError:
            pass

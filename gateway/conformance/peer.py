"""The gateway's side of one connection, played by hand: every frame is kept, none is answered unless a rule says so."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import queue
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from fastpath.frames import OP_BINARY, OP_CLOSE, OP_PING, OP_PONG, Decoder, decode_close, encode_close, encode_frame
from gateway.relay import frames as fr
from gateway.relay.decoding import decode

MAX_FRAME = 16_384
STREAM_WINDOW = 65_536
CONN_WINDOW = 262_144
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"

F = TypeVar("F")


class Broken(Exception):
    """The agent broke the rule that is being looked at; the text says how."""


@dataclass(slots=True)
class Handshake:
    """The agent's request to connect. Shapes: `fields` are lower-case names, each with all its values."""

    line: str
    fields: dict[str, list[str]]

    def one(self, name: str) -> str:
        values = self.fields.get(name, [])
        if len(values) != 1:
            raise Broken(f"{name} comes {len(values)} times in the handshake")
        return values[0]


class Peer:
    """One connection of the agent. Frames wait in `inbox`; `over` is set when the connection has ended."""

    def __init__(self, sock: socket.socket, welcome: dict[str, Any]) -> None:
        self.sock = sock
        self.inbox: queue.Queue[object] = queue.Queue()
        self.over = threading.Event()
        self.fault = ""
        self.hello: fr.Hello | None = None
        self.close_code: int | None = None
        self.first_s = 0.0
        self.opened_s = time.monotonic()
        self.pongs: list[bytes] = []
        self.masks: set[bytes] = set()
        self._welcome = welcome
        self._stream = -1
        self._lock = threading.Lock()
        self.handshake, rest = _read_handshake(sock)
        self._upgrade()
        threading.Thread(target=self._read, args=(rest,), daemon=True).start()

    def _upgrade(self) -> None:
        key = self.handshake.one("sec-websocket-key").encode()
        accept = base64.b64encode(hashlib.sha1(key + _GUID, usedforsecurity=False).digest())
        self.sock.sendall(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Protocol: caregate.relay.v1\r\nSec-WebSocket-Accept: " + accept + b"\r\n\r\n"
        )

    # --- what arrives

    def _read(self, data: bytes) -> None:
        decoder = Decoder(masked=True, max_bytes=MAX_FRAME if self.hello else fr.MAX_FRAME_BYTES)
        try:
            while True:
                for opcode, payload in decoder.feed(data) if data else []:
                    self._take(opcode, payload)
                if decoder.error is not None:
                    raise Broken(f"WebSocket: {decoder.error}")
                data = self.sock.recv(65_536)
                if not data:
                    break
        except (Broken, fr.ProtocolViolation) as error:
            self.fault = self.fault or str(error)
        except OSError:
            pass
        self.over.set()
        self.inbox.put(None)

    def _take(self, opcode: int, payload: Any) -> None:
        if opcode == OP_PING:
            self.raw(encode_frame(OP_PONG, payload))
        elif opcode == OP_PONG:
            self.pongs.append(payload)
        elif opcode == OP_CLOSE:
            self.close_code = decode_close(payload)[0]
        elif opcode != OP_BINARY:
            raise Broken("a text message")
        else:
            self._take_frame(decode(payload), len(payload))

    def _take_frame(self, frame: object, size: int) -> None:
        if self.hello is None:
            if not isinstance(frame, fr.Hello):
                raise Broken("the first message is not HELLO")
            self.hello, self.first_s = frame, time.monotonic() - self.opened_s
            self.send(fr.Welcome(**self._welcome))
        elif size > MAX_FRAME:
            raise Broken(f"a frame of {size} bytes, {MAX_FRAME} were agreed")
        if isinstance(frame, fr.Ping):
            self.send(fr.Pong(frame.opaque))
        elif isinstance(frame, fr.Token):
            self.send(fr.TokenOk(int(time.time()) + 300))
        self.inbox.put(frame)

    # --- what a rule asks for

    def expect(self, kind: type[F], stream: int | None = None, within_s: float = 3.0) -> F:
        """The next frame of that type, and stream. Raises: Broken for another one of the stream, or none in time."""
        until_s = time.monotonic() + within_s
        while True:
            frame = self._next(until_s, kind.__name__)
            if isinstance(frame, kind) and stream in (None, getattr(frame, "stream", None)):
                return frame
            if stream is not None and getattr(frame, "stream", None) == stream and not isinstance(frame, fr.Window):
                raise Broken(f"{type(frame).__name__} came where {kind.__name__} was due")

    def first_of(self, kinds: tuple[type, ...], within_s: float = 3.0) -> Any:
        """The next frame of one of these types, whatever else comes before it. Raises: Broken."""
        until_s = time.monotonic() + within_s
        while True:
            frame = self._next(until_s, " or ".join(kind.__name__ for kind in kinds))
            if isinstance(frame, kinds):
                return frame

    def _next(self, until_s: float, what: str) -> object:
        try:
            frame = self.inbox.get(timeout=max(0.001, until_s - time.monotonic()))
        except queue.Empty:
            raise Broken(f"no {what} in time") from None
        if frame is None:
            self.inbox.put(None)
            raise Broken(self.fault or f"the connection ended where {what} was due")
        return frame

    def silent(self, for_s: float, stream: int) -> None:
        """Raises: Broken if anything of that stream arrives."""
        until_s = time.monotonic() + for_s
        while (left_s := until_s - time.monotonic()) > 0:
            with contextlib.suppress(queue.Empty):
                frame = self.inbox.get(timeout=left_s)
                if getattr(frame, "stream", None) == stream:
                    raise Broken(f"{type(frame).__name__} came too early")

    def expect_end(self, within_s: float = 3.0) -> None:
        """GOAWAY(PROTOCOL), then the end. Raises: Broken."""
        frame = self.expect(fr.GoAway, within_s=within_s)
        if frame.code != fr.GoAwayCode.PROTOCOL:
            raise Broken(f"GOAWAY says {frame.code}, not PROTOCOL")
        if not self.over.wait(within_s):
            raise Broken("the connection goes on after GOAWAY(PROTOCOL)")

    def request(self, target: str, body: bytes = b"", end: bool = True, **options: Any) -> int:
        """Send REQ; the stream's id."""
        method = "POST" if body or not end else "GET"
        fields = [("x-plain", "one"), ("accept", "*/*")]
        request = fr.Request("kit", method, target, fields, len(body) if end and body else None, **options)
        self._stream += 2
        self.send(fr.RequestFrame(self._stream, request, body, end))
        return self._stream

    def answer(self, stream: int, within_s: float = 5.0) -> tuple[fr.Response, bytes]:
        """ACK, RES and the whole body; credit is given back as it comes. Raises: Broken."""
        self.expect(fr.Ack, stream, within_s)
        head = self.expect(fr.ResponseFrame, stream, within_s)
        body, end = head.body, head.end
        self.credit(stream, len(body))
        while not end:
            data = self.expect(fr.Data, stream, within_s)
            body, end = body + data.body, data.end
            self.credit(stream, len(data.body))
        return head.response, body

    def credit(self, stream: int, size: int) -> None:
        if size:
            self.send(fr.Window(0, size))
            self.send(fr.Window(stream, size))

    def send(self, frame: Any) -> None:
        self.raw(encode_frame(OP_BINARY, fr.encode(frame)))

    def raw(self, data: bytes) -> None:
        with self._lock, contextlib.suppress(OSError):
            self.sock.sendall(data)

    def cut(self) -> None:
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)

    def leave(self) -> None:
        """A WebSocket's close, and the end."""
        self.raw(encode_close(1001))
        self.cut()


class Listener:
    """Accepts the agent's connections. Shapes: `welcome` is what WELCOME says besides the defaults."""

    def __init__(self) -> None:
        self.welcome: dict[str, Any] = {}
        self.refuse: Callable[[], bytes | None] = lambda: None
        self.peers: queue.Queue[Peer] = queue.Queue()
        self._all: list[Peer] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        welcome = {
            "conn": "kit",
            "epoch": len(self._all) + 1,
            "max_frame": MAX_FRAME,
            "stream_window": STREAM_WINDOW,
            "conn_window": CONN_WINDOW,
            "token_exp": int(time.time()) + 300,
            **self.welcome,
        }
        try:
            peer = Peer(sock, welcome)
        except (OSError, Broken, ValueError):
            sock.close()
            return
        self._all.append(peer)
        self.peers.put(peer)

    def drop(self) -> None:
        """End every connection, and forget those that wait."""
        for peer in self._all:
            peer.cut()
        self._all.clear()
        with contextlib.suppress(queue.Empty):
            while True:
                self.peers.get_nowait()

    def next(self, within_s: float = 10.0) -> Peer:
        """The next connection that has said HELLO. Raises: Broken."""
        until_s = time.monotonic() + within_s
        try:
            peer = self.peers.get(timeout=within_s)
        except queue.Empty:
            raise Broken("the agent does not connect") from None
        peer.expect(fr.Hello, within_s=max(0.1, until_s - time.monotonic()))
        return peer


def _read_handshake(sock: socket.socket) -> tuple[Handshake, bytes]:
    """Raises: Broken, OSError."""
    sock.settimeout(10)
    data = b""
    while b"\r\n\r\n" not in data:
        piece = sock.recv(65_536)
        if not piece or len(data) > 65_536:
            raise Broken("no handshake")
        data += piece
    sock.settimeout(None)
    head, _, rest = data.partition(b"\r\n\r\n")
    line, *lines = head.decode("latin-1").split("\r\n")
    fields: dict[str, list[str]] = {}
    for text in lines:
        name, _, value = text.partition(":")
        fields.setdefault(name.lower(), []).append(value.strip())
    return Handshake(line, fields), rest

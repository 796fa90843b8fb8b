"""The gateway's side of one connection, played by hand: every frame is kept."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import queue
import socket
import threading
import time
from dataclasses import dataclass
from typing import Any, TypeVar

from fastpath.frames import OP_BINARY, OP_CLOSE, OP_PING, OP_PONG, Decoder, decode_close, encode_frame
from gateway.relay import frames as fr
from gateway.relay.decoding import decode

MAX_FRAME = 16_384
STREAM_WINDOW = 65_536
CONN_WINDOW = 262_144
MAX_STREAMS = 64
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
    """One connection of the agent. Frames wait in `inbox`; `over` is set when the connection has ended.

    Units: `conn_credit` body bytes that may still be sent to the agent. `mute`: nothing is answered by itself.
    """

    def __init__(self, sock: socket.socket, welcome: dict[str, Any]) -> None:
        self.sock = sock
        self.inbox: queue.Queue[object] = queue.Queue()
        self.over = threading.Event()
        self.fault = ""
        self.hello: fr.Hello | None = None
        self.close_code: int | None = None
        self.first_s = 0.0
        self.opened_s = self.sent_s = time.monotonic()
        self.conn_credit = 0
        self.mute = False
        self.pongs: list[bytes] = []
        self.masks: set[bytes] = set()
        self._welcome = welcome
        self.last_stream = -1
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
        decoder = Decoder(masked=True, max_bytes=fr.MAX_FRAME_BYTES)
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
            self._reply(encode_frame(OP_PONG, payload))
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
            self.conn_credit = self.agreed("conn_window")
            self.send(fr.Welcome(**self._welcome))
        elif size > (most := self.agreed("max_frame")):
            raise Broken(f"a frame of {size} bytes, {most} were agreed")
        if isinstance(frame, fr.Ping):
            self._reply(_message(fr.Pong(frame.opaque)))
        elif isinstance(frame, fr.Token):
            self._reply(_message(fr.TokenOk(int(time.time()) + 300)))
        elif isinstance(frame, fr.Window) and frame.stream == 0:
            self.conn_credit += frame.credit
        self.inbox.put(frame)

    def _reply(self, data: bytes) -> None:
        if not self.mute:
            self.raw(data)

    def agreed(self, limit: str) -> int:
        """One of the four limits: the lower of what HELLO and WELCOME say."""
        return int(min(getattr(self.hello, limit), self._welcome[limit]))

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

    def ponged(self, payload: bytes, within_s: float = 2.0) -> bool:
        """Is a WebSocket's ping with that payload answered?"""
        until_s = time.monotonic() + within_s
        while payload not in self.pongs and time.monotonic() < until_s:
            time.sleep(0.01)
        return payload in self.pongs

    def credit_for(self, size: int) -> None:
        """Wait until the connection has credit for so many bytes more. Raises: Broken."""
        while self.conn_credit < size:
            self.first_of((fr.Window,))

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
        self.send(self.new_request(target, body, end, **options))
        return self.last_stream

    def new_request(
        self, target: str, body: bytes = b"", end: bool = True, method: str = "", **options: Any
    ) -> fr.RequestFrame:
        """REQ on the next stream, which is the caller's to send."""
        method = method or ("POST" if body or not end else "GET")
        fields = [("x-plain", "one"), ("accept", "*/*")]
        request = fr.Request("kit", method, target, fields, len(body) if end and body else None, **options)
        self.last_stream += 2
        return fr.RequestFrame(self.last_stream, request, body, end)

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
        self.conn_credit -= len(getattr(frame, "body", b""))
        self.raw(_message(frame))

    def raw(self, data: bytes) -> None:
        with self._lock, contextlib.suppress(OSError):
            self.sent_s = time.monotonic()
            self.sock.sendall(data)

    def cut(self) -> None:
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)


def _message(frame: Any) -> bytes:
    return encode_frame(OP_BINARY, fr.encode(frame))


class Listener:
    """Accepts the agent's connections.

    Shapes: `welcome` is what WELCOME says besides the defaults, `refusal` the status that dials get instead, with its
    reason ("401 Unauthorized"); `refused` has the moment of each.
    """

    def __init__(self) -> None:
        self.welcome: dict[str, Any] = {}
        self.refusal = ""
        self.refused: queue.Queue[float] = queue.Queue()
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
            "max_streams": MAX_STREAMS,
            "stream_window": STREAM_WINDOW,
            "conn_window": CONN_WINDOW,
            "token_exp": int(time.time()) + 300,
            **self.welcome,
        }
        try:
            if self.refusal:
                self._refuse(sock)
                return
            peer = Peer(sock, welcome)
        except (OSError, Broken, ValueError):
            sock.close()
            return
        self._all.append(peer)
        self.peers.put(peer)

    def _refuse(self, sock: socket.socket) -> None:
        came_s = time.monotonic()
        with sock:
            _read_handshake(sock)
            sock.sendall(f"HTTP/1.1 {self.refusal}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
        self.refused.put(came_s)

    def drop(self) -> None:
        """End every connection, and forget those that wait."""
        for peer in self._all:
            peer.cut()
        self._all.clear()
        for waiting in (self.peers, self.refused):
            with contextlib.suppress(queue.Empty):
                while True:
                    waiting.get_nowait()

    def dialled(self, within_s: float) -> float | None:
        """When the next dial that is refused came; None if none does in time."""
        try:
            return self.refused.get(timeout=within_s)
        except queue.Empty:
            return None

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

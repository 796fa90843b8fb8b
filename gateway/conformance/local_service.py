"""The local HTTP service that an agent under test reaches: what it does is in the path, what it saw is kept."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import threading
import time
from dataclasses import dataclass, field
from http.client import parse_headers


@dataclass(slots=True)
class Seen:
    """One request as it arrived. `closed` is set when its connection ended before the answer."""

    method: str
    target: str
    fields: dict[str, str]
    body: bytes = b""
    closed: threading.Event = field(default_factory=threading.Event)


class LocalService:
    """/echo answers with the body's digest, /large/N with N bytes, /slow/MS late, /status/N without a body.

    /hang never answers, /garbage with noise.
    """

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._open: set[socket.socket] = set()
        self._start()

    def _start(self) -> None:
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def stop(self) -> None:
        """Refuse connections and end those that are open."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for sock in list(self._open):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def resume(self) -> None:
        """Listen again, on the same port."""
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self._start()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = listener.accept()
                self._open.add(sock)
                threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError), sock, sock.makefile("rb") as reader:
            while line := reader.readline():
                method, target, _ = line.decode("latin-1").split(" ", 2)
                fields = {name.lower(): value for name, value in parse_headers(reader).items()}
                seen = Seen(method, target, fields)
                self.seen.append(seen)
                seen.body = _read_body(reader, fields)
                if not self._answer(sock, seen):
                    break
        self._open.discard(sock)

    def _answer(self, sock: socket.socket, seen: Seen) -> bool:
        """False if the connection is over."""
        what, _, number = seen.target.partition("?")[0].strip("/").partition("/")
        if what == "hang":
            sock.settimeout(120)
            if not sock.recv(1):
                seen.closed.set()
            return False
        if what == "garbage":
            sock.sendall(b"\x00\x01 not HTTP at all\r\n\r\n")
            return False
        if what == "slow":
            time.sleep(int(number) / 1000)
        if what == "status":
            sock.sendall(f"HTTP/1.1 {number} Bodiless\r\nX-Twice: a\r\n\r\n".encode())
            return True
        body = hashlib.sha256(seen.body).hexdigest().encode()
        if what == "large":
            body = b"x" * int(number)
        head = (
            f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nX-Twice: a\r\nX-Twice: b\r\nKeep-Alive: timeout=5\r\n"
        )
        sock.sendall(head.encode() + b"\r\n" + (b"" if seen.method == "HEAD" else body))
        return True


def _read_body(reader: object, fields: dict[str, str]) -> bytes:
    read, readline = reader.read, reader.readline  # type: ignore[attr-defined]
    if "chunked" not in fields.get("transfer-encoding", ""):
        return bytes(read(int(fields.get("content-length", 0))))
    body = b""
    while size := int(readline().split(b";")[0], 16):
        body += read(size)
        read(2)
    readline()
    return body

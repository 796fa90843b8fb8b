"""An upstream that answers as it is told, in a thread with ordinary sockets."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator

import pytest

Script = Callable[["Peer"], None]


class Peer:
    """One accepted connection: `request()` reads a whole request, `say` sends bytes."""

    def __init__(self, sock: socket.socket, number: int) -> None:
        self.sock = sock
        self.number = number
        self.buffer = b""

    def request(self) -> tuple[str, dict[str, str], bytes]:
        """First line, fields (lower case) and body; EOFError if the gateway closed."""
        head = self._until(b"\r\n\r\n").decode("latin-1").split("\r\n")
        fields = {name: value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
        body = b""
        if "content-length" in fields:
            body = self._exactly(int(fields["content-length"]))
        elif fields.get("transfer-encoding") == "chunked":
            while size := int(self._until(b"\r\n"), 16):
                body += self._exactly(size)
                self._exactly(2)
            self._exactly(2)
        return head[0], fields, body

    def say(self, data: bytes) -> None:
        self.sock.sendall(data)

    def reset(self) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def wait_for_end(self) -> bytes:
        return self.sock.recv(1000)

    def _until(self, mark: bytes) -> bytes:
        while mark not in self.buffer:
            self._more()
        data, _, self.buffer = self.buffer.partition(mark)
        return data

    def _exactly(self, size: int) -> bytes:
        while len(self.buffer) < size:
            self._more()
        data, self.buffer = self.buffer[:size], self.buffer[size:]
        return data

    def _more(self) -> None:
        data = self.sock.recv(65536)
        if not data:
            raise EOFError
        self.buffer += data


class FakeUpstream:
    """Listens; each connection runs the script in its own thread. `seen` are the requests the scripts kept."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.seen: list[tuple[str, dict[str, str], bytes]] = []
        self.connections = 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._run, args=(Peer(sock, self.connections),), daemon=True).start()

    def _run(self, peer: Peer) -> None:
        try:
            self.script(peer)
        except (EOFError, OSError):
            pass
        finally:
            peer.sock.close()

    def close(self) -> None:
        self.listener.close()


@pytest.fixture
def fake() -> Iterator[Callable[[Script], FakeUpstream]]:
    made: list[FakeUpstream] = []

    def make(script: Script) -> FakeUpstream:
        made.append(FakeUpstream(script))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def refusing() -> str:
    """The URL of a port nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{sock.getsockname()[1]}"

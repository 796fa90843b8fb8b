"""A plain HTTP service for large bodies: it reads what it is sent to the end, and sends as much as its path says.

`python -m loadtests.bench.large PORT`; GET /up/N answers N bytes, POST /up/N answers once the body is there.
"""

from __future__ import annotations

import socket
import sys
import threading

_PIECE = bytes(1_048_576)


def serve(connection: socket.socket) -> None:
    """One connection until its client closes it."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    room = bytearray(len(_PIECE))
    with connection:
        data = b""
        while True:
            while b"\r\n\r\n" not in data:
                piece = connection.recv(65_536)
                if not piece:
                    return
                data += piece
            head, _, data = data.partition(b"\r\n\r\n")
            left = _length(head) - len(data)
            data = b""
            while left > 0:
                left -= connection.recv_into(room, min(left, len(room))) or left
            _answer(connection, head)


def _length(head: bytes) -> int:
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line.partition(b":")[2])
    return 0


def _answer(connection: socket.socket, head: bytes) -> None:
    method, target, _ = head.split(b"\r\n", 1)[0].split(b" ")
    size = int(target.rpartition(b"/")[2]) if method == b"GET" else 2
    connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: %d\r\n\r\n" % size)
    for at in range(0, size, len(_PIECE)):
        connection.sendall(_PIECE[: size - at])


def main() -> None:
    """Serve until killed."""
    with socket.create_server(("127.0.0.1", int(sys.argv[1]))) as listener:
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=serve, args=(connection,), daemon=True).start()


if __name__ == "__main__":
    main()

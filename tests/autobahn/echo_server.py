"""An echo endpoint over the relay's own WebSocket class, for WebSocket clients that test servers. Not part of Caregate.

`python tests/autobahn/echo_server.py PORT` serves on the loopback address until it is ended.
"""

from __future__ import annotations

import sys
from typing import Any

from gevent.server import StreamServer
from geventwebsocket.exceptions import WebSocketError

from gateway.relay.endpoint import accept_key
from gateway.relay.websocket import UnitSocket

MAX_BYTES = 16 * 1_048_576


def serve(sock: Any, _: Any) -> None:
    """Upgrade whoever asks, then send every message back."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = sock.recv(65_536)
        if not piece:
            return
        data += piece
    head, _, unread = data.partition(b"\r\n\r\n")
    fields = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:])
    key = next(value for name, value in fields.items() if name.lower() == b"sec-websocket-key")
    sock.sendall(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + accept_key(key).encode() + b"\r\n\r\n"
    )
    echo(UnitSocket(sock, unread, MAX_BYTES))


def echo(websocket: UnitSocket) -> None:
    """Until the peer or a fault of his ends the connection."""
    try:
        while (message := websocket.receive()) is not None:
            websocket.send(message)
    except WebSocketError:
        pass
    websocket.close()


def main() -> None:
    server = StreamServer(("127.0.0.1", int(sys.argv[1])), serve)
    server.start()
    print(f"echo server on port {server.server_port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()

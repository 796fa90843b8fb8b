"""A rural post's line: a TCP relay on loopback that goes down now and then, so that its unit really loses its link.

Run as a process: `python -m gateway.demo.flaky_link --listen PORT --to PORT --up-s 45 --down-s 6`.
"""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import argparse  # noqa: E402
import socket  # noqa: E402

import gevent  # noqa: E402
from gevent.server import StreamServer  # noqa: E402


class FlakyLink:
    """Holds: the sockets of the connections that are up."""

    def __init__(self, to_port: int) -> None:
        self._to_port = to_port
        self._open: set[socket.socket] = set()
        self._down = False

    def handle(self, near: socket.socket, _address: object) -> None:
        """Carry one connection until it ends or the line goes down."""
        if self._down:
            near.close()
            return
        try:
            far = socket.create_connection(("127.0.0.1", self._to_port), timeout=5)
        except OSError:
            near.close()
            return
        far.settimeout(None)
        self._open |= {near, far}
        other = gevent.spawn(_copy, far, near)
        _copy(near, far)
        other.join()
        self._open -= {near, far}

    def cycle(self, up_s: float, down_s: float) -> None:
        """Go down and come back for ever."""
        while True:
            gevent.sleep(up_s)
            self._down = True
            for sock in list(self._open):
                _shut(sock)
            gevent.sleep(down_s)
            self._down = False


def _copy(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(65_536):
            target.sendall(data)
    except OSError:
        pass
    _shut(source)
    _shut(target)


def _shut(sock: socket.socket) -> None:
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass
    sock.close()


def main() -> None:
    """Run the line until the process is ended."""
    parser = argparse.ArgumentParser(description="A TCP line that goes down now and then.")
    parser.add_argument("--listen", type=int, required=True)
    parser.add_argument("--to", type=int, required=True)
    parser.add_argument("--up-s", type=float, default=45.0)
    parser.add_argument("--down-s", type=float, default=6.0)
    options = parser.parse_args()
    link = FlakyLink(options.to)
    server = StreamServer(("127.0.0.1", options.listen), link.handle)
    server.start()
    link.cycle(options.up_s, options.down_s)


if __name__ == "__main__":
    main()

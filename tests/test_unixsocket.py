"""Sockets in directories deeper than an address can say."""

import socket
from pathlib import Path

from gateway import unixsocket


def test_a_path_longer_than_an_address(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 90) / ("e" * 90)
    deep.mkdir(parents=True)
    path = deep / "control.sock"
    path.touch()
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
        unixsocket.bind(listener, path, 1)
        assert path.stat().st_mode & 0o777 == 0o600
        unixsocket.connect(client, path)
        server, _ = listener.accept()
        with server:
            client.sendall(b"here")
            assert server.recv(4) == b"here"

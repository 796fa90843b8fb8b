"""Unix sockets in directories of any depth: an address holds 107 bytes, a path may be longer."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def short_path(path: Path) -> Iterator[str]:
    """A short name of the same socket, through a descriptor of its directory; valid inside the block only.

    Raises: OSError if the directory is not there.
    Source: unix(7): `sun_path` has 108 bytes, the last one zero.
    """
    descriptor = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{path.name}"
    finally:
        os.close(descriptor)


def bind(listener: socket.socket, path: Path, backlog: int) -> None:
    """Listen at a path of which the owner alone may connect; a socket that was left there is replaced.

    Raises: OSError.
    """
    path.unlink(missing_ok=True)
    with short_path(path) as address:
        listener.bind(address)
    # SEC: nobody can connect before listen(), so there is no moment at which the mode is another one.
    path.chmod(0o600)
    listener.listen(backlog)


def connect(client: socket.socket, path: Path) -> None:
    """Connect to the socket at a path.

    Raises: OSError.
    """
    with short_path(path) as address:
        client.connect(address)

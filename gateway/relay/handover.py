"""An upgraded connection moves to a sibling worker, so that one crashed worker does not cost a unit all of its links.

The socket travels over a unix socket (SCM_RIGHTS) with what was read of it: u32 length | JSON {unit, kid, exp, jti,
iat, unread}; the receiver answers one byte. A TLS connection lives in its process and stays.
"""

from __future__ import annotations

import array
import base64
import contextlib
import os
import socket as plain
import ssl
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import gevent
import orjson
from gevent import socket

from gateway import unixsocket
from gateway.relay.link_token import LinkToken

Receiver = Callable[[str, LinkToken, Any, bytes], None]
"""(unit id, its token, socket, unread bytes): lives as long as the connection."""

TIMEOUT_S: Final = 1.0
MAX_UNREAD_BYTES: Final = 16_384
_LENGTH: Final = struct.Struct("!I")
_FD_BYTES: Final = array.array("i").itemsize


class Handover:
    """One worker's end: receives connections on its own socket, passes others on to a sibling's."""

    def __init__(self, run_dir: Path, name: str, receive: Receiver) -> None:
        self._dir = run_dir
        self.name = name
        self._receive = receive
        self._listener: Any = None
        self._greenlet: Any = None

    def start(self) -> None:
        """Listen. SEC: the socket is its owner's alone, in a directory that is too."""
        path = self._path(self.name)
        self._listener = socket.socket(plain.AF_UNIX, plain.SOCK_STREAM)
        unixsocket.bind(self._listener, path, 64)
        self._greenlet = gevent.spawn(self._accept_loop)

    def stop(self) -> None:
        """Take no more connections."""
        if self._greenlet is not None:
            self._greenlet.kill()
            self._greenlet = None
            self._listener.close()
            self._path(self.name).unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return handover_path(self._dir, name)

    def _accept_loop(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                gevent.sleep(0.1)
                continue
            gevent.spawn(self._take, sock)

    def _take(self, channel: Any) -> None:
        try:
            with gevent.Timeout(TIMEOUT_S, OSError("a sibling that does not go on")), channel:
                unit, token, unread, descriptor = _read(channel)
                sock = socket.socket(fileno=descriptor)
                channel.sendall(b"\1")
        except (OSError, ValueError):
            return
        try:
            self._receive(unit, token, sock, unread)
        finally:
            sock.close()

    def pass_on(self, name: str, unit: str, token: LinkToken, sock: Any, unread: bytes) -> bool:
        """Give the connection to the sibling of that name; False if it did not take it. Yields to the hub: yes.

        Afterwards this process may only close its descriptor: a shutdown would end the connection for both.
        """
        if isinstance(sock, ssl.SSLSocket) or hasattr(sock, "cipher") or len(unread) > MAX_UNREAD_BYTES:
            return False
        record = {
            "unit": unit, "kid": token.kid, "exp": token.expires_s, "jti": token.jti, "iat": token.issued_s,
            "unread": base64.b64encode(unread).decode("ascii"),
        }  # fmt: skip
        payload = orjson.dumps(record)
        channel = socket.socket(plain.AF_UNIX, plain.SOCK_STREAM)
        channel.settimeout(TIMEOUT_S)
        rights = [(plain.SOL_SOCKET, plain.SCM_RIGHTS, array.array("i", [sock.fileno()]))]
        with channel:
            try:
                unixsocket.connect(channel, self._path(name))
                channel.sendmsg([_LENGTH.pack(len(payload))], rights)
                channel.sendall(payload)
            except OSError:
                return False
            with contextlib.suppress(OSError):
                # NOTE: from here on the sibling may have it, so a missing answer does not make it ours again.
                channel.recv(1)
        return True


def handover_path(run_dir: Path, name: str) -> Path:
    """Where the worker of that name in the mesh receives connections."""
    return run_dir / f"handover-{name.removeprefix('relay-')}"


def _read(channel: Any) -> tuple[str, LinkToken, bytes, int]:
    """Raises: OSError, ValueError."""
    head, rights, _, _ = channel.recvmsg(_LENGTH.size, plain.CMSG_SPACE(_FD_BYTES))
    descriptors = array.array("i")
    for level, kind, data in rights:
        if level == plain.SOL_SOCKET and kind == plain.SCM_RIGHTS:
            descriptors.frombytes(data[: len(data) - len(data) % _FD_BYTES])
    try:
        if len(descriptors) != 1 or len(head) != _LENGTH.size:
            raise ValueError("not one descriptor")
        (length,) = _LENGTH.unpack(head)
        payload = b""
        while len(payload) < length and (piece := channel.recv(min(65_536, length - len(payload)))):
            payload += piece
        record = orjson.loads(payload)
        unread = base64.b64decode(record["unread"])
        token = LinkToken(record["kid"], float(record["exp"]), record["jti"], float(record["iat"]))
        return record["unit"], token, unread, descriptors[0]
    except (ValueError, KeyError, TypeError) as error:
        for descriptor in descriptors:
            os.close(descriptor)
        raise ValueError("a record that is not ours") from error
    except OSError:
        for descriptor in descriptors:
            os.close(descriptor)
        raise

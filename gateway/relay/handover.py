"""A unit's connection moves to a sibling worker, so that one crashed worker does not cost a unit all of its links.

The socket travels over a unix socket of whole messages (SOCK_SEQPACKET, SCM_RIGHTS) with what was read of it: JSON
{unit, kid, exp, jti, iat, unread, address}, and `live`, a `PassedConnection`, if the unit has said HELLO: a worker that
leaves passes it on as it is. A TLS connection lives in its process and stays.
"""

from __future__ import annotations

import array
import contextlib
import os
import socket as plain
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import gevent
import msgspec
from gevent import socket

from fastpath.loop import forget_descriptor
from gateway import unixsocket
from gateway.relay.link_token import LinkToken
from gateway.relay.passed import PassedConnection

Receiver = Callable[[str, LinkToken, Any, bytes, PassedConnection | None], None]
"""(unit id, its token, socket, unread bytes, what it has agreed upon already): lives as long as the connection."""

CONNECT_TIMEOUT_S: Final = 1.0
MAX_UNREAD_BYTES: Final = 16_384
MAX_RECORD_BYTES: Final = 65_536
_FD_BYTES: Final = array.array("i").itemsize
_RIGHTS_BYTES: Final = plain.CMSG_SPACE(4 * _FD_BYTES)


class _Record(msgspec.Struct, omit_defaults=True):
    unit: str
    kid: str
    exp: float
    jti: str
    iat: float
    unread: bytes = b""
    live: PassedConnection | None = None
    address: str = ""


_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder(_Record).decode


class Handover:
    """One worker's end: receives connections on its own socket, passes others on to a sibling's.

    PERF: `worker_ms_per_dial` of `make fleet`: to each sibling one channel that stays open, a message a connection.
    """

    def __init__(self, run_dir: Path, name: str, receive: Receiver) -> None:
        self._dir = run_dir
        self.name = name
        self._receive = receive
        self._listener: Any = None
        self._greenlet: Any = None
        self._incoming: set[Any] = set()
        self._outgoing: dict[str, Any] = {}

    def start(self) -> None:
        """Listen. SEC: the socket is its owner's alone, in a directory that is too."""
        path = self._path(self.name)
        self._listener = socket.socket(plain.AF_UNIX, plain.SOCK_SEQPACKET)
        unixsocket.bind(self._listener, path, 64)
        self._greenlet = gevent.spawn(self._accept_loop)

    def stop(self) -> None:
        """Take no more connections; those that are on their way are still taken."""
        if self._greenlet is not None:
            self._greenlet.kill()
            self._greenlet = None
            self._listener.close()
            self._path(self.name).unlink(missing_ok=True)
        for channel in self._incoming:
            with contextlib.suppress(OSError):
                # NOTE: gevent's own shutdown throws at the reader, who would not see what is on its way.
                channel._sock.shutdown(plain.SHUT_RD)
        for name in list(self._outgoing):
            self._outgoing.pop(name).close()

    def _path(self, name: str) -> Path:
        return handover_path(self._dir, name)

    def _accept_loop(self) -> None:
        while True:
            try:
                channel, _ = self._listener.accept()
            except OSError:
                gevent.sleep(0.1)
                continue
            self._incoming.add(channel)
            gevent.spawn(self._take_all, channel)

    def _take_all(self, channel: Any) -> None:
        try:
            with channel:
                while True:
                    data, rights, _, _ = channel.recvmsg(MAX_RECORD_BYTES, _RIGHTS_BYTES)
                    if not data and not rights:
                        return
                    gevent.spawn(self._take, *_read(data, rights))
        except (OSError, ValueError):
            return
        finally:
            self._incoming.discard(channel)

    def _take(self, record: _Record, descriptor: int) -> None:
        token = LinkToken(record.kid, record.exp, record.jti, record.iat, record.address)
        with socket.socket(fileno=descriptor) as sock:
            self._receive(record.unit, token, sock, record.unread, record.live)

    def pass_on(self, name: str, unit: str, token: LinkToken, sock: Any, unread: bytes) -> bool:
        """Give the connection to the sibling of that name; False if it did not take it.

        Afterwards this process may only close its descriptor: a shutdown would end the connection for both.
        Yields to the hub: where there is no channel to the sibling yet.
        """
        if isinstance(sock, ssl.SSLSocket) or hasattr(sock, "cipher") or len(unread) > MAX_UNREAD_BYTES:
            return False
        payload = _encode(
            _Record(unit, token.kid, token.expires_s, token.jti, token.issued_s, unread, None, token.address)
        )
        # A channel that is not new may be one to a worker that was replaced.
        return any(self._send(name, payload, sock) for _ in range(1 + (name in self._outgoing)))

    def reach(self, name: str) -> bool:
        """Does the sibling of that name take connections? Yields to the hub: where there is no channel to it yet."""
        self._forget_gone()
        return name in self._outgoing or self._connect(name) is not None

    def pass_live(self, name: str, unit: str, token: LinkToken, sock: Any, live: PassedConnection) -> bool:
        """Give a connection that is in use to a sibling that `reach` has found; False if it did not take it now.

        Afterwards as `pass_on`. Where it was not taken nothing has changed. Yields to the hub: no.
        """
        payload = _encode(
            _Record(unit, token.kid, token.expires_s, token.jti, token.issued_s, b"", live, token.address)
        )
        return name in self._outgoing and len(payload) <= MAX_RECORD_BYTES and self._send(name, payload, sock)

    def _send(self, name: str, payload: bytes, sock: Any) -> bool:
        channel = self._outgoing.get(name) or self._connect(name)
        if channel is None:
            return False
        rights = [(plain.SOL_SOCKET, plain.SCM_RIGHTS, array.array("i", [sock.fileno()]))]
        try:
            channel.sendmsg([payload], rights)
        except BlockingIOError:
            return False  # it has not read for a while
        except OSError:
            if self._outgoing.get(name) is channel:
                del self._outgoing[name]
            channel.close()
            return False
        epoll = gevent.get_hub().loop.fileno()
        if epoll is not None:  # a hub that does not wait in epoll has none
            forget_descriptor(epoll, sock.fileno())
        return True

    def _connect(self, name: str) -> Any:
        self._forget_gone()
        channel = socket.socket(plain.AF_UNIX, plain.SOCK_SEQPACKET)
        channel.settimeout(CONNECT_TIMEOUT_S)
        try:
            unixsocket.connect(channel, self._path(name))
        except OSError:
            channel.close()
            return None
        channel.setblocking(False)
        kept = self._outgoing.setdefault(name, channel)
        if kept is not channel:
            channel.close()
        return kept

    def _forget_gone(self) -> None:
        """A worker that was replaced never comes back under its name."""
        for name in [name for name in self._outgoing if not self._path(name).exists()]:
            self._outgoing.pop(name).close()


def handover_path(run_dir: Path, name: str) -> Path:
    """Where the worker of that name in the mesh receives connections."""
    return run_dir / f"handover-{name.removeprefix('relay-')}"


def _read(data: bytes, rights: list[Any]) -> tuple[_Record, int]:
    """Raises: ValueError."""
    descriptors = array.array("i")
    for level, kind, carried in rights:
        if level == plain.SOL_SOCKET and kind == plain.SCM_RIGHTS:
            descriptors.frombytes(carried[: len(carried) - len(carried) % _FD_BYTES])
    try:
        record = _decode(data)
        if len(descriptors) != 1:
            raise ValueError("not one descriptor")
        return record, descriptors[0]
    except ValueError as error:
        for descriptor in descriptors:
            os.close(descriptor)
        raise ValueError("a record that is not ours") from error

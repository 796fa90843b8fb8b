"""TLS for callers and units: 1.2 or newer, and every clean end says so."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Sequence
from typing import Any

import gevent
from gevent import socket as gevent_socket
from gevent import ssl as gevent_ssl

from fastpath.loop import RECEIVE_BYTES
from gateway.http1.connection import TCP_CLOSING, Connection
from gateway.http1.deadlines import DeadlinePassed
from gateway.http1.limits import SECOND_NS

_SEND_BYTES = 65_536


def harden(context: ssl.SSLContext, protocols: Sequence[str] = ("http/1.1",)) -> ssl.SSLContext:
    """The context with nothing below TLS 1.2, with sockets that send close_notify, and these protocols in ALPN."""
    context.minimum_version = max(context.minimum_version, ssl.TLSVersion.TLSv1_2)
    context.set_alpn_protocols(list(protocols))
    context.sslsocket_class = TlsSocket
    return context


class TlsSocket(gevent_ssl.SSLSocket):  # type: ignore[misc]
    """A gevent TLS socket that says close_notify before it ends its direction, and can be read on after that.

    gevent's own drops the TLS state in `shutdown`: the peer cannot tell the end from a cut, and a greenlet that reads
    meanwhile fails with ValueError.
    """

    _said_end = False

    def shutdown(self, how: int) -> None:
        """Raises: OSError."""
        if how != socket.SHUT_RD:
            self._say_end()
        gevent_socket.socket.shutdown(self, how)

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        """What has come. Once our direction has ended, bytes that OpenSSL takes no more are dropped up to the end."""
        try:
            return super().recv(buflen, flags)  # type: ignore[no-any-return]
        except ssl.SSLError:
            if not self._said_end:
                raise
        while gevent_socket.socket.recv(self, _SEND_BYTES):
            pass
        return b""

    def _say_end(self) -> None:
        if self._said_end or self._sslobj is None:
            return
        self._said_end = True
        # NOTE: after sending, OpenSSL looks for the peer's close_notify, which is not waited for.
        with contextlib.suppress(OSError):
            self._sslobj.shutdown()


def shake_hands(context: ssl.SSLContext, sock: Any, timeout_ns: int) -> Any:
    """A TLS socket over an accepted one, which it closes if the handshake fails.

    Raises: OSError (ssl.SSLError), DeadlinePassed.
    Yields to the hub: yes.
    """
    wrapped = context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
    try:
        with gevent.Timeout(timeout_ns / SECOND_NS, DeadlinePassed):
            wrapped.do_handshake()
    except BaseException:
        wrapped.close()
        raise
    return wrapped


class TlsConnection(Connection):
    """A connection over a gevent TLS socket: pieces are joined, and the socket waits by itself.

    NOTE: readiness of the file descriptor says nothing of bytes that TLS has decrypted already.
    """

    __slots__ = ()

    def _receive_idle(self) -> bytes:
        self.idle = True
        try:
            return self._receive(RECEIVE_BYTES, self._idle_deadline_ns())
        except DeadlinePassed:
            self._end_idle()
            return b""
        finally:
            self.idle = False

    def _receive(self, size: int, deadline_ns: int) -> bytes:
        self._service.deadlines.arm(self, deadline_ns)
        self._waiting = True
        try:
            return self._sock.recv(size)  # type: ignore[no-any-return]
        finally:
            self._waiting = False

    def send(self, pieces: Sequence[bytes]) -> None:
        rest = memoryview(b"".join(pieces))
        while rest:
            self._service.deadlines.arm(self, self._write_deadline_ns())
            self._waiting = True
            try:
                sent = self._sock.send(rest[:_SEND_BYTES])
            finally:
                self._waiting = False
            rest = rest[sent:]

    def _readable(self) -> None:
        """Only armed by `watch`: in TLS, waiting is the socket's own."""
        self._watcher.stop()
        self._armed = False
        self._notice_gone()

    def _peer_closed(self) -> bool:
        try:
            state = self._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
        except OSError:
            return True
        return state in TCP_CLOSING

    def _half_close(self) -> None:
        self._sock.shutdown(socket.SHUT_WR)

    def _say_end(self) -> None:
        with contextlib.suppress(OSError):
            self._half_close()

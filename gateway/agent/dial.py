"""Opening the connection to the gateway: TCP, TLS where the URL says so, and the handshake.

NOTE: gevent's own socket and ssl modules are used everywhere in the agent instead of `monkey.patch_all`: patching
imports eleven megabytes of modules that the agent never uses, and what is cooperative is plain to see here.
"""

from __future__ import annotations

import socket as plain_socket
from _socket import getaddrinfo
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import gevent
from gevent import socket

from gateway.agent.handshake import Handshake, HandshakeBroken
from gateway.agent.offload import in_thread

if TYPE_CHECKING:
    from gateway.agent.endpoint import Endpoint
    from gateway.agent.settings import AgentSettings

RECEIVE_BYTES = 65_536


class DialTimeout(Exception):
    """The gateway was not reached, or did not finish the handshake, in time."""


def dial(settings: AgentSettings, token: str) -> tuple[socket.socket, bytes]:
    """An upgraded connection and what the gateway already sent on it.

    Raises: HandshakeRefused, HandshakeBroken, DialTimeout, OSError (which ssl.SSLError is).
    Yields to the hub.
    """
    sock = None
    try:
        with gevent.Timeout(settings.dial_timeout_s, DialTimeout):
            sock = connect(settings.gateway, settings.dial_timeout_s, settings.ca_file)
            unread = _shake_hands(sock, Handshake(settings.gateway, token))
    except BaseException:
        if sock is not None:
            sock.close()
        raise
    sock.settimeout(None)
    return sock, unread


def connect(endpoint: Endpoint, timeout_s: float, ca_file: str | None = None) -> socket.socket:
    """A connected socket without delays for small writes; TLS with verification if the endpoint says so.

    Raises: OSError. Yields to the hub.
    """
    sock = _connect_any(_addresses(endpoint), timeout_s)
    try:
        sock.settimeout(timeout_s)
        sock.setsockopt(plain_socket.IPPROTO_TCP, plain_socket.TCP_NODELAY, 1)
        return _encrypt(sock, endpoint.host, ca_file) if endpoint.tls else sock
    except BaseException:
        sock.close()
        raise


def _addresses(endpoint: Endpoint) -> list[Any]:
    """Shapes: as getaddrinfo. Raises: OSError. Yields to the hub.

    PERF: a name given as bytes is not run through IDNA, whose tables take 1 MB; it was checked to be ASCII.
    """
    host = endpoint.host.encode("ascii")
    look_up = partial(getaddrinfo, host, endpoint.port, 0, plain_socket.SOCK_STREAM, 0)
    try:
        return look_up(plain_socket.AI_NUMERICHOST)
    except plain_socket.gaierror:
        return in_thread(partial(look_up, 0))


def _connect_any(addresses: list[Any], timeout_s: float) -> socket.socket:
    """The first that answers. Raises: OSError. Yields to the hub."""
    failure = OSError("no address")
    for family, kind, protocol, _, address in addresses:
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(timeout_s)
            sock.connect(address)
        except OSError as error:
            sock.close()
            failure = error
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise failure


def _encrypt(sock: socket.socket, host: str, ca_file: str | None) -> socket.socket:
    wrapped: socket.socket = _tls_context(ca_file).wrap_socket(sock, server_hostname=host)
    return wrapped


_contexts: WeakValueDictionary[str | None, Any] = WeakValueDictionary()


def _tls_context(ca_file: str | None) -> Any:
    """One context for all connections that are open: the certificates of a system's authorities take megabytes.

    The next one, after the last connection ended, reads them anew.
    """
    context = _contexts.get(ca_file)
    if context is not None:
        return context
    from gevent import ssl  # PERF: 1 MB resident, spared where the link is plain (tests/agent/test_footprint.py)

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if ca_file is None:
        context.load_default_certs()
    else:
        context.load_verify_locations(ca_file)
    _contexts[ca_file] = context
    return context


def _shake_hands(sock: socket.socket, handshake: Handshake) -> bytes:
    sock.sendall(handshake.request)
    while True:
        data = sock.recv(RECEIVE_BYTES)
        if not data:
            raise HandshakeBroken("closed before the answer")
        unread = handshake.receive(data)
        if unread is not None:
            return unread

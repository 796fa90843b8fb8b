"""Opening the connection to the gateway: TCP, TLS where the URL says so, and the handshake.

NOTE: gevent's own socket and ssl modules are used everywhere in the agent instead of `monkey.patch_all`: patching
imports eleven megabytes of modules that the agent never uses, and what is cooperative is plain to see here.
"""

from __future__ import annotations

import socket as plain_socket
from typing import TYPE_CHECKING

import gevent
from gevent import socket

from gateway.agent.handshake import Handshake, HandshakeBroken

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
    sock = socket.create_connection((endpoint.host, endpoint.port), timeout=timeout_s)
    try:
        sock.setsockopt(plain_socket.IPPROTO_TCP, plain_socket.TCP_NODELAY, 1)
        return _encrypt(sock, endpoint.host, ca_file) if endpoint.tls else sock
    except BaseException:
        sock.close()
        raise


def _encrypt(sock: socket.socket, host: str, ca_file: str | None) -> socket.socket:
    from gevent import ssl  # PERF: 4 MB resident, spared where the link is plain (`resident set` in tests/agent)

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if ca_file is None:
        context.load_default_certs()
    else:
        context.load_verify_locations(ca_file)
    wrapped: socket.socket = context.wrap_socket(sock, server_hostname=host)
    return wrapped


def _shake_hands(sock: socket.socket, handshake: Handshake) -> bytes:
    sock.sendall(handshake.request)
    while True:
        data = sock.recv(RECEIVE_BYTES)
        if not data:
            raise HandshakeBroken("closed before the answer")
        unread = handshake.receive(data)
        if unread is not None:
            return unread

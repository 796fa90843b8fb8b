"""How much of what a link wrote may wait in the kernel: whatever waits there can no longer be overtaken."""

from __future__ import annotations

import contextlib
import socket
from typing import Any, Final

from gateway.relay.outbox import TURN_BYTES

UNSENT_BYTES: Final = TURN_BYTES
"""A turn of one stream. A small answer waits behind it and behind what is under way, not behind a whole send buffer,
which takes up a download's window. What is sent and not acknowledged does not count, so a long way stays full."""

_OPTION: Final = getattr(socket, "TCP_NOTSENT_LOWAT", None)
"""None where the platform has no such thing."""


def limit_unsent(sock: Any) -> None:
    """Have the socket of a unit's link, plain or under TLS, take more only while little of it is unsent.

    Source: tcp(7) and the kernel's ip-sysctl, tcp_notsent_lowat. A socket that is not TCP stays as it is.
    """
    if _OPTION is not None:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, _OPTION, UNSENT_BYTES)

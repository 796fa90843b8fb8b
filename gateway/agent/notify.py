"""Telling systemd how the service is: sd_notify(3) without its library."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping


class Notifier:
    """Sends datagrams to the service manager; without one, nothing.

    Units: `watchdog_s` seconds within which a WATCHDOG=1 is awaited, 0: none.
    """

    def __init__(self, address: str | None = None, watchdog_s: float = 0.0) -> None:
        self.watchdog_s = watchdog_s
        self._address = address

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Notifier:
        """NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID as systemd sets them."""
        address = environment.get("NOTIFY_SOCKET") or None
        if address is None or address[0] not in "/@":
            return cls()
        usec = environment.get("WATCHDOG_USEC", "")
        for_us = environment.get("WATCHDOG_PID") in {None, str(os.getpid())}
        return cls(address, int(usec) / 1e6 if usec.isdigit() and for_us else 0.0)

    def send(self, *lines: str) -> None:
        """One datagram; a manager that does not listen is not waited for."""
        if self._address is None:
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                sock.setblocking(False)
                sock.sendto("\n".join(lines).encode(), address)
        except OSError:
            return

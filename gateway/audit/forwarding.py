"""The trail to a syslog collector over TLS: it is followed, in the order of each chain, at least once.

RFC 5425 knows no acknowledgement. What was written less than a few seconds before a connection broke may be in nobody's
hands, so it is sent again: the cursor stays that far behind.
"""

from __future__ import annotations

import logging
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

import msgspec
import orjson

from gateway.audit.columns import COLUMNS
from gateway.audit.event import readable
from gateway.audit.syslog import frame, message
from gateway.audit.verify import unescape
from gateway.files import replace_file

log = logging.getLogger("caregate.audit")

BATCH = 500
SETTLED_S = 5.0
"""How long a connection must have lasted after what was written on it."""
_RETRY_S = (0.5, 1.0, 2.0, 5.0, 10.0)
_CANONICAL, _SEQUENCE = COLUMNS.index("canonical"), COLUMNS.index("sequence")


class Trail(Protocol):
    """See store.trail.TrailReader: one snapshot."""

    def chains(self) -> list[str]: ...
    def lines(self, chain: str, after: int = 0, until: int | None = None) -> Iterable[bytes]: ...


class Cursor:
    """How far each chain was sent, in a file that is replaced whole."""

    def __init__(self, path: Path) -> None:
        """Raises: OSError, ValueError if the file is no cursor."""
        self._path = path
        self.sent: dict[str, int] = msgspec.json.decode(path.read_bytes(), type=dict[str, int]) if path.exists() else {}

    def save(self, sent: dict[str, int]) -> None:
        """Raises: OSError."""
        if sent == self.sent:
            return
        replace_file(self._path, orjson.dumps(sent))
        self.sent = dict(sent)


class Forwarder:
    """Holds: a TLS connection, made anew when it breaks."""

    def __init__(
        self,
        trail: Callable[[], AbstractContextManager[Trail]],
        address: tuple[str, int],
        tls: ssl.SSLContext,
        cursor: Cursor,
        *,
        settled_s: float = SETTLED_S,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._trail = trail
        self._address = address
        self._tls = tls
        self._cursor = cursor
        self._settled_s = settled_s
        self._clock = clock
        self._sleep = sleep
        self._socket: ssl.SSLSocket | None = None
        self._sent = dict(cursor.sent)
        self._settling: deque[tuple[float, dict[str, int]]] = deque()
        self._failures = 0
        self.broken = False
        """Did the last attempt to reach the collector, or the wait until what was sent is settled, fail?"""

    def round(self) -> int:
        """Send what is new; how many messages. A broken connection is none, and is tried again after a pause.

        Raises: OSError of the cursor's file, and what reading the trail raises.
        """
        try:
            if self._socket is None:
                self._connect()
            count = self._send_new()
            self._listen()
        except (ssl.SSLError, OSError) as error:
            self._break(error)
            return 0
        self.broken = False
        self._settle()
        return count

    def close(self) -> None:
        """Wait until what was sent has settled, then end."""
        until = self._clock() + self._settled_s
        try:
            while self._socket is not None and self._settling and self._clock() < until + 1:
                self._sleep(min(0.1, self._settled_s))
                self._listen()
                self._settle()
        except (ssl.SSLError, OSError) as error:
            self._break(error)
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _connect(self) -> None:
        raw = socket.create_connection(self._address, timeout=10)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._socket = self._tls.wrap_socket(raw, server_hostname=self._address[0])
        self._failures = 0
        self._sent = dict(self._cursor.sent)

    def _send_new(self) -> int:
        assert self._socket is not None  # noqa: S101 - set by _connect
        count = 0
        with self._trail() as trail:
            for chain in trail.chains():
                pending: list[bytes] = []
                for line in trail.lines(chain, self._sent.get(chain, 0)):
                    sequence, text = _record(line)
                    pending.append(frame(message(readable(text), chain, sequence, text)))
                    self._sent[chain] = sequence
                    count += 1
                    if len(pending) == BATCH:
                        self._socket.sendall(b"".join(pending))
                        pending.clear()
                self._socket.sendall(b"".join(pending))
        if count:
            self._settling.append((self._clock() + self._settled_s, dict(self._sent)))
        return count

    def _listen(self) -> None:
        """A collector says nothing; what can be read is that it has closed. Raises: OSError."""
        assert self._socket is not None  # noqa: S101 - set by _connect
        self._socket.settimeout(0.01)
        try:
            if not self._socket.recv(4096):
                raise ConnectionResetError("closed by the collector")
        except (TimeoutError, ssl.SSLWantReadError):
            pass
        finally:
            self._socket.settimeout(10)

    def _settle(self) -> None:
        while self._settling and self._settling[0][0] <= self._clock():
            self._cursor.save(self._settling.popleft()[1])

    def _break(self, error: Exception) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self._settling.clear()
        self.broken = True
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        log.warning("the syslog collector cannot be reached: %s", reason)
        self._sleep(_RETRY_S[min(self._failures, len(_RETRY_S) - 1)])
        self._failures += 1


def _record(line: bytes) -> tuple[int, bytes]:
    texts = line[:-1].split(b"\t")
    return int(texts[_SEQUENCE]), unescape(texts[_CANONICAL])


def client_context(ca: Path, certificate: Path | None = None, key: Path | None = None) -> ssl.SSLContext:
    """TLS 1.2 or newer, the collector's name and chain verified. Raises: OSError, ssl.SSLError."""
    context = ssl.create_default_context(cafile=str(ca))
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if certificate is not None:
        context.load_cert_chain(certificate, key)
    return context

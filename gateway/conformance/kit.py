"""One agent process against the kit's gateway and local service; started anew for every rule that ends a connection."""

from __future__ import annotations

import os
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from gateway.conformance.local_service import LocalService
from gateway.conformance.peer import Broken, Listener, Peer

UNIT = "conformance-unit"


class Kit:
    """Shapes: in the command {gateway}, {unit}, {key}, {target} stand for the values; the environment has them too."""

    def __init__(self, command: Sequence[str], log: Path | None = None) -> None:
        self._command = command
        self._log = log or Path(os.devnull)
        self._directory = tempfile.TemporaryDirectory(prefix="caregate-conformance-")
        self._process: subprocess.Popen[bytes] | None = None
        self._starting = threading.Lock()
        self._closed = False
        self.private_key = Ed25519PrivateKey.generate()
        self.service = LocalService()
        self.listener = Listener()
        self._peer: Peer | None = None
        key = Path(self._directory.name) / "unit.key"
        key.touch(mode=0o600)
        key.write_bytes(self.private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        self._values = {
            "gateway": f"ws://127.0.0.1:{self.listener.port}",
            "unit": UNIT,
            "key": str(key),
            "target": f"http://127.0.0.1:{self.service.port}",
        }

    def peer(self) -> Peer:
        """A connection of the agent on which nothing went wrong yet. Raises: Broken."""
        if self._peer is None or self._peer.over.is_set() or self._peer.fault:
            self._peer = self.fresh()
        return self._peer

    def fresh(self, **welcome: object) -> Peer:
        """The first connection of a new process; `welcome` changes what WELCOME says. Raises: Broken."""
        self.end_agent()
        self.listener.welcome, self.listener.refusal = welcome, ""
        self._start_agent()
        return self.listener.next()

    def refuse(self, status: str) -> None:
        """Start a process whose dials get this answer. Shapes: as "401 Unauthorized", with fields after a CRLF."""
        self.end_agent()
        self.listener.refusal = status
        self._start_agent()

    def spent(self) -> None:
        """The connection is not to be used for another rule."""
        self._peer = None

    def _start_agent(self) -> None:
        values = self._values
        words = [filled(word, values) for word in self._command]
        environment = {**os.environ, **{f"CAREGATE_{name.upper()}": value for name, value in values.items()}}
        with self._starting, self._log.open("ab") as log:
            if self._closed:
                raise Broken("the kit is closed")
            self._process = subprocess.Popen(  # noqa: S603 - the command is the user's own
                words, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def end_agent(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        self.listener.drop()
        self._peer = None

    def close(self) -> None:
        """A rule that another thread looks at meanwhile ends with Broken."""
        with self._starting:
            self._closed = True
        self.end_agent()
        self.service.stop()
        self._directory.cleanup()


def filled(word: str, values: Mapping[str, str]) -> str:
    """A word of the agent's command with what it names; other braces, as of JSON, stay."""
    for name, value in values.items():
        word = word.replace(f"{{{name}}}", value)
    return word

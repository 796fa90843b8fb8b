"""A scripted gateway and a scripted local service, both on real sockets, for the agent between them."""

from __future__ import annotations

import base64
import datetime
import hashlib
import ipaddress
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gevent
import orjson
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from gevent import socket
from gevent.queue import Empty, Queue
from gevent.server import StreamServer

from fastpath.frames import OP_BINARY, OP_CLOSE, Decoder, encode_close, encode_frame
from gateway.agent.endpoint import Endpoint
from gateway.agent.health import Health
from gateway.agent.identity import UnitIdentity
from gateway.agent.log import Log
from gateway.agent.service import Agent
from gateway.agent.services import ServiceSettings
from gateway.agent.settings import AgentSettings
from gateway.relay import events as ev
from gateway.relay.frames import Request, Welcome
from gateway.relay.session import GatewaySession, Limits

WAIT_S = 5.0
GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class Peer:
    """The gateway's end of one connection, with the real session."""

    def __init__(self, sock: Any, limits: Limits, welcome: dict[str, Any]) -> None:
        self.sock = sock
        self.session = GatewaySession(limits, time.monotonic())
        self.decoder = Decoder(masked=True, max_bytes=limits.max_frame)
        self.events: Queue = Queue()
        self.log: list[ev.Event] = []
        self.closed = gevent.event.Event()
        self.close_code = 0
        self.hello: Any = None
        self.auto_consume = True
        self._limits = limits
        self._welcome = welcome

    def run(self) -> None:
        try:
            while data := self.sock.recv(65536):
                for opcode, payload in self.decoder.feed(data):
                    if opcode == OP_BINARY:
                        self._take(payload)
                    elif opcode == OP_CLOSE:
                        self.close_code = int.from_bytes(payload[:2], "big")
        except OSError:
            pass
        finally:
            self.closed.set()
            self.sock.close()

    def _take(self, payload: bytes) -> None:
        for event in self.session.receive(payload, time.monotonic()):
            if isinstance(event, ev.HelloReceived):
                self.hello = event.hello
                given = {"conn": "c1", "epoch": 1, "node": "n", "worker": 0, **self._welcome}
                self.session.welcome(Welcome(**given), time.monotonic(), event.hello)
            body = getattr(event, "body", b"")
            if body and self.auto_consume:
                self.session.consumed(event.stream, len(body))
            self.log.append(event)
            self.events.put(event)
        self.flush()

    def flush(self) -> None:
        while self.session.has_frames:
            for message in self.session.data_to_send(time.monotonic()):
                self.sock.sendall(encode_frame(OP_BINARY, message))

    def raw(self, data: bytes) -> None:
        self.sock.sendall(data)

    def request(self, method: str = "GET", target: str = "/x", body: bytes = b"", end: bool = True, **more: Any) -> int:
        deadline_ms = more.pop("deadline_ms", 5000)
        length = more.pop("length", len(body) if end else None)
        fields = more.pop("fields", [])
        request = Request("req-1", method, target, fields, length, deadline_ms, **more)
        stream = self.session.send_request(request, time.monotonic() + deadline_ms / 1000 + 2, body, end)
        self.flush()
        return stream

    def data(self, stream: int, body: bytes, end: bool = False) -> None:
        self.session.send_data(stream, body, end)
        self.flush()

    def expect(self, kind: type, timeout_s: float = WAIT_S) -> Any:
        """The next event of this kind; others before it are dropped."""
        with gevent.Timeout(timeout_s, False):
            while True:
                event = self.events.get()
                if isinstance(event, kind):
                    return event
        raise AssertionError(f"no {kind.__name__}; got {self.log}")

    def answer(self, stream: int) -> tuple[ev.ResponseReceived, bytes]:
        """The whole answer of a stream."""
        head = self.expect(ev.ResponseReceived)
        assert head.stream == stream
        body, end = head.body, head.end
        while not end:
            piece = self.expect(ev.DataReceived)
            body += piece.body
            end = piece.end
        return head, body

    def nothing(self, kind: type) -> None:
        """No such event is waiting or has been seen."""
        assert not [event for event in self.log if isinstance(event, kind)], self.log

    def close(self, code: int = 1000) -> None:
        try:
            self.sock.sendall(encode_close(code))
            self.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass


class FakeGateway:
    """Accepts agents. `script(attempt)` gives plain bytes to answer instead of the upgrade, or None to upgrade."""

    def __init__(self, **tls: Any) -> None:
        self.script: Callable[[int, bytes], bytes | None] = lambda attempt, head: None
        self.limits = Limits()
        self.welcome: dict[str, Any] = {}
        self.heads: list[bytes] = []
        self.peers: list[Peer] = []
        self._arrived: Queue = Queue()
        self._server = StreamServer(("127.0.0.1", 0), self._serve, **tls)
        self._server.start()
        self.port = self._server.server_port

    def _serve(self, sock: Any, _: Any) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            data = sock.recv(65536)
            if not data:
                return
            head += data
        self.heads.append(head)
        refusal = self.script(len(self.heads), head)
        if refusal is not None:
            sock.sendall(refusal)
            sock.close()
            return
        sock.sendall(self.upgrade(head))
        peer = Peer(sock, self.limits, self.welcome)
        self.peers.append(peer)
        self._arrived.put(peer)
        peer.run()

    @staticmethod
    def upgrade(head: bytes, **change: str) -> bytes:
        key = re.search(rb"sec-websocket-key: (\S+)", head, re.IGNORECASE)
        assert key
        accept = base64.b64encode(hashlib.sha1(key[1] + GUID).digest()).decode()
        fields = {
            "Upgrade": "websocket",
            "Connection": "Upgrade",
            "Sec-WebSocket-Accept": accept,
            "Sec-WebSocket-Protocol": "caregate.relay.v1",
            **{name.replace("_", "-"): value for name, value in change.items()},
        }
        lines = [f"{name}: {value}" for name, value in fields.items() if value]
        return ("HTTP/1.1 101 Switching Protocols\r\n" + "\r\n".join(lines) + "\r\n\r\n").encode()

    def accept(self, timeout_s: float = WAIT_S) -> Peer:
        """The next connection, after its HELLO."""
        try:
            peer = self._arrived.get(timeout=timeout_s)
        except Empty:
            raise AssertionError("no agent dialled") from None
        peer.expect(ev.HelloReceived)
        return peer

    def stop(self) -> None:
        self._server.stop(timeout=0)
        for peer in self.peers:
            peer.close()


class FakeService:
    """A local service: `handler(connection number, socket)` plays it."""

    def __init__(self) -> None:
        self.handler: Callable[[int, Any], None] = lambda number, sock: None
        self.connections = 0
        self._server = StreamServer(("127.0.0.1", 0), self._serve)
        self._server.start()
        self.port = self._server.server_port

    def _serve(self, sock: Any, _: Any) -> None:
        self.connections += 1
        try:
            self.handler(self.connections, sock)
        except OSError:
            pass
        finally:
            sock.close()

    def stop(self) -> None:
        self._server.stop(timeout=0)


def read_request(sock: Any) -> bytes:
    """A request's head, and its body if it has a content-length."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = sock.recv(65536)
        if not piece:
            return b""
        data += piece
    length = re.search(rb"content-length: (\d+)", data)
    wanted = data.index(b"\r\n\r\n") + 4 + (int(length[1]) if length else 0)
    while len(data) < wanted:
        piece = sock.recv(65536)
        if not piece:
            break
        data += piece
    return data


def make_key() -> bytes:
    key = ed25519.Ed25519PrivateKey.generate()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


class Rig:
    """A gateway, an agent and a local service; `start` begins once the scripts are set."""

    def __init__(self) -> None:
        self.gateway = FakeGateway()
        self.service = FakeService()
        self.pauses: list[float] = []
        self.lines: list[dict[str, Any]] = []
        self.log = self._log()
        self.agent: Agent | None = None
        self.health: Health | None = None
        self.settings = AgentSettings(
            gateway=Endpoint(False, "127.0.0.1", self.gateway.port, "/relay/v1/connect"),
            services=(ServiceSettings(Endpoint(False, "127.0.0.1", self.service.port, "")),),
            identity=UnitIdentity("linden-clinic", "linden-clinic", make_key()),
            connections=1,
            dial_timeout_s=2.0,
        )

    def start(self, **changes: Any) -> Agent:
        of_service = {name: changes[name] for name in changes if name in ServiceSettings.__slots__}
        changes = {name: value for name, value in changes.items() if name in AgentSettings.__slots__}
        if of_service:
            changes["services"] = (replace(self.settings.services[0], **of_service),)
        self.settings = replace(self.settings, **changes)
        self.agent = Agent(self.settings, self.log, draw=lambda: 0.5, pause=self._pause, health=self.health)
        self.agent.start()
        return self.agent

    def connect(self, **changes: Any) -> Peer:
        self.start(**changes)
        return self.gateway.accept()

    def wait_for(self, condition: Callable[[], object], timeout_s: float = WAIT_S) -> None:
        with gevent.Timeout(timeout_s, AssertionError("condition not met")):
            while not condition():
                gevent.sleep(0.005)

    def unsent(self, stream: int) -> int:
        """Body bytes of an answer that the agent holds."""
        assert self.agent is not None
        return sum(link._session.queued_bytes(stream) for link in self.agent._links)

    def _pause(self, seconds: float) -> None:
        """The clock of the agent's dials: every wait is recorded and over at once."""
        self.pauses.append(seconds)
        gevent.sleep(0.001 if len(self.pauses) < 50 else 10)

    def _log(self) -> Log:
        lines = self.lines

        class Sink:
            def write(self, line: bytes) -> None:
                lines.append(orjson.loads(line))

            def flush(self) -> None:
                pass

        return Log("debug", Sink())  # type: ignore[arg-type]

    def stop(self) -> None:
        if self.agent is not None:
            self.agent.drain(0.01)
        self.gateway.stop()
        self.service.stop()


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig()
    yield made
    made.stop()


@pytest.fixture
def gateway_over_tls() -> Iterator[Callable[..., FakeGateway]]:
    """Starts a gateway behind a certificate file."""
    started: list[FakeGateway] = []

    def start(**tls: Any) -> FakeGateway:
        started.append(FakeGateway(**tls))
        return started[-1]

    yield start
    for gateway in started:
        gateway.stop()


@pytest.fixture
def read() -> Callable[[Any], bytes]:
    return read_request


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "unit.key"
    path.write_bytes(make_key())
    path.chmod(0o600)
    return path


def certify(subject, key, issuer, issuer_key, names=(), days=2):
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=5))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=not names, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(names or [x509.DNSName("ca")]), critical=False)
        .sign(issuer_key, hashes.SHA256())
    )


@pytest.fixture(scope="module")
def authority():
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test authority")])
    return name, key, certify(name, key, name, key)


@pytest.fixture
def serve(authority, tmp_path, gateway_over_tls):
    """A gateway with a certificate for `names`; the path of the authority's certificate."""

    def start(names, days=2):
        name, key, root = authority
        own = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "gateway")])
        leaf = certify(subject, own, name, key, names, days)
        (tmp_path / "ca.pem").write_bytes(root.public_bytes(Encoding.PEM))
        (tmp_path / "leaf.pem").write_bytes(leaf.public_bytes(Encoding.PEM))
        (tmp_path / "leaf.key").write_bytes(own.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        gateway = gateway_over_tls(certfile=str(tmp_path / "leaf.pem"), keyfile=str(tmp_path / "leaf.key"))
        return gateway, str(tmp_path / "ca.pem")

    start.loopback = lambda: start([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    return start

"""Four real workers with routes for every limit, scripted units and real agents, callers of a chosen worker.

Shapes: a script is `f(unit, request)` for each RequestReceived, run in a thread of its own.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest
import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from fastpath.frames import OP_BINARY, OP_CLOSE, Decoder, decode_close, encode_frame
from gateway.demo.platform import ROOT, Platform
from gateway.relay import events as ev
from gateway.relay.core import Limits
from gateway.relay.decoding import decode
from gateway.relay.frames import GoAway, Hello, Response, Welcome, encode
from gateway.relay.session import UnitSession
from tests.integration.relay.sockets import accepted, descriptors

UNIT, OTHER, GHOST, CLOSED = "probe-unit", "other-unit", "ghost-unit", "closed-unit"
CONTEXT_KEY = "context-key-of-the-probe-unit-with-enough-bytes-0123456789"
WORKERS = 4

ROUTES: dict[str, dict[str, Any]] = {
    "probe": {"deadline_ms": 1_200},
    "bulk": {"deadline_ms": 20_000, "body_max_bytes": 4_194_304},
    "small": {"deadline_ms": 5_000, "response_max_bytes": 1_000},
    "wide": {"deadline_ms": 5_000, "response_max_bytes": 150_000},
    "sweet": {"deadline_ms": 5_000},
    "own": {"deadline_ms": 5_000, "unbound_roles": [], "bind": [{"param": "unit", "claim": "units"}]},
}
METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE")


class _Plain(yaml.SafeDumper):
    """Aliases are refused in a configuration."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


class ProbePlatform(Platform):
    """The demo's gateway and database, without its units; with ours."""

    def __init__(self, directory: Path, port: int) -> None:
        super().__init__(directory, port, WORKERS, tell=lambda text: None)
        self.unit_keys = {name: ed25519.Ed25519PrivateKey.generate() for name in (UNIT, OTHER, GHOST, CLOSED)}
        self._env.update(CAREGATE_RELAY_HELLO_TIMEOUT_MS="1500", CAREGATE_DRAIN_GRACE_S="8")

    def start(self) -> None:
        self._check_ports()
        self._issue_tokens(self.start_gateway())

    def write_documents(self) -> Path:
        path = super().write_documents()
        document = yaml.safe_load(path.read_text())
        document["units"] = {name: self._unit(name) for name in self.unit_keys}
        document["controllers"] = {name: _controller(name, options) for name, options in ROUTES.items()}
        path.write_text(yaml.dump(document, Dumper=_Plain))
        return path

    def _unit(self, name: str) -> dict[str, Any]:
        keys = self.directory / "keys"
        key = self.unit_keys[name]
        public = serialization.PublicFormat.SubjectPublicKeyInfo
        (keys / f"{name}.pub").write_bytes(key.public_key().public_bytes(serialization.Encoding.PEM, public))
        private = (serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        (keys / f"{name}.key").write_bytes(key.private_bytes(serialization.Encoding.PEM, *private))
        (keys / f"{name}.context").write_text(CONTEXT_KEY + name)
        for file in (f"{name}.key", f"{name}.context"):
            (keys / file).chmod(0o600)
        return {
            "name": name,
            "keys": [{"kid": name, "alg": "EdDSA", "public_key": f"file:keys/{name}.pub"}],
            "context_key": f"file:keys/{name}.context",
            "enabled": name != CLOSED,
            "max_connections": 4,
        }


def _controller(name: str, options: dict[str, Any]) -> dict[str, Any]:
    return {
        "path": f"/{name}/v1/{{unit}}/{{path:path}}",
        "methods": list(METHODS),
        "audiences": ["staff-portal"],
        "roles": ["practitioner"],
        "unbound_roles": ["practitioner"],
        "permission": "records.read",
        "query": "any",
        "unit": {"unit": "path:unit", "target": "/{path}", "cookies": name == "sweet"},
        **options,
    }


class ScriptedUnit:
    """A unit that speaks the protocol by UnitSession and does with each request what its script says."""

    def __init__(self, rig: Rig, script: Callable[[ScriptedUnit, Any], None], **options: Any) -> None:
        self.rig = rig
        self.script = script
        self.name = options.get("unit", UNIT)
        limits = options.get("limits", Limits())
        instance = options.get("instance", os.urandom(4).hex())
        hello = Hello("scripted", instance, options.get("index", 0), max_streams=limits.max_streams)
        self.session = UnitSession(limits, time.monotonic(), hello)
        self.requests: list[Any] = []
        self.bodies: dict[int, bytearray] = {}
        self.whole: dict[int, threading.Event] = {}
        self.released: dict[int, threading.Event] = {}
        self.aborted: list[ev.StreamAborted] = []
        self.goaway: ev.GoAwayReceived | None = None
        self.close: tuple[int, str] | None = None
        self.welcome: Welcome | None = None
        self.reading = threading.Event()
        self.reading.set()
        self._welcomed = threading.Event()
        self.over = threading.Event()
        self._lock = threading.RLock()
        self.sock, unread = rig.upgrade(rig.unit_token(self.name), options.get("receive_buffer"))
        threading.Thread(target=self._read, args=(unread,), daemon=True).start()
        self.flush()
        assert self._welcomed.wait(5), (self.goaway, self.close)

    @property
    def worker(self) -> int:
        assert self.welcome is not None
        return self.welcome.worker

    def _read(self, data: bytes) -> None:
        decoder = Decoder(masked=False, max_bytes=131_072)
        with contextlib.suppress(OSError):
            while True:
                for opcode, payload in decoder.feed(data) if data else []:
                    if opcode == OP_CLOSE:
                        self.close = decode_close(payload)
                    elif opcode == OP_BINARY:
                        with self._lock:
                            events = self.session.receive(payload, time.monotonic())
                            for event in events:
                                self._take(event)
                self.flush()
                self.reading.wait()
                data = self.sock.recv(65_536)
                if not data:
                    break
        self.over.set()

    def _take(self, event: ev.Event) -> None:
        match event:
            case ev.WelcomeReceived(welcome):
                self.welcome = welcome
                self._welcomed.set()
            case ev.RequestReceived(stream, _, body, end):
                self.requests.append(event)
                self.bodies[stream] = bytearray()
                self.whole[stream] = threading.Event()
                self.released[stream] = threading.Event()
                self._body(stream, body, end)
                threading.Thread(target=self._run, args=(event,), daemon=True).start()
            case ev.DataReceived(stream, body, end):
                self._body(stream, body, end)
            case ev.GoReceived(stream):
                self.released[stream].set()
            case ev.StreamAborted():
                self.aborted.append(event)
            case ev.GoAwayReceived():
                self.goaway = event

    def _run(self, event: ev.RequestReceived) -> None:
        if event.request.hold:
            self.released[event.stream].wait(20)
        # The gateway may have ended link or stream meanwhile.
        with contextlib.suppress(OSError, RuntimeError):
            self.script(self, event)

    def _body(self, stream: int, body: bytes, end: bool) -> None:
        self.bodies[stream] += body
        self.session.consumed(stream, len(body))
        if end:
            self.whole[stream].set()

    def flush(self) -> None:
        """Write what the session has to send."""
        with self._lock, contextlib.suppress(OSError):
            while messages := self.session.data_to_send(time.monotonic()):
                for message in messages:
                    self.sock.sendall(encode_frame(OP_BINARY, message, os.urandom(4)))

    def say(self, what: Callable[[UnitSession], Any]) -> Any:
        """Do something with the session and write what comes of it."""
        with self._lock:
            done = what(self.session)
            self.flush()
        return done

    def send(self, message: bytes) -> None:
        """A relay message past the session."""
        with self._lock:
            self.sock.sendall(encode_frame(OP_BINARY, message, os.urandom(4)))

    def ack(self, stream: int) -> None:
        self.say(lambda session: session.send_ack(stream))

    def answer(self, stream: int, status: int = 200, body: bytes = b"", *, end: bool = True, **options: Any) -> None:
        fields = options.get("fields", [("content-type", "text/plain")])
        length = options.get("length", len(body) if end else None)
        self.say(lambda session: session.send_response(stream, Response(status, fields, length), body, end))

    def data(self, stream: int, body: bytes, *, end: bool = False) -> None:
        self.say(lambda session: session.send_data(stream, body, end))

    def reset(self, stream: int, code: int, reason: str = "", dispatched: bool | None = None) -> None:
        self.say(lambda session: session.reset(stream, code, reason, dispatched))

    def cut(self) -> None:
        """The link breaks, without a goodbye."""
        self.reading.set()
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()


class RawUnit:
    """A unit whose every byte is ours."""

    def __init__(self, rig: Rig, hello: bool = True, **options: Any) -> None:
        self.sock, self._unread = rig.upgrade(rig.unit_token(options.get("unit", UNIT)))
        self.sock.settimeout(6)
        self._decoder = Decoder(masked=False, max_bytes=131_072)
        self._frames: list[tuple[int, Any]] = []
        if hello:
            self.message(encode(Hello("raw", os.urandom(4).hex(), 0)))
            assert isinstance(self.next(), Welcome)

    def message(self, data: bytes) -> None:
        self.raw(encode_frame(OP_BINARY, data, os.urandom(4)))

    def raw(self, data: bytes) -> None:
        self.sock.sendall(data)

    def next(self) -> Any:
        """The next relay frame, (code, reason) of a close frame, or None at the end."""
        while not self._frames:
            data, self._unread = self._unread or self._receive(), b""
            if not data:
                return None
            self._frames = self._decoder.feed(data)
        opcode, payload = self._frames.pop(0)
        if opcode == OP_CLOSE:
            return decode_close(payload)
        return decode(payload) if opcode == OP_BINARY else self.next()

    def _receive(self) -> bytes:
        try:
            return self.sock.recv(65_536)
        except ConnectionResetError:
            return b""

    def verdict(self) -> tuple[int | None, int | None]:
        """Read to the end: the codes of the last GOAWAY and of the close frame."""
        goaway, close = None, None
        while (frame := self.next()) is not None:
            if isinstance(frame, GoAway):
                goaway = int(frame.code)
            elif isinstance(frame, tuple):
                close = frame[0]
        return goaway, close


class Answer:
    """Shapes: `broken` is what reading the body raised, or None; `body` what came before."""

    def __init__(self, response: http.client.HTTPResponse, took_s: float) -> None:
        self.status = response.status
        self.headers = response.headers
        self.broken: Exception | None = None
        self.took_s = took_s
        try:
            self.body = response.read()
        except (http.client.IncompleteRead, OSError) as error:
            self.body, self.broken = getattr(error, "partial", b""), error

    @property
    def problem(self) -> Any:
        assert self.headers["Content-Type"] == "application/problem+json", self.body[:200]
        return json.loads(self.body)


class Caller:
    """A kept connection to one worker of our choice."""

    def __init__(self, rig: Rig, pid: int) -> None:
        self.rig = rig
        self.pid = pid
        self.connection = http.client.HTTPConnection("127.0.0.1", rig.port, timeout=25)
        self.connection.sock = rig.socket_of(pid)

    def send(self, method: str, path: str, body: bytes | None = None, **headers: str) -> None:
        fields = {"Authorization": f"Bearer {self.rig.platform.tokens['PRACTITIONER']}"}
        fields |= {name.replace("_", "-"): value for name, value in headers.items()}
        self.connection.request(method, path, body, fields)

    def __call__(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
        if self.connection.sock is None:
            self.connection.sock = self.rig.socket_of(self.pid)
        started_s = time.monotonic()
        self.send(method, path, body, **headers)
        return Answer(self.connection.getresponse(), time.monotonic() - started_s)

    def vanish(self) -> None:
        """The caller's connection ends in the middle of things."""
        sock = self.connection.sock
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        # NOTE: a response that is being read keeps the socket open over its close.
        os.close(sock.detach())
        self.connection.sock = None


class Rig:
    """What a test needs to build units and callers; what it built ends with it."""

    UNIT, OTHER, GHOST, CLOSED = UNIT, OTHER, GHOST, CLOSED
    CONTEXT_KEY = CONTEXT_KEY
    Limits = Limits

    def __init__(self, platform: ProbePlatform) -> None:
        self.platform = platform
        self.port = platform.ports.gateway
        self._ends: list[Callable[[], object]] = []

    # --- workers

    def pids(self) -> list[int]:
        """The gateway's workers: children of its arbiter."""
        arbiter = self.platform.children["gateway"].process
        assert arbiter is not None
        return [int(p) for p in Path(f"/proc/{arbiter.pid}/task/{arbiter.pid}/children").read_text().split()]

    def socket_of(self, pid: int) -> socket.socket:
        """A connection that this worker accepted."""
        spare = []
        try:
            for _ in range(400):
                sock = socket.create_connection(("127.0.0.1", self.port), timeout=25)
                if self._owner(sock) == pid:
                    return sock
                spare.append(sock)
        finally:
            for other in spare:
                other.close()
        raise AssertionError(f"worker {pid} accepts no connection")

    def _owner(self, sock: socket.socket) -> int:
        inode = wait_for(lambda: accepted(self.port, sock.getsockname()[1]), 5, 0.001)
        wanted = f"socket:[{inode}]"
        return int(wait_for(lambda: next((p for p in self.pids() if wanted in descriptors(p)), None), 5, 0.001))

    def caller(self, pid: int) -> Caller:
        return Caller(self, pid)

    def ops(self, path: str = "/status") -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self.platform.ports.ops, timeout=5)
        try:
            connection.request("GET", path)
            data = connection.getresponse().read()
            return json.loads(data) if path == "/status" else data.decode()
        finally:
            connection.close()

    def states(self) -> dict[int, dict[str, Any]]:
        """What /status of every worker says, by pid."""
        found: dict[int, dict[str, Any]] = {}
        until_s = time.monotonic() + 10
        while set(self.pids()) - set(found):
            assert time.monotonic() < until_s, "a worker does not tell its status"
            status = self.ops()
            found[status["worker"]] = status
        return found

    def open_streams(self) -> int:
        units = [unit for state in self.states().values() for unit in state["units"]]
        return sum(connection["streams"] for unit in units for connection in unit["connections"])

    # --- units

    def unit_token(self, unit: str = UNIT, signer: str | None = None, **changes: Any) -> str:
        now = int(time.time())
        claims = {"iss": unit, "sub": unit, "aud": "unit-link", "iat": now, "exp": now + 120}
        claims |= {"jti": os.urandom(8).hex(), **changes}
        kept = {name: value for name, value in claims.items() if value is not None}
        signer = signer or unit
        return jwt.encode(kept, self.platform.unit_keys[signer], algorithm="EdDSA", headers={"kid": signer})

    @staticmethod
    def handshake(token: str | None, **changes: str | None) -> bytes:
        """A request to connect, its fields changed, or left out where None."""
        fields: dict[str, str | None] = {
            "Host": "test",
            "Connection": "Upgrade",
            "Upgrade": "websocket",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": base64.b64encode(os.urandom(16)).decode(),
            "Sec-WebSocket-Protocol": "caregate.relay.v1",
            "Authorization": None if token is None else f"Bearer {token}",
        }
        fields |= {name.replace("_", "-"): value for name, value in changes.items()}
        lines = [f"{name}: {value}\r\n" for name, value in fields.items() if value is not None]
        return ("GET /relay/v1/connect HTTP/1.1\r\n" + "".join(lines) + "\r\n").encode()

    def dial(self, request: bytes, pid: int | None = None) -> tuple[socket.socket, int, bytes, bytes]:
        """Send a request to connect: the socket, the status, the head and what follows it."""
        sock = self.socket_of(pid) if pid else socket.create_connection(("127.0.0.1", self.port), timeout=10)
        self._ends.append(sock.close)
        sock.sendall(request)
        head, rest = read_head(sock)
        return sock, int(head[9:12] or 0), head, rest

    def upgrade(self, token: str, receive_buffer: int | None = None) -> tuple[socket.socket, bytes]:
        sock = socket.socket()
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.connect(("127.0.0.1", self.port))
        self._ends.append(sock.close)
        sock.sendall(self.handshake(token))
        head, rest = read_head(sock)
        assert head.startswith(b"HTTP/1.1 101 "), head
        return sock, rest

    def unit(self, script: Callable[[ScriptedUnit, Any], None], **options: Any) -> ScriptedUnit:
        made = ScriptedUnit(self, script, **options)
        self._ends.append(made.cut)
        self.settle(made.name)
        return made

    def raw_unit(self, hello: bool = True, **options: Any) -> RawUnit:
        return RawUnit(self, hello, **options)

    def settle(self, unit: str, present: bool = True) -> None:
        """Wait until every worker has heard of the unit, or of its end."""
        wait_for(lambda: all((unit in names) is present for names in self.known().values()))

    def known(self) -> dict[int, set[str]]:
        return {pid: {unit["unit"] for unit in state["units"]} for pid, state in self.states().items()}

    def routes_to(self, unit: ScriptedUnit) -> dict[str, int]:
        """Workers to call through: the one that holds the unit, and one that does not."""
        return {"held": unit.worker, "mesh": next(pid for pid in self.pids() if pid != unit.worker)}

    def agent(
        self, target_port: int, unit: str = UNIT, gateway_port: int | None = None, *more: str, prefix: Any = ()
    ) -> Any:
        """The real agent in front of a local service. `prefix`: what runs it."""
        keys = self.platform.directory / "keys"
        log = (self.platform.logs / f"agent-{unit}.log").open("ab")
        process = subprocess.Popen(
            [*prefix, sys.executable, "-m", "gateway.cli.main", "agent", "--unit", unit,
             "--key", str(keys / f"{unit}.key"), "--gateway", f"http://127.0.0.1:{gateway_port or self.port}",
             "--context-key", str(keys / f"{unit}.context"), "--target", f"http://127.0.0.1:{target_port}", *more],
            cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
        self._ends.append(lambda: (process.send_signal(signal.SIGKILL), process.wait()))
        return process

    def service(self, behave: Callable[[socket.socket, bytes, bytes], None]) -> LocalService:
        made = LocalService(behave)
        self._ends.append(made.close)
        return made

    def stop(self) -> None:
        for end in reversed(self._ends):
            end()
        for unit in (UNIT, OTHER):
            self.settle(unit, present=False)


class LocalService:
    """A unit's own service, as badly behaved as the test wants: `behave(socket, head, body)` for each request."""

    def __init__(self, behave: Callable[[socket.socket, bytes, bytes], None]) -> None:
        self.behave = behave
        self.seen: list[bytes] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError), sock:
            head, rest = read_head(sock)
            if not head:
                return
            length = next((int(x[15:]) for x in head.lower().split(b"\r\n") if x.startswith(b"content-length:")), 0)
            while len(rest) < length and (piece := sock.recv(65_536)):
                rest += piece
            self.seen.append(head)
            self.behave(sock, head, rest)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


def read_head(sock: socket.socket) -> tuple[bytes, bytes]:
    """Up to the empty line, and what came after it."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = sock.recv(65_536)
        if not piece:
            break
        data += piece
    head, _, rest = data.partition(b"\r\n\r\n")
    return head, rest


def wait_for(check: Callable[[], Any], limit_s: float = 10.0, every_s: float = 0.02) -> Any:
    """What `check` returns once it is true; fails when the limit has passed."""
    until_s = time.monotonic() + limit_s
    while not (found := check()):
        assert time.monotonic() < until_s, f"not within {limit_s} s"
        time.sleep(every_s)
    return found


@pytest.fixture(scope="session")
def platform(tmp_path_factory: pytest.TempPathFactory, base_port: Callable[[], int]) -> Iterator[ProbePlatform]:
    started = ProbePlatform(tmp_path_factory.mktemp("relay"), base_port())
    try:
        started.start()
        yield started
    finally:
        started.stop()


@pytest.fixture
def wait() -> Callable[..., Any]:
    return wait_for


@pytest.fixture
def rig(platform: ProbePlatform) -> Iterator[Rig]:
    """Also checks, after every test, what no test may leave behind: a dead worker, a traceback, an open stream."""
    made = Rig(platform)
    log = platform.logs / "gateway.log"
    before, mark = set(made.pids()), log.stat().st_size
    made.may_lose_workers = False
    try:
        yield made
        wait_for(lambda: made.open_streams() == 0, 5)
    finally:
        made.stop()
    if not made.may_lose_workers:
        assert set(made.pids()) == before, "a worker died"
    written = log.read_bytes()[mark:]
    assert b"Traceback" not in written, written[-4000:].decode("utf-8", "replace")
    assert b'"status": 500' not in written
    assert b'"status":500' not in written

"""A gateway of one or more workers in this process, callers and a scripted unit, all over real sockets of gevent."""

from __future__ import annotations

import base64
import contextlib
import http.client
import io
import os
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import falcon
import gevent
import jwt
import pytest
from gevent import socket
from gevent.server import StreamServer

from fastpath.frames import OP_BINARY, OP_CLOSE, Decoder, decode_close, encode_frame
from fastpath.routes import RouteTable
from fastpath.token import Key, Verifier
from gateway.bodies import ReadInterrupted
from gateway.config.snapshot import CompiledUnit, SnapshotHolder
from gateway.context import RequestContext, new_request_id
from gateway.errors import GatewayError, RequestTimeout
from gateway.http import problems
from gateway.http1.deadlines import NEVER
from gateway.relay import events as ev
from gateway.relay.frames import Hello, Request, Response
from gateway.relay.service import Relay
from gateway.relay.session import Limits, UnitSession
from gateway.routing.model import Route, RouteKind, UnitAction

UNIT_KEY = b"unit-signing-key-of-32-bytes-....."
CONTEXT_KEY = b"context-key-of-at-least-32-bytes.."


def unit_token(unit: str = "hospital", **changes: Any) -> str:
    now = int(time.time())
    claims = {"iss": unit, "sub": unit, "aud": "unit-link", "iat": now, "exp": now + 120, "jti": os.urandom(8).hex()}
    claims.update(changes)
    return jwt.encode(
        {k: v for k, v in claims.items() if v is not None}, UNIT_KEY, algorithm="HS256", headers={"kid": f"k-{unit}"}
    )


def make_snapshot(**units: CompiledUnit) -> Any:
    keys = [
        Key(f"k-{unit}", "HS256", UNIT_KEY, issuer=unit, audiences={"unit-link"}, attachment=unit)
        for unit in ("hospital", "clinic", "post", "ghost")
    ]
    return SimpleNamespace(
        units=units
        or {
            "hospital": CompiledUnit("hospital", "Hospital", True, 2, CONTEXT_KEY),
            "clinic": CompiledUnit("clinic", "Clinic", True, 1, None),
            "post": CompiledUnit("post", "Post", False, 2, None),
        },
        unit_verifier=Verifier(keys, leeway_s=0, require_sub=True),
        verifier=Verifier([]),
        realm="test",
        routes=RouteTable(()),
        controllers={},
    )


class Worker:
    """One worker: the relay behind a bare HTTP loop that upgrades as the real one does."""

    def __init__(self, run_dir: Any, holder: SnapshotHolder, name: str, route: dict[str, Any], **timing: Any) -> None:
        settings = SimpleNamespace(**{"run_dir": run_dir, "drain_grace_s": 5, **timing})
        self.events: list[tuple[str, str]] = []
        log = SimpleNamespace(info=lambda event, unit, **_: self.events.append((event, unit)))
        self.relay = Relay(settings, holder, None, log)
        self.relay.fabric.name = self.relay.handover.name = name
        self.holder = holder
        self.route = route
        self.seen: list[RequestContext] = []
        self.app = falcon.App(middleware=[self])
        self.app.add_route("/relay/v1/connect", self.relay.connect_resource)
        self.app.add_route("/units/{unit}/{rest:path}", self.relay.unit_resource)
        self.app.add_error_handler(Exception, self._on_error)
        self.server = StreamServer(("127.0.0.1", 0), self._serve)

    def start(self) -> None:
        self.relay.start()
        self.server.start()

    def stop(self) -> None:
        self.relay.stop()
        self.server.stop(timeout=0.1)

    @property
    def port(self) -> int:
        return self.server.server_port

    def process_request(self, req: falcon.Request, resp: falcon.Response) -> None:
        ctx = RequestContext(id=new_request_id(), started_ns=time.monotonic_ns(), method=req.method)
        ctx.path, ctx.query, ctx.snapshot = req.env["PATH_INFO"], req.env["QUERY_STRING"], self.holder.current
        req.context.gateway = ctx
        self.seen.append(ctx)

    def process_resource(
        self, req: falcon.Request, resp: falcon.Response, resource: Any, params: dict[str, str]
    ) -> None:
        if not params:
            return
        options = {"query": None, "deadline_ms": 5_000, **self.route}
        ctx: RequestContext = req.context.gateway
        ctx.params = dict(params)
        ctx.route = Route(
            name="relayed",
            template="/units/{unit}/{rest:path}",
            methods=("GET", "POST"),
            kind=RouteKind.UNIT,
            action=UnitAction(unit=None, unit_param="unit", target="/{rest}", cookies=False),
            audiences=frozenset(),
            roles=frozenset(),
            permission=None,
            **options,
        )

    def _on_error(self, req: Any, resp: Any, error: Exception, params: Any) -> None:
        if not isinstance(error, GatewayError):
            raise error
        ctx = req.context.gateway
        ctx.error = error
        row = problems.row_of(error)
        resp.status = row.status
        resp.content_type = problems.MEDIA_TYPE
        resp.data = problems.body(error, ctx.id, ctx.method)
        for field, value in problems.fields(error):
            resp.set_header(field, value)

    def _serve(self, sock: Any, address: Any) -> None:
        data = b""
        while b"\r\n\r\n" not in data:
            piece = sock.recv(65_536)
            if not piece:
                return
            data += piece
        head, _, rest = data.partition(b"\r\n\r\n")
        environ = self._environ(head.decode("latin-1"), rest, sock)
        started: list[Any] = []
        result = self.app(environ, lambda status, headers, exc_info=None: started.append((status, headers)))
        status, headers = started[0]
        block = f"HTTP/1.1 {status}\r\n" + "".join(f"{n}: {v}\r\n" for n, v in headers)
        if status.startswith("101"):
            sock.sendall((block + "\r\n").encode("latin-1"))
            environ["caregate.upgrade"](sock, rest)
            return
        try:
            sock.sendall((block + "connection: close\r\n\r\n").encode("latin-1"))
            for piece in result:
                sock.sendall(piece)
        except (GatewayError, OSError):
            # What the real worker does: the transfer is cut, here with a reset so that the caller can tell.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        finally:
            if hasattr(result, "close"):
                result.close()

    def _environ(self, head: str, rest: bytes, sock: Any) -> dict[str, Any]:
        lines = head.split("\r\n")
        method, target, protocol = lines[0].split(" ")
        path, _, query = target.partition("?")
        environ: dict[str, Any] = {
            "REQUEST_METHOD": method,
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "SERVER_PROTOCOL": protocol,
            "SERVER_NAME": "test",
            "SERVER_PORT": "80",
            "SCRIPT_NAME": "",
            "wsgi.url_scheme": "http",
            "wsgi.errors": io.StringIO(),
            "wsgi.version": (1, 0),
        }
        for line in lines[1:]:
            name, _, value = line.partition(":")
            key = name.upper().replace("-", "_")
            environ[key if key in ("CONTENT_LENGTH", "CONTENT_TYPE") else f"HTTP_{key}"] = value.strip()
        environ["wsgi.input"] = _Input(sock, rest, int(environ.get("CONTENT_LENGTH") or 0))
        environ["caregate.watch"] = lambda gone: _watch(sock, gone)
        return environ


def _watch(sock: Any, gone: Callable[[], None] | None) -> None:
    if gone is not None:

        def look() -> None:
            with contextlib.suppress(OSError):
                if not sock.recv(1, socket.MSG_PEEK):
                    gone()

        gevent.spawn(look)


class _Input:
    def __init__(self, sock: Any, rest: bytes, length: int) -> None:
        self._sock, self._rest, self._left = sock, rest, length
        self._reader: Any = None

    def read(self, size: int = -1) -> bytes:
        if not self._left:
            return b""
        piece = self._rest or self._receive()
        self._rest = b""
        self._left -= len(piece)
        return piece

    def _receive(self) -> bytes:
        self._reader = gevent.getcurrent()
        try:
            return self._sock.recv(65_536)
        except TimeoutError:
            raise RequestTimeout from None
        finally:
            self._reader = None

    def until(self, deadline_ns: int) -> None:
        self._sock.settimeout(None if deadline_ns == NEVER else (deadline_ns - time.monotonic_ns()) / 1e9)

    def interrupt(self) -> None:
        if self._reader is not None:
            self._reader.throw(ReadInterrupted)


class Unit:
    """A unit that speaks `UnitSession` and answers as its script says.

    `script(unit, event)` runs for each RequestReceived in a greenlet of its own.
    """

    def __init__(self, port: int, script: Callable[[Unit, ev.RequestReceived], None], **options: Any) -> None:
        self.script = script
        self.rig = options["rig"]
        self.instance = options.get("instance", "one")
        self.name = options.get("unit", "hospital")
        self.aborted: list[ev.StreamAborted] = []
        self.bodies: dict[int, bytearray] = {}
        self.ended: set[int] = set()
        self.released: set[int] = set()
        self.goaway: ev.GoAwayReceived | None = None
        self.close: tuple[int, str] | None = None
        self.welcomed = gevent.event.Event()
        self.over = gevent.event.Event()
        self.auto_consume = options.get("auto_consume", True)
        self.sock = socket.create_connection(("127.0.0.1", port))
        limits = options.get("limits", Limits())
        hello = Hello("test-unit", self.instance, options.get("index", 0), max_streams=limits.max_streams)
        self.session = UnitSession(limits, time.monotonic(), hello)
        self.status, unread = self._handshake(options.get("token") or unit_token(self.name))
        self._wake = gevent.event.Event()
        self._greenlets = [gevent.spawn(self._read, unread), gevent.spawn(self._write)] if self.status == 101 else []

    def _handshake(self, token: str) -> tuple[int, bytes]:
        self.sock.sendall(handshake(token))
        data = b""
        while b"\r\n\r\n" not in data:
            piece = self.sock.recv(65_536)
            if not piece:
                break
            data += piece
        return int(data[9:12]), data.partition(b"\r\n\r\n")[2]

    def _read(self, data: bytes) -> None:
        decoder = Decoder(masked=False, max_bytes=131_072)
        with contextlib.suppress(OSError):
            while True:
                for opcode, payload in decoder.feed(data) if data else []:
                    if opcode == OP_BINARY:
                        for event in self.session.receive(payload, time.monotonic()):
                            self._take(event)
                    elif opcode == OP_CLOSE:
                        self.close = decode_close(payload)
                self.poke()
                data = self.sock.recv(65_536)
                if not data:
                    break
        self.over.set()
        self._wake.set()

    def _take(self, event: ev.Event) -> None:
        match event:
            case ev.WelcomeReceived(welcome):
                self.welcome = welcome
                self.welcomed.set()
            case ev.RequestReceived(stream, _, body, end):
                self.bodies[stream] = bytearray()
                gevent.spawn(self._run, event)
                self._body(stream, body, end)
            case ev.DataReceived(stream, body, end):
                self._body(stream, body, end)
            case ev.GoReceived(stream):
                self.released.add(stream)
            case ev.StreamAborted():
                self.aborted.append(event)
            case ev.GoAwayReceived():
                self.goaway = event

    def _run(self, event: ev.RequestReceived) -> None:
        if event.request.hold:
            until(lambda: event.stream in self.released)
        self.script(self, event)

    def _body(self, stream: int, body: bytes, end: bool) -> None:
        self.bodies[stream] += body
        if end:
            self.ended.add(stream)
        if self.auto_consume:
            self.session.consumed(stream, len(body))

    def _write(self) -> None:
        with contextlib.suppress(OSError):
            while not self.over.is_set():
                for message in self.session.data_to_send(time.monotonic()):
                    self.sock.sendall(encode_frame(OP_BINARY, message, os.urandom(4)))
                if not self.session.has_frames:
                    self._wake.wait()
                    self._wake.clear()

    def poke(self) -> None:
        self._wake.set()

    def ack(self, stream: int) -> None:
        self.session.send_ack(stream)
        self.poke()

    def answer(self, stream: int, status: int = 200, body: bytes = b"", end: bool = True, **options: Any) -> None:
        fields = options.get("fields", [("content-type", "text/plain")])
        length = options.get("length", len(body) if end else None)
        self.session.send_response(stream, Response(status, fields, length), body, end)
        self.poke()

    def cut(self) -> None:
        """The link breaks: no goodbye."""
        with contextlib.suppress(OSError):
            self.sock.shutdown(2)
        self.sock.close()


def handshake(token: str | None = None, **changes: str | None) -> bytes:
    fields: dict[str, str | None] = {
        "Host": "test",
        "Connection": "keep-alive, Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": base64.b64encode(os.urandom(16)).decode(),
        "Sec-WebSocket-Protocol": "other.v1, caregate.relay.v1",
        "Authorization": None if token is None else f"Bearer {token}",
    }
    fields.update({name.replace("_", "-"): value for name, value in changes.items()})
    lines = [f"{name}: {value}\r\n" for name, value in fields.items() if value is not None]
    return ("GET /relay/v1/connect HTTP/1.1\r\n" + "".join(lines) + "\r\n").encode()


class Answer:
    """Shapes: `error` is what reading the body raised, or None."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = {name.lower(): value for name, value in response.getheaders()}
        self.error: Exception | None = None
        try:
            self.body = response.read()
        except (http.client.IncompleteRead, OSError) as error:
            self.body, self.error = getattr(error, "partial", b""), error

    @property
    def problem(self) -> dict[str, Any]:
        import json

        return json.loads(self.body)


def send_request(port: int, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> Any:
    sock = socket.create_connection(("127.0.0.1", port))
    lines = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
    length = f"Content-Length: {len(body)}\r\n" if body else ""
    sock.sendall(f"{method} {path} HTTP/1.1\r\nHost: test\r\n{lines}{length}\r\n".encode() + body)
    return sock


def fetch(port: int, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> Answer:
    sock = send_request(port, method, path, body, headers)
    response = http.client.HTTPResponse(sock, method=method)
    response.begin()
    return Answer(response)


def echo(unit: Unit, event: ev.RequestReceived) -> None:
    """Answers with the request's body, or its target if it has none."""
    unit.ack(event.stream)
    until(lambda: event.stream in unit.ended)
    body = bytes(unit.bodies[event.stream]) or event.request.target.encode()
    unit.answer(event.stream, 200, body)


def until(ready: Callable[[], Any], timeout_s: float = 3.0) -> None:
    """Let other greenlets run until `ready`."""
    end_s = time.monotonic() + timeout_s
    while not ready():
        assert time.monotonic() < end_s, "it did not happen"
        gevent.sleep(0.001)


class Rig:
    """What a test needs to build workers and units; everything ends with the test."""

    fetch = staticmethod(fetch)
    send_request = staticmethod(send_request)
    until = staticmethod(until)
    echo = staticmethod(echo)
    handshake = staticmethod(handshake)
    unit_token = staticmethod(unit_token)
    make_snapshot = staticmethod(make_snapshot)
    CONTEXT_KEY = CONTEXT_KEY
    Limits = Limits
    Request = Request

    def __init__(self, run_dir: Any) -> None:
        self.run_dir = run_dir
        self.holder = SnapshotHolder(make_snapshot())
        self.workers: list[Worker] = []
        self.units: list[Unit] = []

    def states(self) -> set[str]:
        """Of the streams of every link that asks, this worker's or between workers."""
        links = [link for w in self.workers for link in (*w.relay.registry.all_local(), *w.relay.fabric._asking)]
        return {stream.state.value for link in links for stream in link.session.streams.values()}

    def worker(self, route: dict[str, Any] | None = None, **timing: Any) -> Worker:
        worker = Worker(self.run_dir, self.holder, f"relay-test{len(self.workers)}.sock", route or {}, **timing)
        self.workers.append(worker)
        worker.start()
        return worker

    def unit(self, worker: Worker, script: Callable[[Unit, ev.RequestReceived], None] = echo, **options: Any) -> Unit:
        unit = Unit(worker.port, script, rig=self, **options)
        self.units.append(unit)
        if unit.status == 101 and options.get("wait", True):
            assert unit.welcomed.wait(3)
        return unit

    def busy(self, worker: Worker, go: list[Any], body: bytes = b"whole") -> tuple[Unit, Any]:
        """A unit that runs a request until there is something in `go`, and the caller who waits for its answer."""

        def slow(unit: Unit, event: ev.RequestReceived) -> None:
            unit.ack(event.stream)
            until(lambda: go)
            unit.answer(event.stream, body=body)

        unit = self.unit(worker, slow)
        call = gevent.spawn(fetch, worker.port, "GET", "/units/hospital/a")
        until(lambda: unit.bodies)
        return unit, call

    def stop(self) -> None:
        for unit in self.units:
            unit.cut()
        for worker in self.workers:
            worker.stop()


@pytest.fixture
def rig(tmp_path: Any) -> Iterator[Rig]:
    # NOTE: a unix socket's path is short, and pytest's is not.
    made = Rig(tmp_path if len(str(tmp_path)) < 80 else tmp_path.parent)
    try:
        with gevent.Timeout(30):
            yield made
    finally:
        made.stop()

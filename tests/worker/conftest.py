"""A real worker behind a real arbiter, and clients that speak raw bytes."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent.parent


def load(path: Path) -> ModuleType:
    """A module of the tests by its file."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


CORPUS = load(ROOT / "tests/corpus/raw_requests.py")
HTTP2 = load(HERE / "http2_client.py")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        metafunc.parametrize("case", CORPUS.CASES, ids=lambda case: case.id)


@pytest.fixture(scope="session")
def corpus() -> ModuleType:
    return CORPUS


class Server:
    """A gunicorn with one worker of ours around tests/worker/echo.py."""

    def __init__(self, notes: Path, *arguments: str, application: str = "echo:app", **environ: str) -> None:
        self.notes = notes
        self.log = notes.with_suffix(".log")
        notes.write_text("")
        self.ready = notes.with_name(notes.name + ".ready")
        command = [
            sys.executable, "-m", "gunicorn", "-k", "gateway.worker.GatewayWorker", "-w", "1", "-b", "127.0.0.1:0",
            "-c", str(HERE / "empty.conf.py"), "--no-control-socket", *arguments, application,
        ]  # fmt: skip
        paths = {"PYTHONPATH": f"{ROOT}:{HERE}", "TEST_NOTES": str(notes)}
        self.process = subprocess.Popen(
            command, cwd=ROOT, stderr=self.log.open("wb"), stdout=subprocess.DEVNULL, env=os.environ | paths | environ
        )
        self.address = self._wait()

    def _wait(self) -> tuple[str, int]:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            text = self.log.read_text()
            port = re.search(r"Listening at: https?://127\.0\.0\.1:(\d+)", text)
            if port and self.ready.exists():
                return ("127.0.0.1", int(port[1]))
            assert self.process.poll() is None, text
            time.sleep(0.01)
        raise TimeoutError(self.log.read_text())

    def connect(self) -> socket.socket:
        sock = socket.create_connection(self.address, 10)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(45)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(tmp_path_factory.mktemp("worker") / "notes")
    yield running
    running.stop()


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("tls")
    key, cert = str(folder / "key.pem"), str(folder / "cert.pem")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-subj", "/CN=gw.example", "-addext", "subjectAltName=DNS:gw.example", "-keyout", key, "-out", cert],
        check=True, capture_output=True,
    )  # fmt: skip
    return key, cert


@pytest.fixture(scope="session")
def http2() -> ModuleType:
    """tests/worker/http2_client.py."""
    return HTTP2


@pytest.fixture(scope="session")
def http2_options(certificate: tuple[str, str]) -> tuple[str, ...]:
    """Arguments of a server that speaks HTTP/2, with at most 20 streams a connection."""
    tls = ("--keyfile", certificate[0], "--certfile", certificate[1])
    return (*tls, "--http-protocols", "h2,h1", "--http2-max-concurrent-streams", "20")


@pytest.fixture(scope="session")
def front(tmp_path_factory: pytest.TempPathFactory, http2_options: tuple[str, ...]) -> Iterator[Server]:
    """A server that speaks HTTP/2."""
    running = Server(tmp_path_factory.mktemp("http2") / "notes", *http2_options)
    yield running
    running.stop()


@pytest.fixture
def speak_http2(certificate: tuple[str, str]) -> Iterator[Callable[..., Any]]:
    """Connect to a server and speak HTTP/2 to it."""
    opened: list[ssl.SSLSocket] = []

    def connect(server: Server, settings: dict[int, int] | None = None, credit: bool = True) -> Any:
        context = ssl.create_default_context(cafile=certificate[1])
        context.set_alpn_protocols(["h2"])
        sock = context.wrap_socket(server.connect(), server_hostname="gw.example")
        opened.append(sock)
        assert sock.selected_alpn_protocol() == "h2"
        return HTTP2.Client(sock, settings, credit)

    yield connect
    for sock in opened:
        sock.close()


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Further servers with their own arguments and environment."""
    running: list[Server] = []

    def start(*arguments: str, **environ: str) -> Server:
        running.append(Server(tmp_path / f"notes{len(running)}", *arguments, **environ))
        return running[-1]

    yield start
    for one in running:
        one.stop()


class Answers:
    """Responses taken apart as a strict client would: `statuses`, `bodies`, `heads`; `rest` is an incomplete tail."""

    def __init__(self, data: bytes, head_requests: bool = False, ended: bool = False) -> None:
        self.statuses: list[int] = []
        self.bodies: list[bytes] = []
        self.heads: list[dict[str, str]] = []
        self.rest = data
        while b"\r\n\r\n" in self.rest and self._take(head_requests, ended):
            pass

    def _take(self, head_request: bool, ended: bool) -> bool:
        head, _, rest = self.rest.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        status = int(re.fullmatch(r"HTTP/1\.1 (\d{3}) [ -~]*", lines[0])[1])  # type: ignore[index]
        fields = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
        body: bytes | None = b""
        if not head_request and status >= 200 and status not in (204, 304):
            body, rest = self._body(fields, rest, ended)
        if body is None:
            return False
        self.statuses.append(status)
        self.heads.append(fields)
        self.bodies.append(body)
        self.rest = rest
        return True

    def _body(self, fields: dict[str, str], rest: bytes, ended: bool) -> tuple[bytes | None, bytes]:
        if "transfer-encoding" in fields:
            return self._chunks(rest)
        if "content-length" in fields:
            size = int(fields["content-length"])
            return (rest[:size], rest[size:]) if len(rest) >= size else (None, rest)
        return (rest, b"") if ended else (None, rest)

    def _chunks(self, rest: bytes) -> tuple[bytes | None, bytes]:
        body = b""
        while b"\r\n" in rest:
            line, _, rest = rest.partition(b"\r\n")
            size = int(line, 16)
            if len(rest) < size + 2:
                return None, rest
            body += rest[:size]
            assert rest[size : size + 2] == b"\r\n"
            rest = rest[size + 2 :]
            if size == 0:
                return body, rest
        return None, rest


@pytest.fixture(scope="session")
def answers() -> type[Answers]:
    return Answers


@pytest.fixture
def exchange(server: Server) -> Callable[..., Answers]:
    """Send raw bytes on a fresh connection, half-close, and read to the end."""

    def talk(raw: bytes, *, to: Server | None = None) -> Answers:
        with (to or server).connect() as sock:
            sock.sendall(raw)
            sock.shutdown(socket.SHUT_WR)
            data = b""
            while piece := sock.recv(65536):
                data += piece
        return Answers(data, head_requests=raw.startswith(b"HEAD"), ended=True)

    return talk

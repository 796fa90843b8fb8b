"""One real platform for the integration tests: gunicorn with four workers, PostgreSQL, three units with agents."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gateway.demo.platform import Platform
from loadtests.demo import free_base_port
from tests.integration.providers import ProviderPlatform


@dataclass
class Answer:
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """A caller of the gateway; one connection a request, so that the kernel spreads them over the workers."""

    def __init__(self, platform: Platform) -> None:
        self.platform = platform
        self.port = platform.ports.gateway

    def __call__(
        self, method: str, path: str, token: str | None = None, body: Any = None, *, timeout: float = 40, **headers: str
    ) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            fields = {name.replace("_", "-"): value for name, value in headers.items()}
            if token:
                fields["Authorization"] = f"Bearer {self.platform.tokens.get(token, token)}"
            if body is not None and not isinstance(body, bytes):
                body = json.dumps(body).encode()
                fields.setdefault("Content-Type", "application/json")
            connection.request(method, path, body, fields)
            answer = connection.getresponse()
            return Answer(answer.status, answer.headers, answer.read())
        finally:
            connection.close()

    def raw(self, data: bytes, timeout: float = 5) -> bytes:
        """Send bytes as they are; everything that comes back until the gateway closes or falls silent."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=timeout) as sock:
            sock.sendall(data)
            out = b""
            try:
                while piece := sock.recv(65536):
                    out += piece
            except TimeoutError:
                pass
            return out

    def ops(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.platform.ports.ops}{path}", timeout=5) as answer:
            data = answer.read()
            return json.loads(data) if answer.headers["Content-Type"].startswith("application/json") else data.decode()


@pytest.fixture(scope="session")
def base_port() -> Callable[[], int]:
    """Ports for further platforms."""
    return free_base_port


@pytest.fixture(scope="session")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    started = Platform(tmp_path_factory.mktemp("platform"), free_base_port(), workers=4, tell=lambda text: None)
    try:
        started.start()
        yield started
    finally:
        started.stop()


@pytest.fixture(scope="session")
def provider_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProviderPlatform]:
    """A platform with identity providers; skipped only where there is no npm."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    started = ProviderPlatform(tmp_path_factory.mktemp("providers"), free_base_port())
    try:
        started.start()
        yield started
    finally:
        started.stop()


@pytest.fixture
def call(platform: Platform) -> Client:
    return Client(platform)


def eventually(check: Callable[[], Any], limit_s: float = 10.0, every_s: float = 0.05) -> Any:
    """What `check` returns once it is true; fails when the limit has passed."""
    until = time.monotonic() + limit_s
    while True:
        found = check()
        if found:
            return found
        assert time.monotonic() < until, f"not within {limit_s} s"
        time.sleep(every_s)


@pytest.fixture
def wait() -> Callable[..., Any]:
    return eventually


@pytest.fixture
def worker_pids(platform: Platform) -> Callable[[], list[int]]:
    """The gateway's workers: children of its arbiter."""

    def pids() -> list[int]:
        arbiter = platform.children["gateway"].process
        assert arbiter is not None
        path = Path(f"/proc/{arbiter.pid}/task/{arbiter.pid}/children")
        return [int(pid) for pid in path.read_text().split()]

    return pids


@pytest.fixture
def kill() -> Callable[[int], None]:
    return lambda pid: os.kill(pid, signal.SIGKILL)

"""The WSGI application behind the worker in these tests: answers what it was given."""

from __future__ import annotations

import base64
import json
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import gevent
from gevent.socket import wait_read

from gateway.bodies import ReadInterrupted
from gateway.errors import GatewayError

REFUSALS: list[list[Any]] = []
GONE: list[str] = []
Start = Callable[..., Any]


class Echo:
    """One method a path; `refused`, `ready`, `drain` and `stop` are the worker's hooks."""

    def __call__(self, environ: dict[str, Any], start_response: Start) -> Iterable[bytes]:
        name = environ["caregate.path"].strip("/").replace("-", "_")
        answer = getattr(self, f"path_{name}", None) or self.path_other
        return answer(environ, start_response)

    def refused(self, environ: dict[str, Any], error: GatewayError, status: int) -> None:
        if error.code == "grace-ended":
            self._note(error.code)
        REFUSALS.append([environ["caregate.request_id"], error.code, status, environ["caregate.peer"]])

    def ready(self) -> None:
        self._note("ready")

    def drain(self) -> None:
        self._note("drain")

    def stop(self) -> None:
        self._note("stop")

    def _note(self, word: str) -> None:
        with open(os.environ["TEST_NOTES"], "a") as notes:
            notes.write(word + "\n")

    def path_other(self, environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        return whole(start, environ["caregate.path"].encode())

    def path_echo(self, environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        try:
            body = environ["wsgi.input"].read()
        except GatewayError as error:
            status = {"request-timeout": "408 Request Timeout", "body-too-large": "413 Content Too Large"}
            start(status.get(error.code, "400 Bad Request"), [("x-code", error.code)])
            return [error.code.encode()]
        return whole(start, body)

    def path_limited(self, environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        try:
            environ["wsgi.input"].limit(8)
        except GatewayError as error:
            start("413 Content Too Large", [("x-code", error.code)])
            return [b"announced"]
        return self.path_echo(environ, start)

    def path_hurried(self, environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        environ["wsgi.input"].until(time.monotonic_ns() + 200_000_000)
        return self.path_echo(environ, start)

    def path_interrupted(self, environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        """Reads five bytes, is interrupted while it waits for more, and reads those if it is asked to."""
        body = environ["wsgi.input"]
        begun = body.read(5)
        gevent.spawn_later(0.02, body.interrupt)
        try:
            body.read_some()
        except ReadInterrupted:
            self._note("interrupted")
            return whole(start, begun + (body.read() if environ["QUERY_STRING"] else b"..."))
        raise AssertionError("nobody sends so soon")

    def path_lines(self, environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        return whole(start, json.dumps([line.decode() for line in environ["wsgi.input"]]).encode())

    def path_ignore(self, environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        return whole(start, b"ignored")

    def path_environ(self, environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        plain = {key: value for key, value in environ.items() if isinstance(value, (str, int, type(None)))}
        plain["duplicate"] = sorted(environ["caregate.duplicate"])
        return whole(start, json.dumps(plain).encode())

    def path_refusals(self, environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        return whole(start, json.dumps(REFUSALS).encode())

    def path_generator(self, environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        start("200 OK", [])
        return (piece for piece in (b"one", b"", b"two", b"three" * 10_000))

    def path_empty_generator(self, environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        start("200 OK", [])
        return iter(())

    def path_write(self, environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        write = start("200 OK", [])
        write(b"written ")
        return [b"returned"]

    def path_two(self, environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        start("200 OK", [])
        return [b"one", b"two"]

    def path_large(self, environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        return whole(start, b"0123456789abcdef" * 262_144)

    def path_narrow(self, environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        environ["caregate.socket"].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        return whole(start, b"0123456789abcdef" * 1000)

    def path_no_content(self, environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        start("204 No Content", [("content-length", "5")])
        return [b"stray"]

    def path_not_modified(self, environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        start("304 Not Modified", [("content-length", "5"), ("etag", '"a"')])
        return []

    def path_hop_by_hop(self, environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        start("200 OK", [("Connection", "x"), ("Keep-Alive", "1"), ("Transfer-Encoding", "gzip"), ("Upgrade", "h2c")])
        return [b"x"]

    def path_close(self, environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        start("200 OK", [("Connection", "close")])
        return [b"x"]

    def path_raises(self, environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        raise RuntimeError("secret detail")

    def path_raises_after_start(self, environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        start("200 OK", [])
        raise RuntimeError("secret detail")

    def path_injects(self, environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        return whole(start, b"x", ("x-a", "b\r\nx-injected: 1"))

    def path_breaks(self, environ: dict[str, Any], start: Start) -> Iterator[bytes]:
        start("200 OK", [])
        yield b"some"
        raise RuntimeError("broken")

    def path_short(self, environ: dict[str, Any], start: Start) -> Iterator[bytes]:
        start("200 OK", [("content-length", "10")])
        yield b"some"

    def path_long(self, environ: dict[str, Any], start: Start) -> Iterator[bytes]:
        start("200 OK", [("content-length", "4")])
        yield b"some"
        yield b"more"

    def path_slow(self, environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        gevent.sleep(0.5)
        return whole(start, b"slow")

    def path_streams(self, environ: dict[str, Any], start: Start) -> Iterator[bytes]:
        """Ends once the client has sent something more."""
        start("200 OK", [])
        yield b"some"
        wait_read(environ["caregate.socket"].fileno())
        yield b"more"

    def path_hangs(self, environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        self._note("hangs")
        gevent.sleep(60)
        return []

    def path_hangs_inside(self, environ: dict[str, Any], start: Start) -> Iterator[bytes]:
        start("200 OK", [])
        yield b"some"
        try:
            gevent.sleep(60)
        except GatewayError as error:
            self._note(error.code)
            raise

    def path_watched(self, environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        gone = gevent.event.Event()
        environ["caregate.watch"](gone.set)
        GONE.append("gone" if gone.wait(0.4) else "stayed")
        return whole(start, GONE[-1].encode())

    def path_gone(self, environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        return whole(start, json.dumps(GONE).encode())

    def path_upgrade(self, environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        environ["caregate.upgrade"] = shout
        start("101 Switching Protocols", [("Upgrade", "websocket"), ("Sec-WebSocket-Accept", "x")])
        return []

    def path_file(self, environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        start("200 OK", [])
        file = Path(__file__).open("rb")  # noqa: SIM115  (the worker closes it)
        wrapper: Iterable[bytes] = environ["wsgi.file_wrapper"](file, 8192)
        return wrapper


def whole(start: Start, body: bytes, *fields: tuple[str, str]) -> list[bytes]:
    start("200 OK", [("content-type", "text/plain"), ("content-length", str(len(body))), *fields])
    return [body]


def shout(sock: Any, unread: bytes) -> None:
    """The upgraded protocol: everything comes back in capitals, until `bye`."""
    data = unread
    while b"bye" not in data:
        if data:
            sock.sendall(data.upper())
        data = sock.recv(1000)
        if not data:
            return
    sock.sendall(base64.b64encode(b"bye"))


app = Echo()
Path(os.environ["TEST_NOTES"] + ".ready").touch()
